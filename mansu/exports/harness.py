"""A task for EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from mansu import tasks
from mansu.files import new_folder
from mansu.measure.scores import EVALUATED
from mansu.subjects.subject import Subject


def lm_eval(
    task: tasks.Task, subject: Subject, folder: str | Path, *, seed: int = 0
) -> tuple[str, ...]:
    """Write a task for EleutherAI's lm-evaluation-harness (0.4): a group with a task a split.

    The same rows and wrong answers as ``mansu.measure.measure_task``. The harness compares the
    log-probabilities of whole answers and ours the logits of their first token; every answer here
    is one token, so the two agree. Whole or absent.

    Returns:
        A sentence for each split with rows left out, because the harness would cut their text into
        other tokens.

    Raises:
        MansuError: the folder is not empty.
    """
    group = harness_name(task)
    notes, names = [], []
    with new_folder(Path(folder)) as new:
        for split in EVALUATED:
            rows, skipped = _harness_rows(task, subject, split, seed)
            if skipped:
                notes.append(
                    f"Lines {', '.join(map(str, skipped))} left out of the harness's {split}: it "
                    "would cut prompt and answer into other tokens."
                )
            if not rows:
                continue
            name = f"{group}_{split}"
            names.append(name)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (new / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            (new / f"{name}.yaml").write_text(_HARNESS_TASK.format(name=name, split=split))
        members = "".join(f"  - {name}\n" for name in names)
        (new / f"{group}.yaml").write_text(f"group: {group}\ntask:\n{members}")
        (new / "rows.py").write_text(_HARNESS_ROWS)
    return tuple(notes)


def harness_name(task: tasks.Task) -> str:
    """What the harness calls the task: the argument of its ``--tasks``."""
    return "mansu_" + re.sub(r"\W+", "_", task.name).lower()


def harness_command(
    task: tasks.Task, subject: Subject, model: str | Path, folder: str | Path
) -> str:
    """The harness's command that scores the model in ``model`` on the task in ``folder``."""
    start = bool(subject.prefix)  # as we score: with the tokenizer's BOS, where it has one
    arguments = {
        "model": "hf",
        "model_args": f"pretrained={model},add_bos_token={start}",
        "include_path": str(folder),
        "tasks": harness_name(task),
    }
    return "lm_eval " + shlex.join(a for k, v in arguments.items() for a in (f"--{k}", v))


def _harness_rows(
    task: tasks.Task, subject: Subject, split: str, seed: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a split, and the line numbers of those that the harness would read otherwise.

    A BOS that a prompt begins with is left out: ``harness_command`` has the harness put it there,
    where a newer one leaves one that is written alone, and an older one adds a second.
    """
    examples = tasks.examples(task, subject, split, seed=seed)
    readings = {r.fact.row: r for r in tasks.read(task.split(split), subject)[0]}
    spelled: dict[int, str] = {}
    for r in readings.values():
        for text in (r.gap + r.fact.answer, *(r.gap + d for d in r.fact.distractors)):
            head, tail = subject.continuation(r.fact.prompt, text)
            if head == list(r.prompt) and len(tail) == 1:
                spelled.setdefault(tail[0], text)
    rows, skipped = [], []
    for i, number in enumerate(examples.rows):
        fact, right = readings[number].fact, int(examples.answer[i])
        tokens = [right, *examples.distractors[i].tolist()]
        prompt = list(readings[number].prompt)
        text = subject.without_prefix(fact.prompt)
        joined = [_harness_tokens(subject, text + spelled[t]) for t in tokens]
        if joined != [[*prompt, t] for t in tokens] or text != text.rstrip():
            skipped.append(number)
            continue
        place = i % len(tokens)  # not always the first, which the harness prefers in a tie
        tokens = tokens[1 : place + 1] + tokens[:1] + tokens[place + 1 :]
        choices = [spelled[t] for t in tokens]
        row = {"prompt": text, "choices": choices, "answer": place}
        rows.append({**row, "group": fact.group, "line": number})
    return rows, skipped


def _harness_tokens(subject: Subject, text: str) -> list[int]:
    """What the harness makes of a text under ``harness_command``."""
    return list(subject.tokenizer(text, add_special_tokens=bool(subject.prefix))["input_ids"])


_HARNESS_TASK = """\
task: {name}
custom_dataset: !function rows.load
dataset_kwargs:
  split: {split}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


# Of all that a task may say about its data, only a function finds files beside itself.
_HARNESS_ROWS = """\
\"\"\"The rows beside this file, for lm-evaluation-harness.\"\"\"

import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def load(split, **_):
    text = Path(__file__).with_name(f"{split}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\\n") if line]
    return DatasetDict(test=Dataset.from_list(rows))
"""
