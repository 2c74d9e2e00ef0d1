"""The shipped tasks, and the script that builds them and measures what a subject knows."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mansu import tasks
from mansu.measure.scores import measure_task
from mansu.quant.swap import quantized
from mansu.subjects.shipped import GEMMA, TABLE
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

SCRIPTS = Path(__file__).parents[2] / "scripts"
KNOWN = 0.85  # a base below it leaves little to forget


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that scripts/build_tasks.py defines."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "build_tasks.py"))


@pytest.mark.parametrize("name", tasks.shipped())
def test_a_shipped_task_says_what_was_measured_on_which_subject(name: str) -> None:
    task = tasks.load(name)
    assert task.base
    for subject, base in task.base.items():
        assert subject in TABLE
        assert base["task"] == task.digest  # measured on these very rows
        assert base["full precision"].keys() == base["NF4"].keys()
        for found in base["full precision"].values():
            value, low, high = found["accuracy"]
            assert 0 <= low <= value <= high <= 1


@pytest.mark.parametrize("name", [n for n in tasks.shipped() if n.startswith("gemma")])
def test_a_gemma_task_holds_only_what_gemma_knows(name: str) -> None:
    task = tasks.load(name)
    base = task.base[GEMMA]
    for label, found in base["full precision"].items():
        split, group = label.split(": ")
        rows = [f for f in task.split(split) if f.group == group]
        assert found["rows"] == len(rows)  # every answer is one token
        assert found["accuracy"][0] == 1
        assert split == "paraphrase" or found["most probable"] > 0.99
        assert base["NF4"][label]["accuracy"][0] >= KNOWN
    templates = {split: len(task.split(split)) / 40 for split in ("forget", "paraphrase")}
    assert templates == {"forget": 4, "paraphrase": 3}
    assert {f.group for f in task.split("holdout")} == {"antonyms"}
    assert len(task.split("text")) > 0


def test_the_base_is_written_by_a_command(
    builder: dict[str, Any],
    tiny: Subject,
    tiny_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for suffix in ("json", "jsonl"):
        shutil.copy(tasks.FOLDER / f"tiny-colours.{suffix}", tmp_path)
    asked = ["--measure", "--subject", "tiny", "--task", "tiny-colours", "--to", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["build_tasks.py", *asked])
    builder["main"]()
    written = json.loads((tmp_path / "tiny-colours.json").read_text())
    assert written["title"] == tiny_task.title
    base = written["base"]["tiny"]
    with quantized(tiny):
        nf4 = measure_task(tiny, tiny_task)
    for name, measured in (("full precision", measure_task(tiny, tiny_task)), ("NF4", nf4)):
        found = base[name]["forget: colours"]
        assert found["accuracy"][0] == pytest.approx(measured.splits["forget"].accuracy, abs=1e-4)
        assert found["rows"] == len(measured.splits["forget"].correct)


def test_what_the_subject_does_not_say_is_not_kept(builder: dict[str, Any], tiny: Subject) -> None:
    forget = [f for f in tasks.load("tiny-colours").split("forget") if " of " in f.prompt]
    template = forget[0].prompt.split(" of ")[0] + " of {} is"
    facts = {f.prompt.split(" of ")[1].removesuffix(" is"): f.answer.strip() for f in forget}
    names = list(facts)[:12]
    right = {name: facts[name] for name in names}
    colours = sorted(set(facts.values()))
    wrong = names[0]
    right[wrong] = next(c for c in colours if c != facts[wrong])
    relation = builder["Relation"]((template,), (template,), right)
    assert builder["says_it"](relation, tiny) == set(names) - {wrong}
    assert wrong not in builder["right_in_choices"](relation, tiny)
    kept = builder["known"](relation, tiny, builder["says_it"])
    assert list(kept.facts) == names[1:]
