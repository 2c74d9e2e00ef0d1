"""What the README and docs/results.md say is what the recorded results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import tables
from experiments.benchmarks import cad
from experiments.claims import claims, separation
from experiments.figures import NO_EDIT, checks_of
from mansu import subjects, tasks
from mansu.evidence.verdict import ABOUT
from mansu.files import read_json
from mansu.methods import NAMES, named, sure
from mansu.show import numbers
from mansu.show.numbers import NOTHING, mark
from scripts import readme


@pytest.mark.parametrize("name", readme.GENERATED)
def test_the_files_say_what_the_results_say(name: str) -> None:
    assert readme.written(name) == (readme.ROOT / name).read_text(encoding="utf-8")


def test_every_claim_is_in_both() -> None:
    found = claims(read_json(readme.RESULTS / "reproduce.json"), separation(readme.RESULTS))
    texts = [(readme.ROOT / name).read_text(encoding="utf-8") for name in readme.GENERATED]
    assert len(found) == 18 and all(claim.claim in text for claim in found for text in texts)


def test_the_recorded_figures_are_keyed_by_the_verdict_s_fields() -> None:
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        for name, figures in run["methods"].items():
            if name != "no edit":
                for key in ("status", "certain", "margin"):
                    assert list(figures[key]) == list(ABOUT)
        row = tables.properties_table(run).columns["verdict"][1]
        assert len(row.split()) == 4  # MANSU's marks


def test_a_cell_shows_the_check_that_its_mark_is_of() -> None:
    """Not another one in the same unit: a failed property stood beside a value that passes."""
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        for method, *cells in tables.intervals_table(run).rows:
            for name, cell in zip(ABOUT, cells, strict=True):
                figures = run["methods"][method]
                texts = {str(c): c.status for c in checks_of(figures, name)}
                text, sign = cell.rsplit(" ", 1)
                status = figures["status"][name]
                assert sign == mark(status)
                if status == "unknown":
                    assert text == NOTHING
                else:
                    assert texts[text] == status or status == "vacuous"


def test_what_is_kept_is_no_drift_on_text() -> None:
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        shown = tables.properties_table(run).columns["worst kept fall, nats"][1:]
        made = [f for name, f in run["methods"].items() if name != NO_EDIT]
        for cell, figures in zip(shown, made, strict=True):
            falls = [
                c.value.value
                for c in checks_of(figures, "retention")
                if c.unit == "nats" and not c.what.startswith("drift")
            ]
            assert cell.startswith(numbers.written(max(falls), "+.3f"))


@pytest.mark.parametrize("path", sorted(readme.RESULTS.glob("*.json")), ids=lambda p: p.name)
def test_every_recorded_result_is_readable(path: Path) -> None:
    assert read_json(path)


def test_the_recorded_figures_are_of_today_s_tasks() -> None:
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        assert run["task"]["digest"] == tasks.load(run["task"]["name"]).digest
    for each in read_json(readme.RESULTS / "cad-auroc.json")["tasks"].values():
        assert each["digest"] == tasks.load(each["task"]).digest


@pytest.mark.parametrize("path", sorted(readme.TEXTS.glob("*.md")), ids=lambda p: p.name)
def test_what_relearning_brings_back_is_told_of_every_task(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        if run["subject"] == subjects.DEFAULT:
            assert f"{{{run['task']['name']}[mansu][attack relearning]" in text


def test_the_only_edit_that_passes_all_four_is_named() -> None:
    runs = read_json(readme.RESULTS / "reproduce.json")["runs"]
    edits = [(r["name"], name, f.get("status")) for r in runs for name, f in r["methods"].items()]
    fine = [(run, name) for run, name, of in edits if of and {*of.values()} == {"passed"}]
    assert fine == [("tiny-colours-tiny", "retrained")]
    said = "The only edit that passes all four is the tiny subject's retrained reference"
    assert said in (readme.TEXTS / "readme.md").read_text(encoding="utf-8")


def test_what_is_of_other_facts_than_today_s_is_not_kept() -> None:
    task, digest = "tiny-colours", tasks.load("tiny-colours").digest
    found = {
        "today's": {"task": task, "digest": digest},
        "earlier": {"task": task, "digest": "1"},
        "one's own": {"task": "mine", "digest": "1"},
    }
    assert list(cad.kept(found)) == ["today's"]


def test_links_in_the_readme_lead_somewhere() -> None:
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert "docs/results.md" in links and "docs/tradeoff.svg" in links
    assert not [link for link in links if not (readme.ROOT / link).exists()]


def test_what_sure_says_of_its_rate_is_so() -> None:
    told = " ".join(str(sure.run.__doc__).split())
    rate: dict[str, float] = {
        name: named(name).settings.RATE
        for name in ("sure", "ga", "graddiff", "kl", "rmu", "null_space")
    }
    assert "ten times that of GA, GradDiff and KL, and below that of RMU and null space" in told
    assert {rate["sure"]} == {10 * rate[name] for name in ("ga", "graddiff", "kl")}
    assert rate["sure"] < min(rate["rmu"], rate["null_space"])
    assert "1 % of the codes change on SmolLM2, after GA 0.1 %, after RMU 15 %" in told
    runs = read_json(readme.RESULTS / "reproduce.json")["runs"]
    for run in (run for run in runs if "smollm2" in run["name"]):
        for name, share in {"sure": 0.01, "ga": 0.001, "rmu": 0.15}.items():
            assert run["methods"][name]["codes changed"] == pytest.approx(share, rel=0.2)


def test_what_is_said_of_the_pareto_front_is_what_the_record_has() -> None:
    """By the definition again: nobody is as near to chance for as little, and better in one."""
    alone = []
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        rows = [
            (name, float(away), float(lost.replace("−", "-")), said)
            for name, away, lost, said in tables.front_table(run).rows
        ]
        assert len(rows) == 10 and [row[2] for row in rows] == sorted(row[2] for row in rows)
        for name, away, lost, said in rows:
            better = [
                o for o, a, b, _ in rows if a <= away and b <= lost and (a, b) != (away, lost)
            ]
            assert said == (", ".join(sorted(better, key=NAMES.index)) or "on the front"), name
        front = [name for name, *_, said in rows if said == "on the front"]
        assert ("mansu" in front) == (run["subject"] != "tiny")
        alone += [run["name"]] if front == ["mansu"] else []
        if run["subject"] == "tiny":
            assert {name: said for name, *_, said in rows}["mansu"] == "graddiff, npo, sure"
    assert alone == ["chemical-symbols-smollm2-135m-instruct", "gemma-capitals-gemma-3-270m"]
