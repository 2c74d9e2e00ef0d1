"""Files are whole, and hold only what JSON has."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import limited
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mansu import subjects
from mansu.errors import BadInputError, DamagedError, NotMeasuredError, StorageError, TakenError
from mansu.files import (
    answered,
    confined,
    discard,
    inside,
    load_values,
    measured_on,
    new_folder,
    read_json,
    refuse_unwritable,
    replacing,
    replacing_both,
    save_values,
    slug,
    sweep,
    write_json,
)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"splits": {"forget": {"margin": [0.5, float("nan")]}}}, r"splits\.forget\.margin\[1\]"),
        ({"a": 1, "b": float("-inf")}, "b"),
        (float("nan"), "the number"),
    ],
)
def test_no_file_holds_a_number_that_is_none(value: Any, field: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_json(path, {"before": 1.5})
    with pytest.raises(
        BadInputError, match=f"found.json was not written: {field} in it is not finite"
    ):
        write_json(path, value)
    assert read_json(path) == {"before": 1.5} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": 1',
        b"\xff\xfe",
        b"9" * 5000,
        b"[" * 100_000,
        b"NaN",
        b"[1e999]",
        None,
    ],
)
def test_json_that_cannot_be_read_is_damaged(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"found\.json .*: make it again\.$"):
        read_json(path)


def test_json_with_a_key_twice_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [{"b": 1, "c": 2, "b": 3}]}')
    with pytest.raises(DamagedError, match=r"the key 'b' is there twice"):
        read_json(tmp_path / "x.json")


def test_json_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_bytes('"ü 😀"'.encode())
    assert read_json(tmp_path / "found.json") == "ü 😀"
    (tmp_path / "found.json").write_text('"ü"', encoding="utf-8-sig")  # as some editors do
    assert read_json(tmp_path / "found.json") == "ü"


def test_what_is_not_there_was_not_made_yet(tmp_path: Path) -> None:
    for read in (read_json, load_values):
        with pytest.raises(NotMeasuredError, match="There is no found"):
            read(tmp_path / "found")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_neither_written_nor_read(
    number: float, tmp_path: Path
) -> None:
    path, spoilt = tmp_path / "values.safetensors", {"scores": torch.tensor([1.0, number])}
    with pytest.raises(BadInputError, match="the tensor scores in it is not finite"):
        save_values(path, spoilt, {})
    with pytest.raises(BadInputError, match=r"values\.safetensors was not written: clean in it"):
        save_values(path, {}, {"clean": number})
    assert not path.exists()
    save_file(spoilt, path, {"mansu": "{}"})
    with pytest.raises(DamagedError, match="the tensor scores is not finite"):
        load_values(path)


@pytest.mark.parametrize("header", [None, "[]", "{", "9" * 5000, "[" * 100_000])
def test_tensors_with_another_header_are_damaged(header: str | None, tmp_path: Path) -> None:
    path = tmp_path / "values.safetensors"
    save_file({"a": torch.ones(1)}, path, None if header is None else {"mansu": header})
    with pytest.raises(DamagedError, match=r"values\.safetensors is damaged"):
        load_values(path)
    save_values(path, {"a": torch.ones(2).bool()}, {"b": 1})
    tensors, meta = load_values(path)
    assert tensors["a"].all() and json.dumps(meta) == '{"b": 1}'


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(BadInputError, match="is not an empty folder"), new_folder(path):
            pass


def test_a_link_to_an_empty_folder_stays_and_the_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "link") as new:
        (new / "mine").write_text("1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "mine").read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


def test_the_working_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), tmp_path):
        with pytest.raises(TakenError, match="the folder that this runs in"), new_folder(path):
            raise AssertionError("work was begun")


def test_a_folder_that_appears_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(BadInputError, match="is not an empty folder"), new_folder(path) as new:
        (new / "mine").write_text("1")
        path.mkdir()
        (path / "theirs").write_text("precious")
    assert [p.name for p in path.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_get_the_umask_s_mode(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        save_values(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
        with new_folder(tmp_path / "new") as new:
            save_file({"a": torch.ones(1)}, new / "b.safetensors")
    finally:
        os.umask(before)
    for name in ("a.json", "a.safetensors", "new/b.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask, name


def test_what_a_killed_process_left_is_swept_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom mansu.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half')\n    print(flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "deep" / "a.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout and job.stdout.readline() == "\n"
        (left,) = (tmp_path / "deep").iterdir()
        os.utime(left, (0, 0))
        sweep(tmp_path)
        assert left.exists()
        job.kill()
        job.wait()
    sweep(tmp_path)
    assert not left.exists()
    young = tmp_path / ".mansu-abcdefgh.part"
    young.mkdir()
    sweep(tmp_path)
    assert young.exists()  # its maker may be about to lock it
    os.utime(young, (time.time() - 3600, time.time() - 3600))
    write_json(tmp_path / "b.json", 1)  # whoever writes beside it sweeps, too
    assert not young.exists()


@pytest.mark.parametrize(
    "name", ["thesis.part", "tmpabcdefgh.part", ".mansu-mine.part", ".mansu-abcdefgh.partial"]
)
def test_a_folder_of_somebody_s_own_is_never_swept(name: str, tmp_path: Path) -> None:
    own = tmp_path / name / "chapter"
    own.mkdir(parents=True)
    os.utime(own.parent, (0, 0))
    sweep(tmp_path)
    write_json(tmp_path / "a.json", 1)
    refuse_unwritable(tmp_path / "b.json")
    with new_folder(tmp_path / "new"):
        pass
    discard(tmp_path / "new")
    assert own.exists()


@pytest.mark.parametrize("kind", ["json", "safetensors", "folder", "tokenizer"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(40_000)}
    write_json(tmp_path / "a.json", "kept")
    save_values(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    refused = pytest.raises(StorageError, match=r"was not written \(.*large.*\): make room")
    with limited(50_000), refused as told:
        if kind == "json":
            write_json(tmp_path / "a.json", "x" * 100_000)
        elif kind == "safetensors":
            save_values(tmp_path / "a.safetensors", tensors, {})
        else:
            with new_folder(tmp_path / "new") as new:
                if kind == "tokenizer":  # of Rust, whose errors are of a class of their own
                    words = {f"word{i}": i for i in range(5_000)}
                    Tokenizer(WordLevel(words, unk_token="word0")).save(str(new / "a.json"))
                save_values(new / "a.safetensors", tensors, {})
    assert "\n" not in str(told.value)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("large", [0, 1])
def test_of_two_files_that_belong_together_both_are_written_or_neither(
    large: int, tmp_path: Path
) -> None:
    path, about = tmp_path / "a.html", tmp_path / "a.json"
    path.write_text("old")
    about.write_text("of the old")
    before = {p: p.read_bytes() for p in (path, about)}
    with limited(50_000), pytest.raises(StorageError), replacing_both(path, about) as both:
        for each in both:
            each.write_text("x" * (100_000 if each == both[large] else 10))
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    about.unlink()
    about.mkdir()
    with pytest.raises(StorageError, match=r"a\.json was not written"), replacing_both(path, about):
        raise AssertionError("work was begun")
    about.rmdir()
    with replacing_both(path, about) as both:
        for each in both:
            each.write_text("new")
    assert sorted(tmp_path.iterdir()) == [path, about]
    assert path.read_text() == about.read_text() == "new"


@pytest.mark.parametrize("busy", ["a.html", "a.json"])
def test_of_two_files_one_of_which_cannot_be_replaced_both_stay(
    busy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, about = tmp_path / "a.html", tmp_path / "a.json"
    path.write_text("old")
    about.write_text("of the old")
    before = {p: p.read_bytes() for p in (path, about)}
    monkeypatch.setattr(Path, "replace", _unless_mounted(tmp_path / busy))
    with pytest.raises(StorageError, match="is kept"), replacing_both(path, about) as both:
        for each in both:
            each.write_text("new")
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_mounted_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same disk (a bind mount) looks like any other until something takes its place."""
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(Path, "replace", _unless_mounted(tmp_path / "mounted"))
    with pytest.raises(TakenError, match="the root of a disk"), new_folder(tmp_path / "mounted"):
        pass


def _unless_mounted(place: Path) -> Callable[[Path, Path], Path]:
    """``Path.replace`` where something is mounted at the place."""
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if place in (self, target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(self, target)

    return replaced


PLACES = "x" * 300, "file/inside", "null\0byte", "/proc/found", "/proc/new/found"


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_cannot_be_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    with pytest.raises(StorageError, match="was not written"):
        write_json(tmp_path / name, 1)
    with pytest.raises(StorageError, match="was not written"), new_folder(tmp_path / name):
        pass
    with pytest.raises(StorageError, match="was not written") as told:
        refuse_unwritable(tmp_path / name)
    assert str(told.value).startswith(f"{tmp_path / name} was not written (")


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    refuse_unwritable(tmp_path / "a.json")
    refuse_unwritable(tmp_path / "new" / "b.json")
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a.json", "new"]
    assert (tmp_path / "a.json").read_text() == "1"
    with pytest.raises(StorageError, match="a folder stands where the file should be"):
        refuse_unwritable(tmp_path / "new")


def test_a_fault_of_the_work_inside_is_not_called_the_disk_s(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.json"):
        (tmp_path / "nowhere").read_text()
    with pytest.raises(ValueError, match="mine"), new_folder(tmp_path / "new"):
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny-colours", "tiny-colours"),
        ("../../../x", "x"),
        ("/etc/passwd", "etc-passwd"),
        ("..", "x"),
        ("", "x"),
        (".hidden", "hidden"),
        ("a b\0c\nd", "a-b-c-d"),
        ("x" * 300, "x" * 80),
        ("größe 😀", "gr-e"),
    ],
)
def test_a_name_is_a_part_of_a_path_and_no_path(name: str, expected: str) -> None:
    assert slug(name) == expected == slug(expected)


def test_what_leads_out_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    (tmp_path / "secret").write_text("1")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "own").write_text("1")
    (inside / "short").symlink_to(inside / "own")
    for path in (inside / "link", inside / ".." / "secret", tmp_path):
        with pytest.raises(BadInputError, match="leads out of"):
            confined(path, inside)
    for path in (inside / "short", inside / "own", inside / "not-there-yet"):
        assert confined(path, inside) == path


def test_a_lock_on_an_unfinished_folder_ends_with_it(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as new:
        held = os.open(new.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(held)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_the_same_values_are_the_same_bytes(tmp_path: Path) -> None:
    of = {"digest of the run": "a", "digest of the edit": "b"}
    contents = set()
    for i in range(20):  # safetensors has texts of its header in an order of chance
        save_values(tmp_path / f"{i}", {"a": torch.ones(2), "b": torch.ones(1)}, {"c": 1}, of)
        contents.add((tmp_path / f"{i}").read_bytes())
    assert len(contents) == 1 and measured_on(tmp_path / "0") == of
    assert load_values(tmp_path / "0")[1] == {"c": 1}


def test_a_list_of_numbers_is_one_line(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": ["x, [\n 1]"], "c": [[1, 2], [3]], "d": []}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert '"a": [1, 2.5, null]' in text and "[1, 2],\n" in text


def test_a_folder_that_goes_while_it_is_looked_through_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b.part", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").touch()
    look = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("b.part") and os.path.exists(path):
            shutil.rmtree(path)  # a job has ended with it
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(FileNotFoundError):
        list(tmp_path.rglob("*"))
    (tmp_path / "b.part").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in inside(tmp_path)]
    assert found == ["a", "a/x.json", "b.part", "c", "c/x.json"]


def test_a_name_longer_than_any_is_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert answered((tmp_path / "x").is_dir)
    assert not answered((tmp_path / ("x" * 5000)).is_dir)
    with pytest.raises(BadInputError, match="no local folder"):
        subjects.load("x" * 5000)
