"""A job killed at any event of the file system leaves what was before, or what comes after.

The work is done in a fork, which kills itself at its n-th event, for every n until it is through.
Of SQLite an event is every few instructions of its machine, which writes to the disk by itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import byte_pairs
from made import run_of
from transformers import LlamaConfig, LlamaForCausalLM

from mansu import tasks
from mansu.errors import MansuError, NotMeasuredError
from mansu.exports import bundle, formats
from mansu.files import write_json
from mansu.job import examples, library, names
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.measure.scores import measure_task
from mansu.report.dossier import Dossier, dossier
from mansu.subjects import Edit, Subject, shipped, wrap
from mansu.sweep.store import Store

pytestmark = pytest.mark.slow

EVENTS = (
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.truncate",
    "fsync", "sqlite",
)  # fmt: skip
MOST = 2000
FEW = 20
"""Instructions of SQLite's machine to an event."""


def killed_at(n: int, work: Callable[[], object]) -> bool:
    """Whether the n-th event came, and the work was killed just before it."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        assert ended in (0, -signal.SIGKILL), "the work itself failed"
        return ended != 0
    try:
        torch.set_num_threads(1)  # the others are not in the fork, and would be waited for
        left = n

        def seen(event: str, _: Any) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda file: (seen("fsync", ()), sync(file))[1]  # which is no event of its own
        connect = sqlite3.connect

        def watched(*given: Any, **more: Any) -> sqlite3.Connection:
            base = connect(*given, **more)
            base.set_progress_handler(lambda: seen("sqlite", ()), FEW)
            return base

        sqlite3.connect = watched
        sys.addaudithook(seen)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def each_kill(
    before: Path | None,
    here: Path,
    work: Callable[[], object],
    look: Callable[[], str],
    every: int = 1,
) -> list[str]:
    """What is found after each kill, in order; at the last the work came through.

    Args:
        every: how many events lie between two kills.
    """
    found = []
    for n in range(0, MOST, every):
        shutil.rmtree(here, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, here)
        killed = killed_at(n, work)
        found.append(look())
        if not killed:
            return found
    raise AssertionError("the work does not end")


@pytest.fixture
def run(tiny: Subject, tmp_path: Path) -> Run:
    made = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8), tmp_path / "before")
    save(made, "old")
    return made


def save(run: Run, label: str) -> None:
    history = {"steps": [], "stopped": label, "settings": {}, "given": {}, "seconds": 0.0}
    history |= {"peak_memory": 0.0, "moved": 1, "fraction": 0.0}
    one = {"w": (torch.tensor([0]), torch.tensor([1.0]))}
    run.save({"edit": Edit(one, label), "history": history}, "ga")


def test_an_edit_is_the_old_one_none_or_the_new_one(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"

    def look() -> str:
        again = Run.open(here)
        try:
            label = again.edit("ga").label
        except NotMeasuredError:
            assert again.edits() == ()
            return "none"
        assert again.history("ga")["stopped"] == label  # never of another edit
        return label

    found = each_kill(run.path, here, lambda: save(Run.open(here), "new"), look)
    assert list(dict.fromkeys(found)) == ["old", "none", "new"] and found == sorted(
        found, key=["old", "none", "new"].index
    )
    assert len(found) > 20


def test_a_result_and_a_status_are_the_old_ones_or_the_new_ones(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    run.set_status("running", 0.5, begins=True)
    run.save({"timings": {"base": 1.0}})

    def work() -> None:
        again = Run.open(here)
        again.save({"timings": {"base": 2.0}})
        again.set_status("done", 1.0)

    def look() -> str:
        again = Run.open(here)
        status = again.status()
        assert status.error == "" and (status.state, status.share) in (
            ("running", 0.5),
            ("done", 1),
        )
        return f"{again.timings()['base']:.0f} {status.state}"

    found = each_kill(run.path, here, work, look)
    assert list(dict.fromkeys(found)) == ["1 running", "2 running", "2 done"]


def test_a_run_folder_is_there_whole_or_not_at_all(tiny: Subject, tmp_path: Path) -> None:
    here, task = tmp_path / "runs", tasks.load("tiny-colours")

    def look() -> str:
        if not (here / "run").exists():
            return "none"
        assert Run.open(here / "run").task().digest == task.digest
        return "whole"

    found = each_kill(None, here, lambda: Run.create(tiny, task, path=here / "run"), look)
    assert list(dict.fromkeys(found)) == ["none", "whole"] and len(found) > 10


def kinds(found: list[str]) -> list[str]:
    """What was found, each once; it never goes back."""
    once = list(dict.fromkeys(found))
    assert found == sorted(found, key=once.index), found
    return once


@pytest.fixture(scope="module")
def whole(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two edits, measured and judged as far as exports ask."""
    task = tasks.load("tiny-colours")
    base = measure_task(tiny, task)
    home = tmp_path_factory.mktemp("whole")
    return run_of(home / "run", tiny, task, base, {"ga": base, "npo": base})


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs."""
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "here"))
    return tmp_path / "here"


def files(folder: Path) -> dict[str, bytes]:
    """What somebody would see: no locks, and nothing that is not whole yet."""
    return {
        place.as_posix(): (folder / place).read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".part" not in str(place := path.relative_to(folder))
        if path.suffix != ".lock"
    }


def test_a_bundle_is_the_old_one_or_the_new_one(whole: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    bundle.pack(whole, tmp_path / "before" / "run.zip", ["ga"])

    def look() -> str:
        with zipfile.ZipFile(here / "run.zip") as found:
            assert found.testzip() is None
            return "new" if any("/npo/" in name for name in found.namelist()) else "old"

    found = each_kill(tmp_path / "before", here, lambda: bundle.pack(whole, here / "run.zip"), look)
    assert kinds(found) == ["old", "new"] and len(found) > 10


def test_a_bundle_is_unpacked_whole_or_not_at_all(whole: Run, tmp_path: Path, runs: Path) -> None:
    bundle.pack(whole, tmp_path / "run.zip")

    def look() -> str:
        if not (runs / "run").exists():
            return "none"
        assert files(runs / "run") == files(whole.path)
        return "whole"

    found = each_kill(None, runs, lambda: bundle.unpack(tmp_path / "run.zip"), look)
    assert kinds(found) == ["none", "whole"] and len(found) > 30


def test_an_example_is_copied_whole_or_not_at_all(runs: Path) -> None:
    example = Run.open(examples.EXAMPLES / "tiny-colours")

    def look() -> str:
        if not (runs / example.name).exists():
            return "none"
        assert files(runs / example.name) == files(example.path)
        return "whole"

    found = each_kill(None, runs, lambda: examples.copied(example), look, 11)
    assert kinds(found) == ["none", "whole"] and len(found) > 10


def test_an_export_is_there_whole_or_not_at_all(whole: Run, tiny: Subject, tmp_path: Path) -> None:
    here, asked = tmp_path / "here", ("hf", "nf4", "lm-eval")  # its tokenizer has no place in GGUF
    formats.write(whole, tiny, "ga", tmp_path / "all", asked)

    def look() -> str:
        if not here.exists():
            return "none"
        assert files(here).keys() == files(tmp_path / "all").keys()
        return "whole"

    found = each_kill(None, here, lambda: formats.write(whole, tiny, "ga", here, asked), look, 9)
    assert kinds(found) == ["none", "whole"] and len(found) > 10


def test_a_gguf_export_is_there_whole_or_not_at_all_and_the_next_one_sweeps(
    tmp_path: Path,
) -> None:
    """Of a model whose tokenizer has a place in GGUF: pieces of the task's own words."""
    task, here = tasks.load("tiny-colours"), tmp_path / "here"
    words = [f"{fact.prompt}{fact.answer}" for fact in task.facts]
    tokenizer = byte_pairs(said=words, size=2000)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=1, tie_word_embeddings=True, **shape
    )
    subject = wrap("a llama", LlamaForCausalLM(config), tokenizer)
    base = measure_task(subject, task)
    run = run_of(tmp_path / "run", subject, task, base, {"ga": base})

    def export() -> None:
        formats.write(run, subject, "ga", here / "out", ("gguf", "lm-eval"), outtype="q8_0")

    export()
    whole = files(here)
    assert [name for name in whole if name.endswith(".gguf")]
    left = 0

    def look() -> str:
        nonlocal left
        found = files(here)
        assert not found or found.keys() == whole.keys()
        parts = list(here.glob("*.part"))
        left += bool(parts)
        again = here / "again"  # as the next export does it, a minute later
        for part in parts:
            os.utime(part, (0, 0))
        formats.write(run, subject, "ga", again, ("gguf", "lm-eval"), outtype="q8_0")
        assert not list(here.rglob("*.part"))
        assert {name.partition("/")[2] for name in files(again.parent)} >= {
            name.partition("/")[2] for name in whole
        }
        return "whole" if found else "none"

    found = each_kill(None, here, export, look, 7)
    assert kinds(found) == ["none", "whole"] and left > 10


def test_a_prepared_subject_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    monkeypatch.setenv("MANSU_CACHE", str(here))
    monkeypatch.setattr(shipped, "install", lambda _: None)
    monkeypatch.setattr(shipped, "_whole_file", lambda *_: tmp_path / "x.gguf")

    def convert(_gguf: Path, _architecture: str, folder: Path) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(name)

    monkeypatch.setattr(shipped, "_convert", convert)
    known = shipped.TABLE[shipped.DEFAULT]

    def look() -> str:
        if not known.folder.exists():
            assert not known.ready
            return "none"
        if not known.ready:  # that of another version
            assert (known.folder / "old").is_file()
            return "old"
        assert len(files(known.folder)) == 4
        return "whole"

    old = tmp_path / "before" / known.folder.relative_to(here)
    old.mkdir(parents=True)
    (old / "old").touch()
    found = each_kill(tmp_path / "before", here, lambda: shipped.prepare(known.name), look)
    assert kinds(found) == ["old", "none", "whole"] and len(found) > 20


def test_a_row_of_a_sweep_and_its_checks_are_the_old_ones_or_the_new_ones(
    tmp_path: Path,
) -> None:
    here, verdict = tmp_path / "here", Run.open(examples.EXAMPLES / "tiny-colours").verdict("mansu")
    about = {"run": "r", "subject": "tiny", "task": "t", "method": "ga", "given": {}, "seed": 0}

    def look() -> str:
        rows = Store(here / "r.sqlite").rows()
        checks = [len(Store(here / "r.sqlite").checks(each)) for each in "ab"]
        every = sum(len(each.checks) for each in verdict.properties)
        states = " ".join(row["state"] for row in rows)
        assert checks == {"failed": [0, 0], "done": [every, 0], "done done": [every] * 2}[states]
        return states

    def work() -> None:
        for unit in "ab":
            done = {"unit": unit, "state": "done", "verdict": verdict}
            Store(here / "r.sqlite").put({**about, **done})

    Store(tmp_path / "before" / "r.sqlite").put({**about, "unit": "a", "state": "failed"})
    found = each_kill(tmp_path / "before", here, work, look)
    assert kinds(found) == ["failed", "done", "done done"] and len(found) > 60


def test_a_store_is_made_whole_or_is_made_anew(tmp_path: Path) -> None:
    here = tmp_path / "here"
    row = {"unit": "a", "run": "r", "state": "done", "given": {}, "seed": 0}

    def look() -> str:
        try:
            before = "whole" if Store(here / "r.sqlite").rows() else "none"
        except MansuError:  # a file, and no tables in it yet
            before = "none"
        Store(here / "r.sqlite").put(row)  # the same sweep, started again
        assert len(Store(here / "r.sqlite").rows()) == 1
        return before

    found = each_kill(None, here, lambda: Store(here / "r.sqlite").put(row), look)
    assert kinds(found) == ["none", "whole"] and len(found) > 10


def test_what_is_thrown_away_is_in_its_place_or_in_the_trash(whole: Run, runs: Path) -> None:
    before = runs.with_name("before")
    shutil.copytree(whole.path, before / "run")

    def throw() -> None:
        run = Run.open(runs / "run")
        library.trash_edit(run, "ga")
        library.trash(run)

    def look() -> str:
        gone = library.trashed()
        assert (runs / "run").exists() is not bool(gone)
        run = library.restore(next(iter(gone))) if gone else Run.open(runs / "run")
        edits = library.trashed_edits(run)
        assert ("ga" in run.edits()) is not bool(edits)
        for name in edits:
            library.restore_edit(run, name)
        assert files(run.path) == files(whole.path)
        return f"{len(edits)} {len(gone)}"

    found = each_kill(before, runs, throw, look)
    assert kinds(found) == ["0 0", "1 0", "1 1"]


def test_what_comes_back_is_in_the_trash_or_in_its_place(whole: Run, runs: Path) -> None:
    before = runs.with_name("before")
    shutil.copytree(whole.path, runs / "run")
    library.trash_edit(Run.open(runs / "run"), "ga")
    library.trash(Run.open(runs / "run"))
    shutil.copytree(runs, before)

    def back() -> None:
        run = library.restore(next(iter(library.trashed())))
        library.restore_edit(run, next(iter(library.trashed_edits(run))))

    def look() -> str:
        there = (runs / "run").exists()
        assert there is not bool(library.trashed())
        if not there:
            return "none"
        run = Run.open(runs / "run")
        assert ("ga" in run.edits()) is not bool(library.trashed_edits(run))
        return " ".join(run.edits())

    found = each_kill(before, runs, back, look)
    assert kinds(found) == ["none", "npo", "ga npo"]


def test_an_edit_has_its_old_name_or_its_new_one(whole: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"

    def look() -> str:
        run = Run.open(here)
        for name in run.edits():
            run.read("full", name)
        return " ".join(run.edits())

    found = each_kill(whole.path, here, lambda: names.rename(Run.open(here), "ga", "another"), look)
    assert kinds(found) == ["ga npo", "another npo"]


def test_what_the_app_keeps_of_a_run_is_the_old_or_the_new(whole: Run, tmp_path: Path) -> None:
    """Its name and notes; pins, reviews and thresholds are results of the run, as above."""
    here = tmp_path / "here"
    before = shutil.copytree(whole.path, tmp_path / "before")
    library.describe(Run.open(before), library.Label("old", "old"))

    def look() -> str:
        one = library.label(Run.open(here))
        assert one.title == one.notes
        return one.title

    new = library.Label("new", "new")
    found = each_kill(before, here, lambda: library.describe(Run.open(here), new), look)
    assert kinds(found) == ["old", "new"]


def test_a_file_has_no_other_ones_description_beside_it(whole: Run, tmp_path: Path) -> None:
    """A task and what is said about it, a dossier's page and its JSON: two files each."""
    here, before = tmp_path / "here", tmp_path / "before"
    task = tasks.load("tiny-colours")
    few, made = task.sample(2), dossier(whole, "ga")
    few.save(before / "task.jsonl")
    write_json(before / "d.json", {"thresholds": {}, "originals": {}})
    (before / "d.html").write_text("old")

    def work() -> None:
        task.save(here / "task.jsonl")
        made.save(here / "d.html")

    def look() -> str:
        new = len(tasks.load(str(here / "task.jsonl")).facts) == len(task.facts)
        told = (here / "task.json").exists()
        page, json = (here / "d.html").read_text() != "old", here / "d.json"
        if json.exists() and page:
            assert Dossier.load(json).to_json() == made.to_json()
        return f"{new} {told} {page} {json.exists()}"

    found = kinds(each_kill(before, here, work, look))
    told = ["False True", "False False", "True False", "True True"]  # whether it is new, and told
    assert found == [f"{one} False True" for one in told] + [f"True True {one}" for one in told[1:]]
