"""The reproduction's figures are the runs', its claims follow, and the README says the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import reproduce
from mansu import subjects
from mansu.evidence.verdict import ABOUT
from mansu.job.runs import Run
from scripts import readme


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reproduction on the tiny subject, MANSU and one baseline with its search."""
    path = tmp_path_factory.mktemp("reproduce")
    only = ["--subject", "tiny", "--method", "mansu", "--method", "graddiff"]
    assert reproduce.main([*only, "--folder", f"{path}/runs", "--to", f"{path}/to"]) == 0
    return path


def test_the_figures_are_what_the_runs_measured(made: Path) -> None:
    found = json.loads((made / "to" / "reproduce.json").read_text())
    run = Run.open(made / "runs" / "tiny-colours-tiny")
    (about,) = found["runs"]
    assert list(about["methods"]) == [reproduce.NO_EDIT, "mansu", "graddiff"]
    for name in ("mansu", "graddiff"):
        f = about["methods"][name]
        assert f["full"]["forget"][0] == run.measurement(name, nf4=False).splits["forget"].accuracy
        assert f["status"] == {p.name: p.status for p in run.verdict(name).properties}
        assert f["attacks"]["none"] == run.attacks(name).accuracy("none").to_json()
        assert f["codes changed"] == run.survival(name).quantized.share
        erasure = run.verdict(name).erasure
        assert erasure.value is not None
        row = next(r for r in reproduce.intervals_table(about).splitlines() if f"| {name} " in r)
        assert f"{erasure.value.value:+.3f} [" in row and f"(≥ {erasure.threshold:.3f})" in row
    assert about["methods"]["graddiff"]["settings"]["learning_rate"] == pytest.approx(
        json.loads((run.path / "search-graddiff.json").read_text())["best"]["learning_rate"]
    )
    assert found["manifest"]["packages"]["torch"]
    text = (made / "to" / "reproduce.md").read_text()
    assert text == reproduce.report(found)
    assert "| mansu |" in text and "Every parameter that MANSU moves" in text


def test_what_is_done_is_not_done_again(made: Path) -> None:
    files = sorted((made / "runs").rglob("*.json"))
    before = {f: f.stat().st_mtime_ns for f in files if f.name != "verdict.json"}
    only = ["--subject", "tiny", "--method", "graddiff"]
    command = [*only, "--folder", f"{made}/runs", "--to", f"{made}/again"]
    assert reproduce.main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_strengths_end_at_the_whole_edit(made: Path) -> None:
    run = Run.open(made / "runs" / "tiny-colours-tiny")
    for name in ("mansu", "graddiff"):
        points = run.strengths(name).points
        assert [p.strength for p in points] == pytest.approx([0.33, 0.67, 1.0])
        whole = run.measurement(name, nf4=False).splits["forget"]
        nf4 = run.measurement(name, nf4=True).splits["forget"]
        assert points[-1].forget == whole.accuracy
        assert points[-1].permanence == pytest.approx(
            whole.log_probability.mean() - nf4.log_probability.mean()
        )
        assert points[0].forgetting <= points[-1].forgetting + 0.05


def _figures(**changes: Any) -> dict[str, Any]:
    return {
        "full": {"forget": [0.2, 0.1, 0.3]},
        "nf4": {"forget": [0.2, 0.1, 0.3]},
        "status": dict.fromkeys(ABOUT, "passed"),
        "certain": dict.fromkeys(ABOUT, True),
        "margin": dict.fromkeys(ABOUT, 0.1),
        "gap": [0.0, 0.0, 0.0],
        "gap in nats": [0.0, 0.0, 0.0],
        "width over update": 100.0,
        "codes changed": 0.01,
        "attacks": None,
        "strengths": None,
        "bound": None,
        "formats": None,
        **changes,
    }


def _found(**made: dict[str, Any]) -> dict[str, Any]:
    run = {
        "subject": subjects.DEFAULT,
        "task": {"name": "facts", "title": "Facts"},
        "circuit": {"mask": 0.004, "faithfulness": 0.9},
        "methods": {reproduce.NO_EDIT: {}, **made},
    }
    return {"runs": [run]}


def _status(found: dict[str, Any], start: str) -> str:
    (claim,) = [c for c in reproduce.claims(found) if c.claim.startswith(start)]
    return claim.status


@pytest.mark.parametrize(
    ("start", "method", "change"),
    [
        ("The median update", "npo", {"width over update": 2000.0}),
        ("So nearly every weight", "npo", {"codes changed": 0.5}),
        ("Every parameter that MANSU", "mansu", {"codes changed": 0.99}),
        ("MANSU has all four", "mansu", {"status": {"forgetting": "failed"}}),
    ],
)
def test_a_claim_turns_with_the_figure_that_it_is_about(
    start: str, method: str, change: dict[str, Any]
) -> None:
    found = _found(mansu=_figures(**{"codes changed": 1.0}), npo=_figures())
    assert _status(found, start) == reproduce.REPRODUCED
    worse = copy.deepcopy(found)
    figures = worse["runs"][0]["methods"][method]
    for key, value in change.items():
        figures[key] = figures[key] | value if isinstance(value, dict) else value
    assert _status(worse, start) == reproduce.NOT_REPRODUCED


def test_recovery_is_claimed_only_with_its_whole_interval() -> None:
    for gap, status in (
        ([0.04, 0.01, 0.07], reproduce.REPRODUCED),
        ([0.04, -0.01, 0.09], reproduce.NOT_REPRODUCED),
    ):
        found = _found(mansu=_figures(), npo=_figures(gap=gap))
        assert _status(found, "What was forgotten comes back") == status
    failed = dict.fromkeys(_figures()["status"], "failed")
    nothing = _found(mansu=_figures(), npo=_figures(status=failed))
    assert _status(nothing, "What was forgotten comes back") == reproduce.UNTESTED


def test_rephrasings_count_where_the_intervals_do_not_meet() -> None:
    start = "Without the circuit forgetting does not reach"

    def found(ours: list[float], random: list[float]) -> dict[str, Any]:
        first, second = ({"forget": x, "paraphrase": x} for x in (ours, random))
        return _found(mansu=_figures(full=first), mansu_no_circuit=_figures(full=second))

    assert _status(found([0.1, 0.0, 0.2], [0.7, 0.6, 0.8]), start) == reproduce.REPRODUCED
    assert _status(found([0.5, 0.3, 0.7], [0.7, 0.6, 0.8]), start) == reproduce.NOT_REPRODUCED
    assert _status(_found(mansu=_figures()), start) == reproduce.UNTESTED


def test_an_ablation_counts_where_a_property_passes_only_with_the_part() -> None:
    failed = _figures()["status"] | {"gap": "failed"}
    start = "Without the floor"
    found = _found(mansu=_figures(), mansu_no_floor=_figures(status=failed))
    assert _status(found, start) == reproduce.REPRODUCED
    for both in (_figures(), _figures(status=failed)):
        found = _found(mansu=both, mansu_no_floor=both)
        assert _status(found, start) == reproduce.NOT_REPRODUCED
    assert _status(_found(mansu=_figures()), start) == reproduce.UNTESTED


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert reproduce.main(["--subject", "gpt-9", "--folder", str(tmp_path)]) == 2
    assert "No experiment is on that subject and task" in capsys.readouterr().err
    wrong = ["--subject", "tiny", "--task", "capitals"]
    assert reproduce.main([*wrong, "--folder", str(tmp_path)]) == 2
    assert "capitals on smollm2" in capsys.readouterr().err
    assert reproduce.main(["--method", "magic", "--folder", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_the_readme_says_what_the_results_say() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert readme.with_results(text) == text
