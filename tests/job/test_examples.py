"""The examples that ship: whole, as their command says, and not to be worked on."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from mansu import cli, methods, tasks
from mansu.errors import MansuError
from mansu.evidence.verdict import worst_of
from mansu.job import examples, library, runs
from mansu.job.artefacts import ARTEFACTS
from mansu.job.judging import judged
from mansu.job.runs import Run
from mansu.subjects.subject import Subject
from scripts import examples as script

SHIPPED = runs.examples()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    return tmp_path


def test_one_ships() -> None:
    assert "tiny-colours" in {run.name for run in SHIPPED}


@pytest.mark.parametrize("run", SHIPPED, ids=lambda run: run.name)
def test_an_example_is_finished_small_and_of_a_shipped_task(run: Run) -> None:
    assert run.judged() == run.edits() and set(run.asked) == set(run.edits())
    assert len(run.edits()) >= 2
    for kind, about in ARTEFACTS.items():
        for method in run.edits() if about.of_edit else [None]:
            if run.has(kind, method):
                run.read(kind, method)  # nothing is damaged, nothing of another edit
    for method in run.edits():
        assert run.has("attacks", method) and run.has("strengths", method)
        assert run.measurement(method, nf4=True).splits["forget"].chosen
    assert run.task().digest == tasks.load(run.about["name"]).digest
    assert sum(f.stat().st_size for f in run.path.rglob("*")) < 12 << 20
    assert not list(run.path.glob("*suppressor*")) and not (run.path / "events.jsonl").exists()


@pytest.mark.parametrize("run", SHIPPED, ids=lambda run: run.name)
def test_its_saved_verdict_is_what_the_pages_judge(run: Run) -> None:
    """In every word, too: the command line tells the saved one, the pages judge anew."""
    for method in run.edits():
        again = judged(run, method)
        assert run.verdict(method).to_json() == again.to_json()
        assert "no control" not in again.erasure.evidence


@pytest.mark.parametrize("run", SHIPPED, ids=lambda run: run.name)
def test_mansu_moves_only_what_it_is_said_that_it_may(run: Run) -> None:
    """In a larger model most of that lies beside the mask, so that no sentence may say the mask."""
    mask, beside = run.mask(), False
    for name, (where, _) in run.edit("mansu").changes.items():
        assert mask.movable.dense(name).view(-1)[where].all()
        beside |= name not in mask.names or not bool(mask.dense(name).view(-1)[where].all())
    assert beside == (mask.candidates is not None)


@pytest.mark.parametrize("run", SHIPPED, ids=lambda run: run.name)
def test_its_command_says_how_it_was_made(run: Run) -> None:
    words = shlex.split(run.manifest["example"])
    assert words[:3] == list(script.COMMAND)
    options = script.parsed(words[3:])
    assert script.command(options) == run.manifest["example"]
    assert (options.subject, tuple(options.method)) == (run.subject, run.asked)
    assert tasks.load(options.task).digest == run.about["digest"]
    for name in run.asked:
        own = [s.removeprefix(f"{name}.") for s in options.set if s.startswith(f"{name}.")]
        given = methods.parse_settings(methods.named(name), own)
        assert given == run.history(name)["given"]


def test_the_tiny_one_is_of_the_subject_that_ships(tiny: Subject) -> None:
    (run,) = [run for run in SHIPPED if run.subject == tiny.name]
    run.check(tiny)
    for method in run.edits():
        run.edit(method).check(tiny)


def test_examples_are_listed_until_there_is_a_run(home: Path) -> None:
    assert [r.name for r in runs.listed()] == [r.name for r in SHIPPED]
    copy = examples.copied(SHIPPED[0])
    assert [r.path for r in runs.listed()] == [copy.path]
    assert copy.path.parent == home and not copy.is_example
    assert copy.judged() == SHIPPED[0].judged()
    copy.set_status("done", 1.0)  # it can be worked on
    with pytest.raises(MansuError, match="already"):
        examples.copied(SHIPPED[0])


def test_an_example_is_not_worked_on() -> None:
    run = SHIPPED[0]
    before = sorted((f, f.stat().st_mtime_ns) for f in run.path.rglob("*"))
    for work in (
        lambda: run.set_status("running"),
        lambda: run.discard("mansu"),
        lambda: run.save({"timings": {}}),
        run.new_log,
        lambda: library.describe(run, library.Label("mine")),
    ):
        with pytest.raises(MansuError, match="copy it first"):
            work()
    assert sorted((f, f.stat().st_mtime_ns) for f in run.path.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--folder", "RUN"],
        ["unlearn", "RUN", "--again"],
        ["attack", "RUN"],
        ["export", "RUN", "--to", "model"],
        ["score", "rows.jsonl", "--set", "mmlu", "--run", "RUN"],
        ["dossier", "RUN", "--to", "RUN/dossier.html"],
        ["bundle", "RUN", "--to", "RUN/bundle.zip"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_leaves_a_file_in_an_example(
    command: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "shipped").mkdir()
    run = Run.open(shutil.copytree(SHIPPED[0].path, home / "shipped" / SHIPPED[0].name))
    (run.path / "job.lock").unlink(missing_ok=True)
    monkeypatch.setattr(runs, "EXAMPLES", home / "shipped")
    before = sorted(f for f in run.path.rglob("*"))
    assert cli.main([word.replace("RUN", str(run.path)) for word in command]) == 2
    assert sorted(f for f in run.path.rglob("*")) == before


def test_what_is_not_finished_or_too_large_is_not_shipped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = examples.copied(SHIPPED[0])
    monkeypatch.setattr(examples, "LARGEST", 1000)
    with pytest.raises(MansuError, match="mansu_no_floor"):
        examples.save(copy, "large", "", tmp_path / "shipped")
    monkeypatch.undo()
    copy.file("verdict", "mansu").unlink()
    with pytest.raises(MansuError, match="no verdict on mansu"):
        examples.save(copy, "unfinished", "", tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_the_evidence_of_retention_names_the_check_that_decides() -> None:
    """A check of few rows may have the smaller margin and be undecided where another fails."""
    found = judged(Run.open(runs.EXAMPLES / "chemical-symbols"), "mansu", {"nats": 0.05}).retention
    decides = worst_of(found.checks)
    assert decides is not None and decides.status == found.status == "failed"
    assert str(decides) in found.evidence
    least = min((c for c in found.checks if c.unit == "nats"), key=lambda c: c.margin)
    assert least.status == "undecided"
