"""Multiple choice in WMDP's form on a real subject: the whole main job, and the field's own score.

    python -m tests.multiple_choice [--method mansu --method graddiff] [--subject …] [--folder …]

Neither WMDP nor MMLU ships here, so the shipped facts are written in their schemas: the chemical
symbols as WMDP's rows, to be forgotten, capitals and languages as MMLU's, to be kept. Then the
commands of a user: ``task`` makes a task of the two, ``run`` unlearns it, ``score`` asks as lm-eval
does (the cloze form: a model of this size answers letters by chance). Some ten minutes. Prints both
sets before and after, in full precision and in NF4, and each verdict; ends with 1 where a command
fails.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mansu import subjects, tasks
from mansu.cli.commands import main as mansu

FORGET = {
    "chemical-symbols": (r".*(?:for|of|element) (\w+) (?:is|has).*", "What is the symbol for {}?")
}
KEEP = {
    "capitals": ("The capital of (.+) is", "What is the capital of {}?"),
    "languages": ("The official language of (.+) is", "What is the official language of {}?"),
}
QUESTIONS = 60
"""Of each shipped task, at most."""


def questions(task: str, prompt: str, asked: str, seed: int = 0) -> list[dict[str, object]]:
    """Rows as WMDP and MMLU have them, of what a shipped task forgets.

    Args:
        prompt: a pattern of prompts, at least one of each fact, that finds what it is about.
        asked: the question about that.
    """
    rng = random.Random(seed)
    facts = tasks.load(task).split("forget")
    known = {
        m[1]: fact.answer.strip() for fact in facts if (m := re.fullmatch(prompt, fact.prompt))
    }
    answers = sorted(set(known.values()))
    found: list[dict[str, object]] = []
    for about, answer in list(known.items())[:QUESTIONS]:
        choices = [answer, *rng.sample([a for a in answers if a != answer], 3)]
        rng.shuffle(choices)
        right = choices.index(answer)
        found.append({"question": asked.format(about), "choices": choices, "answer": right})
    return found


def written(folder: Path, name: str, sets: Mapping[str, tuple[str, str]]) -> Path:
    """The questions of some shipped tasks as a JSONL file."""
    path = folder / f"{name}.jsonl"
    rows = [row for task, texts in sets.items() for row in questions(task, *texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def do(*command: str | Path) -> None:
    """A command of MANSU, which must end well."""
    print("mansu", *command, flush=True)
    if code := mansu([str(part) for part in command]):
        sys.exit(f"mansu {command[0]} ended with {code}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", default=subjects.DEFAULT)
    parser.add_argument("--method", action="append", help="(mansu and graddiff)")
    parser.add_argument("--folder", type=Path, help="to keep the files and the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        forget, keep = written(folder, "wmdp", FORGET), written(folder, "mmlu", KEEP)
        task, run = folder / "task.jsonl", folder / "run"
        do("task", "--wmdp", forget, "--mmlu", keep, "--form", "cloze", "-o", task)
        methods = options.method or ["mansu", "graddiff"]
        named = [word for method in methods for word in ("--method", method)]
        do("run", "--subject", options.subject, "--task", task, "--folder", run, *named)
        for method in methods:
            for name, source in (("wmdp", forget), ("mmlu", keep)):
                to = folder / f"{method}-{name}.json"
                asked = ("--set", name, "--form", "cloze", "--nf4", "-o", to)
                do("score", source, "--run", run, "--method", method, *asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
