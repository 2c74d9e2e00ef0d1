"""What a run hangs on besides what was asked is recorded, and said where it is other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mansu import __version__, cli, tasks
from mansu.job import doctor, pipeline
from mansu.job.limits import n_cores
from mansu.job.machine import differences, machine, sentence, threads_of
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.job.working import Work
from mansu.subjects import Subject


def test_a_run_that_goes_on_elsewhere_says_what_is_other_there(
    tiny: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(pairs=8, steps=1)
    run = Run.create(tiny, tasks.load("tiny-colours"), settings, tmp_path / "run")
    assert machine().items() <= run.manifest.items() and sentence(run.manifest) == ""
    told = json.loads(run.manifest_file.read_text())
    told["threads"], told["packages"]["torch"], told["mansu"] = 77, "1.0", "0.1.0"
    del told["cpu"], told["device"]  # as older runs are
    run.manifest_file.write_text(json.dumps(told))
    again = Run.open(run.path)
    has, threads = machine()["packages"]["torch"], machine()["threads"]
    assert differences(again.manifest) == [
        f"mansu 0.1.0 there, {__version__} here",
        f"torch 1.0 there, {has} here",
        f"threads 77 there, {threads} here",
    ]
    assert again.digest_of_run == run.digest_of_run  # it goes on all the same
    assert cli.main(["attribute", "--folder", str(run.path)]) == 0
    assert "note: This run was begun on another machine or with other versions (mansu 0.1.0" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(n_cores() < 2, reason="needs two cores")
def test_a_run_goes_on_with_the_bytes_of_the_threads_that_it_began_with(
    tiny: Subject, tmp_path: Path
) -> None:
    here, found = torch.get_num_threads(), []
    stages = (pipeline.BASE, pipeline.ATTRIBUTION)
    settings = Settings(pairs=8, steps=1)
    try:
        for began, goes_on in ((2, 2), (2, 1)):
            torch.set_num_threads(began)
            path = tmp_path / f"{began}-{goes_on}"
            run = Run.create(tiny, tasks.load("tiny-colours"), settings, path)
            torch.set_num_threads(goes_on)
            work = Work(run)
            with work.held():
                assert torch.get_num_threads() == began and not sentence(run.manifest)
                pipeline.perform(Session(run, tiny), stages, on_step=work.on_step)
            assert torch.get_num_threads() == goes_on
            found.append(run.file("attribution").read_bytes())
    finally:
        torch.set_num_threads(here)
    assert found[0] == found[1]


def test_other_threads_win_nothing_where_more_is_other() -> None:
    threads = torch.get_num_threads()
    for manifest in (
        {**machine(), "threads": threads + 1, "cpu": "another"},
        {**machine(), "threads": 10_000},  # no machine has the cores
    ):
        with threads_of(manifest):
            assert torch.get_num_threads() == threads
            assert f"threads {manifest['threads']} there" in sentence(manifest)


def test_the_doctor_finds_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home-of-somebody"
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / "manifest.json").write_text("{")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MANSU_RUNS", str(home / "runs"))
    monkeypatch.setenv("MANSU_JOBS", "many")
    asked = ["torch>=99", "not-there>=1", 'streamlit<1; extra == "app"']
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    wrong = [line for line in said.splitlines() if line.startswith("WRONG")]
    for part in (
        "versions: torch is",
        "versions: not-there is missing (>=1 is needed)",
        "versions: streamlit is",
        "memory: BadInputError: The setting jobs",
        "runs: The manifest of the run folder ~/runs/mine is damaged",
    ):
        assert any(part in line for line in wrong), part
    assert len(wrong) == 5 and said.endswith("5 to mend\n") and "somebody" not in said
    assert "ok     kernels: NF4 gives its own levels back" in said
    assert "ok     models: tiny loads, and is the one of its example" in said


def test_a_folder_of_runs_that_is_a_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("")
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "runs"))
    (said, right), *_ = dict(doctor.CHECKS)["disk"]()
    assert not right and said.endswith("is no folder")


def test_kernels_that_round_in_another_way_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mansu.quant.codes._table", lambda kind: None)
    assert [right for _, right in dict(doctor.CHECKS)["kernels"]()] == [False, False, True]
