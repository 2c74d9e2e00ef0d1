"""What a run is called, and the trash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mansu.errors import BadInputError, DamagedError
from mansu.job import library
from mansu.job.library import Label
from mansu.job.runs import Run, listed
from mansu.subjects import Edit, Subject
from mansu.tasks import Task


@pytest.fixture
def run(tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "runs"))
    return Run.create(tiny, tiny_task, path=tmp_path / "runs" / "mine")


def names() -> list[str]:
    return [run.name for run in listed() if not run.is_example]


def test_a_run_is_named_and_renamed_and_its_manifest_stays(run: Run) -> None:
    before = run.manifest_file.read_bytes()
    assert library.title(run) == run.about["title"]
    library.describe(run, Label("  Zweiter Versuch ✓ ", "rate 0.1\nand more"))
    assert library.title(run) == "Zweiter Versuch ✓"
    assert library.label(run).notes == "rate 0.1\nand more"
    library.describe(run, Label())
    assert library.title(run) == run.about["title"]
    assert run.manifest_file.read_bytes() == before


@pytest.mark.parametrize("bad", [Label("x" * 81), Label("two\nlines"), Label("", "x" * 4001)])
def test_a_name_that_no_list_could_show_is_refused(run: Run, bad: Label) -> None:
    library.describe(run, Label("good"))
    with pytest.raises(BadInputError):
        library.describe(run, bad)
    assert library.title(run) == "good"


def test_a_damaged_name_hides_no_run(run: Run) -> None:
    for damage in ("{", '{"title": 3}', "[]"):
        (run.path / "label.json").write_text(damage)
        with pytest.raises(DamagedError):
            library.label(run)
        assert library.title(run) == run.about["title"]


def test_a_deleted_run_comes_back_whole(run: Run, tiny_task: Task) -> None:
    library.describe(run, Label("kept"))
    library.trash(run)
    assert names() == [] and list(library.trashed().values()) == ["mine"]
    assert not run.path.exists()
    again = library.restore(next(iter(library.trashed())))
    assert names() == ["mine"] and library.trashed() == {}
    assert library.title(again) == "kept" and again.task() == tiny_task


def test_two_deleted_runs_of_one_name_both_come_back(
    run: Run, tiny: Subject, tiny_task: Task
) -> None:
    library.trash(run)
    library.trash(Run.create(tiny, replace(tiny_task, title="Other"), path=run.path))
    last, first = library.trashed()
    assert library.restore(last).about["title"] == "Other"
    with pytest.raises(BadInputError, match="another run mine"):  # no run is written over
        library.restore(first)
    library.trash(Run.open(run.path))
    assert library.restore(first).about["title"] == tiny_task.title


def test_a_name_with_a_tilde_is_kept(tiny: Subject, tiny_task: Task, run: Run) -> None:
    library.trash(Run.create(tiny, tiny_task, path=run.path.parent / "a~2"))
    assert library.restore(next(iter(library.trashed()))).name == "a~2"


def test_only_what_is_in_the_trash_is_restored(run: Run) -> None:
    for name in ("mine", "../mine", "", "."):
        with pytest.raises(BadInputError, match="in the trash"):
            library.restore(name)
    assert names() == ["mine"]


def test_a_run_that_lies_elsewhere_is_not_deleted(
    run: Run, tiny: Subject, tiny_task: Task, tmp_path: Path
) -> None:
    other = Run.create(tiny, tiny_task, path=tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="not in"):
        library.trash(other)
    assert other.path.is_dir()


def test_a_trash_that_leads_out_takes_nothing(run: Run, tmp_path: Path) -> None:
    run.save({"edit": Edit({"w": (torch.tensor([0]), torch.tensor([1.0]))}, "ga")}, "ga")
    (tmp_path / "out" / "other~1").mkdir(parents=True)
    (tmp_path / "out" / "other~1" / "manifest.json").touch()
    for home in (run.path.parent, run.path):
        (home / library.BIN).symlink_to(tmp_path / "out")
    for throw in (lambda: library.trash(run), lambda: library.trash_edit(run, "ga")):
        with pytest.raises(BadInputError, match="leads out of"):
            throw()
    assert run.edits() == ("ga",) and library.trashed() == library.trashed_edits(run) == {}
    with pytest.raises(BadInputError, match="no run 'other~1' in the trash"):
        library.restore("other~1")
