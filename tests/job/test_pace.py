"""Estimates come from what was timed here, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mansu.files import write_json
from mansu.job import pace
from mansu.job.pipeline import Plan, expected, whole
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.progress import Step
from mansu.show.numbers import NOTHING, duration
from mansu.subjects import Subject
from mansu.tasks import Task


@pytest.fixture
def run(tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    return Run.create(tiny, tiny_task, path=tmp_path / "mine")


def test_without_a_timed_run_nothing_is_foretold(run: Run) -> None:
    assert expected(run.subject, ["mansu"]) is None
    run.save({"timings": {"peak memory": 3.0}})
    assert expected(run.subject, ["mansu"]) is None


def test_what_was_timed_counts_and_the_rest_is_in_proportion(run: Run) -> None:
    run.save({"timings": {"base": 20.0, "unlearn mansu": 450.0}})
    rate = 470 / 47  # ten times the weights of the two
    total = sum(stage.weight for stage in whole("mansu"))
    assert expected(run.subject, ["mansu"]) == pytest.approx(rate * total)
    run.save({"timings": {"base": 20.0, "unlearn mansu": 450.0, "cad mansu": 1000.0}})
    assert (expected(run.subject, ["mansu"]) or 0) > rate * total
    assert expected("another", ["mansu"]) is None  # another model's times say nothing


def test_a_folder_s_times_are_found_however_it_is_spelled(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    run.save({"timings": {"base": 20.0}})
    whole = str(tmp_path / "models" / "mine")
    for had, asked in ((whole, "models/mine"), ("models/mine", "models/mine"), (whole, whole)):
        write_json(run.manifest_file, {**run.manifest, "subject": had})
        assert pace.recorded(asked) == {"base": 20.0}
    assert pace.recorded("models/other") == {}


def test_the_share_of_a_job_follows_the_measured_times(run: Run, tiny: Subject) -> None:
    session, work = Session(run, tiny), [("ga", whole("ga"))]
    before = Plan.of(session, work)
    assert (before.share(Step("circuit", 0, 1)) or 1) < 0.1
    seconds = {pace.label(name, method): 1.0 for name, method, _ in before.parts}
    run.save({"timings": {**seconds, "base": 1000.0}})
    after = Plan.of(session, work)
    assert (after.share(Step("attribution", 0, 1)) or 0) > 0.98


def test_the_time_left_is_the_jobs_own_rate(run: Run) -> None:
    assert pace.left(run) is None  # no job
    run.set_status("running", 0.0)
    run.record(Step("load", 0, 1), 0.0)
    run.record(Step("base", 0, 1), 0.0)
    assert pace.left(run) is None  # nothing is done yet
    begun = run.events()[1][0]
    run.set_status("running", 0.25)
    took = run.status().updated - begun
    assert pace.left(run, now=run.status().updated) == pytest.approx(3 * took)
    assert pace.left(run, now=run.status().updated + 2 * took) == pytest.approx(took)
    assert pace.left(run, now=run.status().updated + 9 * took) == 0
    run.set_status("done", 1.0)
    assert pace.left(run) is None


def test_durations_are_no_finer_than_they_are_known() -> None:
    assert duration(None) == NOTHING
    assert [duration(s) for s in (3.4, 14, 54, 55)] == ["3 s", "10 s", "50 s", "1 min"]
    assert [duration(s) for s in (130, 3599, 3930)] == ["2 min", "1 h 00 min", "1 h 06 min"]
