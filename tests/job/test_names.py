"""An edit's name is its key: given once, changed with all that was measured, never two meanings."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mansu import exports, tasks
from mansu.errors import BadInputError, MismatchError, NotMeasuredError, TakenError
from mansu.job import library, lock, names
from mansu.job.runs import Run
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject


def add(run: Run, subject: Subject, name: str, method: str, given: Mapping[str, Any]) -> None:
    """An edit as a method saves it, of one weight."""
    place, weight = next(iter(subject.parameters.items()))
    meta = {"method": method, **given}
    edit = Edit.between({place: weight}, {place: weight + 1}, method)
    edit = Edit(edit.changes, method, meta)
    history = {"steps": [], "stopped": "done", "settings": {"steps": 12, **given}, "given": given}
    more = {"seconds": 1.0, "peak_memory": 1.0, "moved": 1, "fraction": 0.1}
    run.save({"edit": edit, "history": {**history, **more}}, name)


@pytest.fixture
def run(tiny: Subject, tmp_path: Path) -> Run:
    made = Run.create(tiny, tasks.load("tiny-colours"), path=tmp_path / "run")
    add(made, tiny, "mansu", "mansu", {})
    add(made, tiny, "mansu-rate-0.06", "mansu", {"rate": 0.06})
    return made


def test_a_further_edit_is_called_after_its_settings(run: Run, tiny: Subject) -> None:
    assert names.new(run, "npo", {"steps": 3}) == "npo"  # the first by its method
    assert names.new(run, "mansu", {"rate": 0.06}) == "mansu-rate-0.06"  # it is there
    assert names.new(run, "mansu", {"rate": 0.05}) == "mansu-rate-0.05"
    assert names.new(run, "mansu", {"rate": 1e-5}) == "mansu-rate-1e-05"
    many = {"rate": 0.01, "steps": 7, "retain_weight": 3.0, "project": False, "target": 0.5}
    assert len(names.new(run, "mansu", many)) < 70
    assert names.new(run, "mansu", many) != names.new(run, "mansu", {**many, "target": 0.4})
    add(run, tiny, "npo", "npo", {"steps": 3})
    assert (
        names.new(run, "npo", {"steps": 8}) == "npo-defaults"
        or names.new(run, "npo", {"steps": 8}) == "npo-steps-8"
    )
    add(run, tiny, "npo-steps-5", "mansu", {})  # by another method, and called so
    assert names.new(run, "npo", {"steps": 5}) == "npo-steps-5-2"


def test_it_is_written_so_that_no_two_are_the_same(run: Run, tiny: Subject) -> None:
    add(run, tiny, "slow", "npo", {})
    assert run.edits() == ("mansu", "mansu-rate-0.06", "slow")
    assert [names.title(run, name) for name in run.edits()] == [
        "MANSU",
        "MANSU (rate-0.06)",
        "slow (NPO)",
    ]
    assert names.by(run, "mansu") == ("mansu", "mansu-rate-0.06")
    assert run.method_of("slow") == "npo" and run.method_of("ga") == "ga"
    with pytest.raises(NotMeasuredError, match=r"no edit fast: it has mansu, .*, slow"):
        run.edit("fast")
    run.file("edit", "slow").write_bytes(b"x")
    assert names.title(run, "slow") == "slow"  # a damaged edit takes no page down


def test_renamed_it_keeps_what_was_measured_on_it(run: Run) -> None:
    digest, settings = run.digest("mansu-rate-0.06"), run.history("mansu-rate-0.06")["settings"]
    names.rename(run, "mansu-rate-0.06", "slow")
    assert run.edits() == ("mansu", "slow")
    assert run.digest("slow") == digest and run.history("slow")["settings"] == settings
    assert run.method_of("slow") == "mansu"
    names.rename(run, "mansu", "first")
    assert names.new(run, "mansu", {"steps": 3}) == "mansu"
    names.rename(run, "slow", "mansu")  # its own method's name
    assert run.history("mansu")["settings"] == settings


def test_what_was_made_of_an_edit_never_passes_for_another_s(run: Run, tiny: Subject) -> None:
    run.save({"edit_scores": {"models": {}}}, "mansu", "wmdp")
    exported = run.export_folder("mansu", ["hf"])
    names.rename(run, "mansu", "first")
    add(run, tiny, "mansu", "mansu", {"rate": 0.5})
    assert run.has("edit_scores", "first", "wmdp") and not run.has("edit_scores", "mansu", "wmdp")
    assert ("edit_scores", "first", "wmdp") in list(run.kept())
    assert run.export_folder("mansu", ["hf"]) != exported
    long = [f"{'x' * 79}{end}" for end in "ab"]
    for name in long:
        add(run, tiny, name, "mansu", {"name": name})
    folders = {run.export_folder(n, f) for n in long for f in (["hf"], ["nf4"], ["hf", "nf4"])}
    assert len(folders) == 6


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("mansu", TakenError, "another edit mansu"),
        ("npo", BadInputError, "a method's name"),
        ("MANSU", BadInputError, "a method's name"),  # "MANSU (MANSU)", as "mansu-MANSU" is
        ("Mansu-Rate-0.05", TakenError, "another edit mansu-rate-0.05"),  # one file elsewhere
        ("../out", BadInputError, "cannot be the name"),
        ("two words", BadInputError, "cannot be the name"),
        ("", BadInputError, "cannot be the name"),
        ("a" * 100, BadInputError, "cannot be the name"),
    ],
)
def test_a_name_that_would_mislead_is_refused(
    run: Run, tiny: Subject, name: str, error: type[Exception], sentence: str
) -> None:
    add(run, tiny, "mansu-rate-0.05", "mansu", {"rate": 0.05})
    with pytest.raises(error, match=sentence):
        names.rename(run, "mansu-rate-0.06", name)
    assert run.edits() == ("mansu", "mansu-rate-0.05", "mansu-rate-0.06")


def test_nothing_is_renamed_or_deleted_under_a_job(run: Run) -> None:
    with lock.hold(run.path):
        with pytest.raises(TakenError):
            names.rename(run, "mansu", "first")
        with pytest.raises(TakenError):
            library.trash_edit(run, "mansu")
    library.trash_edit(run, "mansu")
    assert run.edits() == ("mansu-rate-0.06",)
    with lock.hold(run.path), pytest.raises(TakenError):
        library.restore_edit(run, "mansu~1")


def test_a_deleted_edit_comes_back_with_what_was_measured_on_it(
    run: Run, tiny: Subject, tmp_path: Path
) -> None:
    run.save({"edit_scores": {"models": {}}}, "mansu", "wmdp")
    digest, kept = run.digest("mansu"), list(run.kept())
    library.trash_edit(run, "mansu")
    assert not [each for each in run.kept() if each[1] == "mansu"]
    exports.pack(run, tmp_path / "x.zip")  # what was deleted is not given to others
    assert not [n for n in zipfile.ZipFile(tmp_path / "x.zip").namelist() if "mansu/" in n]
    add(run, tiny, "Mansu-2", "mansu", {"rate": 0.5})
    (key,) = library.trashed_edits(run)
    add(run, tiny, "mansu", "mansu", {"rate": 0.5})
    with pytest.raises(TakenError, match="another edit mansu"):  # none is written over
        library.restore_edit(run, key)
    library.trash_edit(run, "mansu")
    _last, first = library.trashed_edits(run)
    assert first == key and library.restore_edit(run, key) == "mansu"
    library.trash_edit(run, "Mansu-2")
    assert run.digest("mansu") == digest and list(run.kept()) == kept
    assert run.read("edit_scores", "mansu", "wmdp") == {"models": {}}
    for gone in (key, "../edits/mansu-rate-0.06", "", "mansu"):
        with pytest.raises(BadInputError, match="in the trash"):
            library.restore_edit(run, gone)


def test_a_name_means_one_method_and_one_set_of_settings(run: Run) -> None:
    names.refuse_other(run, "mansu-rate-0.06", "mansu", {"rate": 0.06})
    with pytest.raises(MismatchError, match=r"with rate = 0\.06, not 0\.07: .*--name"):
        names.refuse_other(run, "mansu-rate-0.06", "mansu", {"rate": 0.07})
    with pytest.raises(MismatchError, match="by mansu, not npo"):
        names.refuse_other(run, "mansu-rate-0.06", "npo", {})
