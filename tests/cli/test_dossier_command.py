"""``mansu dossier`` and ``mansu bundle``."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from made import run_of

from mansu import cli, exports
from mansu.errors import BadInputError
from mansu.job.runs import Run
from mansu.measure.scores import measure_task
from mansu.report.dossier import Dossier, dossier
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


@pytest.fixture
def run(tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    base = measure_task(tiny, tiny_task)
    return run_of(tmp_path / "mine", tiny, tiny_task, base, {"mansu": base})


def test_a_dossier_is_written_signed_and_repeated_by_its_own_command(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign = ["--decision", "rejected", "--name", "Ada", "--note", "gap=says nothing = vacuous"]
    moved = ["--threshold", "nats=0.3"]
    assert cli.main(["dossier", "mine", *moved, *sign, "--to", "first.html"]) == 0
    first = Dossier.load(tmp_path / "first.json")
    assert first.signed is not None and first.signed.notes == {"gap": "says nothing = vacuous"}
    assert first.signed.thresholds == {"nats": 0.3} and first.thresholds["nats"] == 0.3
    last = shlex.split(first.commands[-1])
    assert cli.main(last[1:]) == 0
    assert (tmp_path / last[-1]).read_text() == (tmp_path / "first.html").read_text()
    capsys.readouterr()
    assert cli.main(["dossier", "mine", "--against", "first.json"]) == 0
    assert "differs" in capsys.readouterr().out
    assert cli.main(["dossier", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["facts"]


def test_whose_signature_is_replaced_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    sign = ["dossier", "mine", "--decision"]
    assert cli.main([*sign, "rejected", "--name", "Anna"]) == 0
    assert "Anna" not in capsys.readouterr().out
    anna = run.read("review", "mansu")
    assert cli.main([*sign, "accepted", "--name", "Bob"]) == 0
    said = f"replaced the signature of Anna: rejected, {anna.date}\n"
    assert said in capsys.readouterr().out and run.read("review", "mansu").name == "Bob"


def test_nothing_is_signed_where_the_dossier_cannot_be_written(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    sign = ["--decision", "rejected", "--name", "Anna", "--to", "/proc/found.html"]
    assert cli.main(["dossier", "mine", *sign]) == 2
    assert "mansu: /proc/found.html was not written (" in capsys.readouterr().err
    assert not run.has("review", "mansu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give a run folder"),
        (["mine", "--method", "npo"], "npo"),
        (["mine", "--threshold", "nats"], "NAME=VALUE"),
        (["mine", "--threshold", "nats=-1"], "at least 0"),
        (["mine", "--threshold", "nonsense=1"], "no setting of the verdict"),
        (["mine", "--name", "Ada"], "belongs to a decision"),
        (["mine", "--decision", "rejected"], "needs a name"),
        (["mine", "--decision", "rejected", "--name", "A\u202ed\na"], "not printed"),
        (
            ["mine", "--decision", "rejected", "--name", "A", "--note", "gap=\udcff"],
            "part of no text",
        ),
        (["mine", "--against", "mine/manifest.json"], "no dossier"),
        (["mine", "--to", "mine/manifest.html"], "outside of it"),
        (["mine", "--to", "mine/edits/mansu/verdict"], "outside of it"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Run, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dossier", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not run.has("review", "mansu")


def test_a_run_is_packed_and_unpacked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bundle", "mine"]) == 0
    assert "mine.zip" in capsys.readouterr().out
    assert cli.main(["bundle", "mine.zip", "--to", "there"]) == 0
    assert Run.open(tmp_path / "there").edits() == ("mansu",)
    assert cli.main(["bundle", "nothing"]) == 2
    capsys.readouterr()
    assert cli.main(["bundle", "mine", "--to", "mine/inside.zip"]) == 2
    assert "outside of it" in capsys.readouterr().err and not (run.path / "inside.zip").exists()
    assert cli.main(["bundle", "mine.zip", "--method", "ga", "--to", "other"]) == 2
    assert "leave it out" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_the_folder_that_this_runs_in_is_packed_beside_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "edits").mkdir(exist_ok=True)
    for folder, what in ((run.path, "."), (run.path / "edits", "..")):
        monkeypatch.chdir(folder)
        assert cli.main(["bundle", what]) == 0
        (tmp_path / "mine.zip").unlink()


def test_a_dot_in_a_name_begins_no_suffix_and_nothing_is_written_over(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in ("0.06", "0.07"):
        shutil.copytree(run.path, tmp_path / f"rate-{rate}")
        assert cli.main(["bundle", f"rate-{rate}"]) == 0
        assert cli.main(["dossier", f"rate-{rate}", "--to", f"of-{rate}"]) == 0
        made = exports.unpack(tmp_path / f"rate-{rate}.zip", tmp_path / f"there-{rate}")
        assert made.edits() == ("mansu",)
        assert Dossier.load(tmp_path / f"of-{rate}.json").judged
        assert (tmp_path / f"of-{rate}.html").is_file()
    (tmp_path / "notes.html").write_text("mine")
    assert cli.main(["dossier", "mine", "--to", "notes.txt"]) == 0
    assert (tmp_path / "notes.html").read_text() == "mine"
    taken = ("bk.tar.zip", "bk.zip", "mine.zip")
    for name in taken:
        (tmp_path / name).write_text("mine")
    for to in ([], ["--to", "bk.tar"], ["--to", "bk.zip"]):
        capsys.readouterr()
        assert cli.main(["bundle", "mine", *to]) == 2
        assert "is there already: give another --to" in capsys.readouterr().err
    assert all((tmp_path / name).read_text() == "mine" for name in taken)
    with pytest.raises(BadInputError, match=r"must end in \.html"):
        dossier(run, "mansu").save(tmp_path / "rate-0.06")
