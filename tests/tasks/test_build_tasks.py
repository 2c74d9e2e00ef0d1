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
        assert split in ("paraphrase", "neighbour") or found["most probable"] > 0.99
        value, _, _ = base["NF4"][label]["accuracy"]
        # A neighbour counts where the answer is right in NF4, too.
        assert value == 1 if split == "neighbour" else value >= KNOWN
    assert {f.group for f in task.split("holdout")} == {"antonyms"}
    assert len(task.split("text")) > 0


@pytest.mark.parametrize("name", [n for n in tasks.shipped() if n != "tiny-colours"])
def test_a_shipped_task_is_large_enough_to_decide(name: str, builder: dict[str, Any]) -> None:
    task = tasks.load(name)
    (plan,) = [plan for plan in builder["BUILT"] if name in map(_name, plan.drafts)]
    (forgotten,) = {f.group for f in task.split("forget")}
    relation = plan.relations[forgotten]
    facts = len(task.split("forget")) / len(relation.templates)
    assert facts >= (57 if name == "gemma-symbols" else 60) and facts <= builder["FORGOTTEN"]
    assert len(relation.templates) >= 3 and len(relation.paraphrases) >= 3
    assert len(task.split("paraphrase")) == facts * len(relation.paraphrases)
    assert len(task.split("neighbour")) >= 60
    assert len(task.split("holdout")) >= 90
    names = {n for n, a in relation.facts.items() if _asked(relation, n, a, task)}
    assert len(names) == facts
    for fact in task.split("neighbour"):  # of the same subjects, and offered nothing right
        assert fact.fact in names and fact.answer not in fact.distractors
    measured = task.base[plan.subject]["full precision"]
    for label, found in measured.items():
        assert found["accuracy"][0] >= 0.9, label  # of four, chance is a quarter


def _name(draft: Any) -> str:
    return draft.name


def _asked(relation: Any, name: str, answer: str, task: Task) -> bool:
    """Whether the task forgets the fact, in as many forms as there are templates."""
    rows = {(f.prompt, f.answer) for f in task.split("forget")}
    forms = (*relation.templates, *relation.more)
    found = sum((form.format(name), f" {answer}") in rows for form in forms)
    assert found in (0, len(relation.templates))
    return bool(found)


def test_no_wrong_answer_is_right(builder: dict[str, Any]) -> None:
    facts = runpy.run_path(str(SCRIPTS / "facts.py"))
    relations = [r for r in facts.values() if type(r).__name__ == "Relation"]
    assert len(relations) > 10
    for relation in relations:
        for template in (*relation.templates, *relation.more, *relation.paraphrases):
            assert template.count("{}") == 1
        for name, wrong in relation.wrong.items():
            assert len(set(wrong)) == 3 and relation.facts[name] not in wrong
    used = facts["_USED_TOO"]
    for name, wrong in facts["USES"].wrong.items():
        assert not set(wrong) & set(used[name].split())


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
