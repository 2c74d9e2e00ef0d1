"""A run as one file: it opens elsewhere, and nothing in it may lead out of its folder."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made import changed, run_of

from mansu.circuits.diff import Scores
from mansu.errors import BadInputError, DamagedError, MansuError
from mansu.exports.bundle import CONTENTS, pack, unpack
from mansu.files import write_json
from mansu.job.runs import Run
from mansu.measure.scores import measure_task
from mansu.report.dossier import dossier, remarks, review_of
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


@pytest.fixture(scope="module")
def run(tiny: Subject, tiny_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = measure_task(tiny, tiny_task)
    edited = changed(base, forget={"correct": 0.0})
    home = tmp_path_factory.mktemp("bundles")
    return run_of(home / "packed", tiny, tiny_task, base, {"mansu": edited, "ga": base})


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_run_opens_elsewhere_as_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "job.log").write_text(f"{run.path}: what a job printed")
    (run.path / "notes.py").write_text("print()")
    pack(run, tmp_path / "a.zip")
    pack(run, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "elsewhere"))
    made = unpack(tmp_path / "a.zip")
    assert made.path == tmp_path / "elsewhere" / "packed"  # links to it work there, too
    left = {"job.log", "notes.py"}
    assert files(made.path) == {n: d for n, d in files(run.path).items() if n not in left}
    assert dossier(made, "mansu").to_json() == dossier(run, "mansu").to_json()
    assert unpack(tmp_path / "a.zip").name == "packed-2"
    with pytest.raises(BadInputError, match="not an empty folder"):
        unpack(tmp_path / "a.zip", made.path)


def test_some_edits_can_be_left_out(run: Run, tmp_path: Path) -> None:
    pack(run, tmp_path / "one.zip", ["ga"])
    assert unpack(tmp_path / "one.zip", tmp_path / "one").edits() == ("ga",)
    with pytest.raises(MansuError, match="no edit by npo"):
        pack(run, tmp_path / "none.zip", ["npo"])
    assert not (tmp_path / "none.zip").exists()


def test_no_path_of_this_machine_is_in_it(tiny: Subject, tiny_task: Task, tmp_path: Path) -> None:
    secret = tmp_path / "home" / "somebody é" / "a model"
    base = measure_task(tiny, tiny_task)
    run = run_of(tmp_path / "private", tiny, tiny_task, base, {"mansu": base})
    manifest = {**run.manifest, "subject": str(secret)}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    run = Run.open(run.path)
    edit = run.edit("mansu")
    told = Edit(**{**edit.__dict__, "meta": {**edit.meta, "subject": str(secret)}})
    run.save({"edit": told, "full": base, "nf4": base}, "mansu")
    run.save({"edges": Scores(torch.arange(2), torch.ones(2, 3))}, "mansu")
    run.save({"review": review_of(dossier(run, "mansu"), "rejected", "Ada", {})}, "mansu")
    pack(run, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip") as bundle:
        for name in bundle.namelist():
            data = bundle.read(name)
            assert b"somebody" not in data and str(tmp_path).encode() not in data, name
    made = unpack(tmp_path / "p.zip", tmp_path / "made")
    assert made.subject == "a model" and made.edit("mansu").meta["subject"] == "a model"
    assert made.measurement("mansu", nf4=True).splits.keys() == base.splits.keys()  # still bound
    assert made.edge_scores("mansu").codes.tolist() == [0, 1]
    one, other = (dossier(each, "mansu") for each in (run, made))
    assert one.files["edits/mansu/full.json"] != other.files["edits/mansu/full.json"]
    assert remarks(one) == remarks(other) == []  # it is the evidence that was signed
    run.file("mask").write_bytes(b"junk")
    with pytest.raises(DamagedError, match="cannot be read"):
        pack(run, tmp_path / "damaged.zip")
    assert not (tmp_path / "damaged.zip").exists()


def test_no_path_is_in_it_where_the_run_has_a_relative_one(run: Run, tmp_path: Path) -> None:
    """A run of before, whose edit was made by a later version, which knows the whole path."""
    old = Run.open(shutil.copytree(run.path, tmp_path / "old"))
    write_json(old.manifest_file, {**old.manifest, "subject": "models/mine"})
    old, base = Run.open(old.path), run.base(nf4=False)
    edit = run.edit("mansu")
    told = Edit(edit.changes, edit.label, {**edit.meta, "subject": str(tmp_path / "models/mine")})
    old.save({"edit": told, "full": base, "nf4": base}, "mansu")
    pack(old, tmp_path / "old.zip")
    with zipfile.ZipFile(tmp_path / "old.zip") as bundle:
        assert not any(str(tmp_path).encode() in bundle.read(name) for name in bundle.namelist())
    made = unpack(tmp_path / "old.zip", tmp_path / "made")
    assert made.edit("mansu").meta["subject"] == "mine" and made.edits() == run.edits()
    assert made.measurement("mansu", nf4=True).splits.keys() == base.splits.keys()  # still bound


def test_of_data_that_was_read_the_name_alone_travels(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "scored")
    told = {**run.manifest["task"], "provenance": "/home/somebody/é/rows.jsonl:all:test"}
    manifest = json.dumps({**run.manifest, "task": told}, ensure_ascii=False, indent=1)
    (tmp_path / "scored" / "manifest.json").write_text(manifest)
    made = Run.open(tmp_path / "scored")
    folder = tmp_path / "somebody" / "copy"
    folder.mkdir(parents=True)
    sources = {
        "/home/somebody/é/A/test.jsonl": "test.jsonl",
        "../somebody/B/test.jsonl": "test.jsonl",
        "somebody/test.csv": "test.csv",
        f"{folder}:wmdp-bio:test": "copy:wmdp-bio:test",
        "cais/wmdp:wmdp-bio": "cais/wmdp:wmdp-bio",
        "mine.jsonl": "mine.jsonl",
    }
    made.save({"scores": {"sources": list(sources), "models": {}}}, part="mmlu-tiny")
    made.save({"edit_scores": {"sources": list(sources), "models": {}}}, "mansu", "mmlu")
    pack(made, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip") as bundle:
        assert not any(b"somebody" in bundle.read(name) for name in bundle.namelist())
    there = unpack(tmp_path / "p.zip", tmp_path / "there")
    assert there.read("scores", part="mmlu-tiny")["sources"] == list(sources.values())
    assert there.read("edit_scores", "mansu", "mmlu")["sources"] == list(sources.values())
    assert there.about["provenance"] == "rows.jsonl:all:test"
    assert made.read("scores", part="mmlu-tiny")["sources"] == list(sources)  # here they stay


@pytest.mark.parametrize(
    ("name", "called"),
    [("my run (1)", "my-run-1"), ("ärger", "rger"), ("日本", "x"), (".", "here")],
)
def test_whatever_a_run_is_called_its_bundle_opens(
    run: Run, name: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("here" if name == "." else name)
    shutil.copytree(run.path, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "elsewhere"))
    pack(Run.open("." if name == "." else place), tmp_path / "b.zip")
    assert unpack(tmp_path / "b.zip").path == tmp_path / "elsewhere" / called


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, bytes]], None], mode: int = 0o644
) -> None:
    """A bundle with other contents, its own sums put right."""
    with zipfile.ZipFile(source) as bundle:
        contents = {name: bundle.read(name) for name in bundle.namelist()}
    change(contents)
    about = json.loads(contents.pop(CONTENTS))
    about["files"] = {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()}
    with zipfile.ZipFile(target, "w") as bundle:
        bundle.writestr(CONTENTS, json.dumps(about))
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o644 if name == "manifest.json" else mode) << 16
            bundle.writestr(entry, data)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/evil.json",
        "edits/../../evil.json",
        "edits/../manifest.json",
        "edits//mansu/edit.safetensors",
        "edits/mansu/../../../full.json",
        "edits/.hidden/full.json",
        "C:\\evil.json",
        "evil.py",
        "edits/mansu/evil.pkl",
        "exports/hf/model.py",
        "edits/mansu/sub/full.json",
    ],
)
def test_what_leads_out_or_is_no_file_of_a_run_is_refused(
    run: Run, tmp_path: Path, name: str
) -> None:
    pack(run, tmp_path / "good.zip")
    rewritten(tmp_path / "good.zip", tmp_path / "bad.zip", lambda c: c.update({name: b"{}"}))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BadInputError, match="no file of a run"):
        unpack(tmp_path / "bad.zip", tmp_path / "in" / "run")
    assert set(tmp_path.rglob("*")) == before and not (tmp_path.parent / "evil.json").exists()


def test_links_changed_bytes_and_other_files_are_refused(run: Run, tmp_path: Path) -> None:
    good, bad, to = tmp_path / "good.zip", tmp_path / "bad.zip", tmp_path / "to"
    pack(run, good)
    rewritten(good, bad, lambda c: None, mode=stat.S_IFLNK | 0o777)
    with pytest.raises(BadInputError, match="no file of a run"):
        unpack(bad, to)
    rewritten(good, bad, lambda c: c.update({"task.jsonl": b"{}"}))
    with pytest.raises(MansuError):
        unpack(bad, to)
    with zipfile.ZipFile(good) as bundle:
        contents = {name: bundle.read(name) for name in bundle.namelist()}
    with zipfile.ZipFile(bad, "w") as bundle:  # the sums are left as they were
        for name, data in contents.items():
            bundle.writestr(
                name, data.replace(b"forget", b"forgot") if name[:4] == "task" else data
            )
    with pytest.raises(DamagedError, match="not what was packed"):
        unpack(bad, to)
    for data in (b"", b"PK", b"not a zip", good.read_bytes()[:2000]):
        bad.write_bytes(data)
        with pytest.raises(BadInputError, match="no bundle"):
            unpack(bad, to)
    assert not to.exists() and not list(tmp_path.glob("*.part"))


def test_any_damage_to_a_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    pack(run, tmp_path / "good.zip")
    good, rng = (tmp_path / "good.zip").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):  # some of it breaks zlib's own stream
        bad = bytearray(good)
        for _ in range(3):
            bad[rng.randrange(len(bad))] ^= rng.randrange(1, 256)
        (tmp_path / "bad.zip").write_bytes(bad)
        try:
            unpack(tmp_path / "bad.zip", tmp_path / "to")
        except MansuError:
            refused += 1
            assert not (tmp_path / "to").exists()
        else:  # dates and the like
            shutil.rmtree(tmp_path / "to")
    assert refused > 100


def test_any_bit_of_a_bundles_end_that_is_flipped_is_damage(
    tiny: Subject, tiny_task: Task, tmp_path: Path
) -> None:
    """There ``zipfile`` reads where its parts begin, before the file's begin if a bit is wrong."""
    run = Run.create(tiny, tiny_task, path=tmp_path / "new")
    pack(run, tmp_path / "good.zip")
    good, refused = (tmp_path / "good.zip").read_bytes(), 0
    for bit in range(8 * (len(good) - 64), 8 * len(good)):
        bad, to = bytearray(good), tmp_path / "to"
        bad[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bad.zip").write_bytes(bad)
        for source in (tmp_path / "bad.zip", io.BytesIO(bytes(bad))):
            try:
                unpack(source, to)
            except MansuError:
                refused += 1
                assert not to.exists()
            else:  # dates and the like
                assert files(to) == files(run.path)
                shutil.rmtree(to)
    assert refused > 500


def test_an_error_of_the_disk_is_no_damage_to_a_bundle(run: Run, tmp_path: Path) -> None:
    pack(run, tmp_path / "good.zip")

    class Broken(io.BytesIO):
        def read(self, *size: int | None) -> bytes:
            if self.tell() < 1000:  # what is at the end it reads
                raise OSError(errno.EIO, "Input/output error")
            return super().read(*size)

    with pytest.raises(OSError, match="Input/output"):
        unpack(Broken((tmp_path / "good.zip").read_bytes()), tmp_path / "to")


def test_a_result_inside_that_is_damaged_or_of_another_edit_is_refused(
    run: Run, tmp_path: Path
) -> None:
    pack(run, tmp_path / "whole.zip")

    def spoil(contents: dict[str, bytes]) -> None:
        contents["base.json"] = b'{"splits": 3}'

    def swap(contents: dict[str, bytes]) -> None:
        contents["edits/ga/full.json"] = contents["edits/mansu/full.json"]

    for change, said in ((spoil, "holds a damaged run: base.json is"), (swap, "another edit")):
        rewritten(tmp_path / "whole.zip", tmp_path / "spoilt.zip", change)
        with pytest.raises(DamagedError, match=said) as error:
            unpack(tmp_path / "spoilt.zip", tmp_path / "made")
        assert ".part" not in str(error.value) and not (tmp_path / "made").exists()


def test_what_a_bundle_says_of_itself_is_of_this_version_and_not_endless(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(run, tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "later.zip", "w") as bundle:
        bundle.writestr(CONTENTS, json.dumps({"version": 2, "run": "a", "files": {}}))
    with pytest.raises(BadInputError, match="of version 2"):
        unpack(tmp_path / "later.zip", tmp_path / "to")
    monkeypatch.setattr("mansu.exports.bundle._LONGEST", 100)
    with pytest.raises(BadInputError, match="that is whole"):
        unpack(tmp_path / "good.zip", tmp_path / "to")


def test_no_bundle_is_made_that_does_not_open(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.move(copy.path / "task.jsonl", tmp_path / "task.jsonl")
    (copy.path / "task.jsonl").symlink_to(tmp_path / "task.jsonl")
    with pytest.raises(DamagedError, match=r"has no task\.jsonl, or a link in its place"):
        pack(copy, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_run_with_one_bit_changed_is_not_packed(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    path = copy.file("edit", "mansu")
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # the first byte after the header
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"nothing was written: .* another edit"):
        pack(copy, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    pack(copy, tmp_path / "x.zip", ["ga"])  # what is left out may be what it is
    assert unpack(tmp_path / "x.zip", tmp_path / "x").edits() == ("ga",)
