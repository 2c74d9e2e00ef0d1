"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mansu.errors import BadInputError, DamagedError, NotMeasuredError, StorageError, TakenError

T = TypeVar("T")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around all that is made of a file: whatever is wrong with it is one sentence.

    ::

        with reading(path):
            return Scores.from_json(read_json(path))

    Raises:
        NotMeasuredError: there is no such file.
        DamagedError: it cannot be read, or something in it is missing or of another type.
    """
    try:
        yield
    except NotMeasuredError:
        raise
    except FileNotFoundError as error:
        raise NotMeasuredError(
            f"There is no {path.name} in {path.parent}: run the step that makes it."
        ) from error
    except OSError as error:
        raise DamagedError(
            f"{path} cannot be read ({error.strerror or error}): make it again."
        ) from error
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        if isinstance(error, DamagedError) and str(path) in str(error):
            raise  # it names the file already
        what = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, RecursionError):
            what = "it is nested too deeply"
        elif isinstance(error, KeyError) or not what:
            what = f"{type(error).__name__} {what}".strip()
        raise DamagedError(
            f"{path} is damaged or was not written by MANSU ({what:.200}): make it again."
        ) from error


@lru_cache(maxsize=256)
def _schema(cls: Any) -> TypeAdapter[Any]:
    """What pydantic checks a dataclass by: no value is turned into one of another type."""
    strict = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,  # tensors and arrays: that they are some
        revalidate_instances="always",
    )
    listed: Any = tuple[cls]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(listed, config=strict)  # a dataclass itself takes no other config


def typed(value: T) -> T:
    """A dataclass that was made of a file, each field of which must be what its hint says.

    Raises:
        ValueError: one is not; it is named.
    """
    _check(lambda schema: schema.validate_python((value,)), type(value))
    return value


def made_of(cls: type[T], value: Any) -> T:
    """A dataclass of JSON values: objects for dataclasses, lists for tuples; more is passed over.

    Raises:
        ValueError: a field is missing or not what its hint says; it is named.
    """
    text = json.dumps([value], allow_nan=False)
    return _check(lambda schema: schema.validate_json(text), cls)[0]


def _check(validate: Callable[[TypeAdapter[Any]], Any], cls: Any) -> Any:
    try:
        return validate(_schema(cls))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"][1:])) or "the value"
        raise ValueError(f"{place} is {first['input']!r:.60}: {first['msg']}") from error


NAME = "mansu"  # of the header's text
OF = "of"
SUM = "digest of the rest"
"""Stands in a JSON object, or in its ``OF``: what was changed since is no measurement. A file of an
older MANSU has none."""


def _sum(value: Any, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of JSON values, as they are read, and of tensors."""
    found = hashlib.sha256(json.dumps(value).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sums(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Take the digest out of what was read, if it has one, and make that of the rest."""
    places = [place for place in (value, value.get(OF)) if isinstance(place, dict)]
    found = next((place.pop(SUM) for place in places if SUM in place), None)
    return None if found is None else (found, _sum(value, tensors))


def summed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of the rest, to be written."""
    rest = json.loads(json.dumps(value))  # as it is read: a tuple is a list, every key a text
    return {**rest, SUM: _sum(rest, {})}


def refuse_changed(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a JSON object, and tensors beside it, that are not what was written.

    The digest is taken out.

    Raises:
        ValueError: the digest is of something else.
    """
    sums = _sums(value, tensors)
    if sums is not None and sums[0] != sums[1]:
        raise ValueError("something in it was changed since: its digest is of something else")


def resummed(text: str, tensors: Mapping[str, Tensor]) -> str:
    """JSON of ours in which something was changed on purpose, with the digest of that."""
    sums = _sums(parsed_json(text), tensors)
    return text if sums is None else text.replace(*sums)


def save_values(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    of: Mapping[str, str] | None = None,
    *,
    name: str = NAME,
) -> None:
    """Write tensors and JSON values as one safetensors file, whole or not at all.

    Args:
        of: what was measured, for ``measured_on`` to find.
        name: of the header's only text: safetensors writes several in an order of chance, and the
            same values have to give the same bytes. What ``load_values`` reads, it holds to their
            digest.

    Raises:
        BadInputError: a number, in a tensor or a value, is NaN or infinite; it is named.
        StorageError: it cannot be written.
    """
    for each, tensor in tensors.items():
        if not _is_finite(tensor):
            raise _refused(path, f"the tensor {each}")
    contiguous = {each: tensor.contiguous() for each, tensor in tensors.items()}
    text = _json_of(path, {**meta, **({OF: dict(of or {})} if of or name == NAME else {})})
    if name == NAME:
        about = parsed_json(text)
        about[OF][SUM] = _sum(about, contiguous)
        text = _json_of(path, about)
    header = {name: text}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=header)


def measured_on(path: Path) -> dict[str, str]:
    """What a safetensors file of ours was measured on, as it was given to ``save_values``.

    Raises:
        NotMeasuredError: there is no such file. DamagedError: it is none of ours.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        (text,) = (file.metadata() or {}).values()
        found = made_of(dict[str, str], parsed_json(text).get(OF, {}))
    return {what: digest for what, digest in found.items() if what != SUM}


def load_values(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_values`` wrote.

    Raises:
        NotMeasuredError: there is no such file.
        DamagedError: it is not one of ours, was changed since, or holds a number that is NaN or
            infinite.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        meta = parsed_json(file.metadata()["mansu"])
        if not isinstance(meta, dict):
            raise TypeError("its header is no object")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        refuse_changed(meta, tensors)
        meta.pop(OF, None)
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                raise ValueError(f"the tensor {name} is not finite")
        return tensors, meta


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


BEGIN, END = ".mansu-", ".part"
"""Of the name of a folder for what is not whole yet; ``mkdtemp`` puts 8 characters between."""
_PART = re.compile(rf"{re.escape(BEGIN)}[a-z0-9_]{{8}}{re.escape(END)}")
"""A folder of any other name is somebody's own, and never deleted."""
STALE = 60
"""Seconds after which such a folder that nobody holds is of a process that was killed."""
NO = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EIO,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
}
"""What a machine says where a path cannot be written, and not a program's fault."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _no(path: Path, why: str) -> StorageError:
    return StorageError(
        f"{path} was not written ({why:.200}): make room, or give a place that can be written. "
        "What was there before is kept."
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a path: where the machine says no, that is one sentence.

    Raises:
        StorageError: a full disk, no permission, a name too long, a file where a folder should be.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO:
            raise _no(path, error.strerror or str(error)) from error
        if isinstance(error, ValueError) and "null byte" in str(error):
            raise _no(path, "a name holds a null byte") from error
        # Of safetensors and tokenizers, which are Rust: their errors are no OSError.
        if (said := _OS_ERROR.search(str(error))) and int(said[1]) in NO:
            raise _no(path, str(error)) from error
        raise


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise _no(path, "a file stands where its folder should be") from error
    except FileNotFoundError as error:  # in /proc
        raise _no(path, "its folder cannot be made") from error


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A folder beside a path for what is not whole yet; its maker holds a lock on it, which dies
    with it.

    So one that nobody holds is left over from a process that was killed, and is deleted.
    """
    for left in path.parent.glob(f"{BEGIN}*{END}"):
        _sweep(left)
    try:
        home = Path(tempfile.mkdtemp(dir=path.parent, prefix=BEGIN, suffix=END))
    except OSError as error:  # in /proc there is "no such file", of a name that nobody gave
        raise _no(path, error.strerror or str(error)) from error
    held = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
        os.close(held)


def _sweep(left: Path) -> None:
    """Delete what is an unfinished folder of a process that is no more."""
    if not _PART.fullmatch(left.name):
        return
    with suppress(OSError):
        held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if time.time() - os.fstat(held).st_mtime > STALE:  # else it may have no lock yet
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(held)


def discard(folder: Path) -> None:
    """Delete a folder, so that no half of it is ever seen in its place."""
    if folder.is_dir():
        with writing(folder), _part(folder) as home:
            folder.replace(home / "old")


def inside(folder: Path) -> list[Path]:
    """All that lies in a folder at any depth, in order, also while others make and delete there.

    (``Path.rglob`` fails where a folder is gone before it was looked into.)
    """
    return sorted(
        Path(home) / name for home, folders, files in os.walk(folder) for name in (*folders, *files)
    )


def sweep(folder: Path) -> None:
    """Delete what killed processes left unfinished in a folder, at any depth."""
    for left in inside(folder):
        _sweep(left)


def refuse_unwritable(path: Path) -> None:
    """Refuse a place for a file before the work whose result it is for.

    Raises:
        StorageError: no file can be written there.
    """
    with writing(path):
        _refuse_folder(path)
        _make_parent(path)
        with _part(path) as home:
            (home / path.name).touch()


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise _no(path, "a folder stands where the file should be")


def _settle(path: Path, mode: int) -> None:
    """Bring a file to the disk, so that its new name never stands for an empty one; set its mode.

    safetensors makes files that only their owner may read, whatever the umask says.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        if path.is_file():
            os.fchmod(file, mode)
        os.fsync(file)
    finally:
        os.close(file)


def _mode(home: Path) -> int:
    """The mode of a new file, which the umask decides (it cannot be asked without setting it)."""
    probe = home / "mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write; it takes ``path``'s place at the end of a block that succeeds.

    After an exception ``path`` is what it was, and nothing is left beside it.

    Raises:
        StorageError: it cannot be written.
    """
    with writing(path):
        _make_parent(path)
        # In a folder of its own, and not by mkstemp, whose files only their owner may read.
        with _part(path) as home:
            mode = _mode(home)
            temporary = home / path.name
            yield temporary
            _settle(temporary, mode)
            temporary.replace(path)
            _settle(path.parent, mode)


@contextmanager
def replacing_both(path: Path, about: Path) -> Iterator[tuple[Path, Path]]:
    """``replacing`` of a file, and of another beside it that tells about it.

    Both are on the disk before either takes its place. The old ``about`` goes before the new
    ``path`` comes: of a job that is killed, no file has beside it what tells about another. Two
    that write at once are not kept apart.

    Raises:
        StorageError: one cannot be written; both are what they were.
    """
    with writing(path):
        for each in (path, about):
            _refuse_folder(each)
        _make_parent(path)
        with _part(path) as home:
            mode, old = _mode(home), home / "old"
            new, beside = home / path.name, home / about.name
            yield new, beside
            for each in (new, beside):
                _settle(each, mode)
            try:
                with suppress(FileNotFoundError):
                    about.replace(old)
                new.replace(path)
            except BaseException:
                if old.exists() and new.exists():  # path is the old one still
                    old.replace(about)
                raise
            beside.replace(about)
            _settle(path.parent, mode)


_NUMBERS = re.compile(r'\[\n[^\[\]{}"]*\]')  # no break of a line is inside a string
"""A list of numbers over many lines, which are written as one."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; raises as ``json_bytes`` does."""
    data = json_bytes(path, value)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def json_bytes(path: Path, value: Any) -> bytes:
    """What ``write_json`` writes to a path.

    Raises:
        BadInputError: a number that is NaN or infinite, which JSON does not have; it is named. A
            character that is part of no text.
    """
    content = _json_of(path, value, indent=1, ensure_ascii=False)
    content = _NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", content)
    try:
        return content.encode("utf-8")
    except UnicodeEncodeError as error:
        odd = content[error.start]
        raise BadInputError(
            f"The text for {path.name} has the character {odd!r}, which is part of no text: take "
            "it out."
        ) from error


def _json_of(path: Path, value: Any, **options: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        raise _refused(path, _not_finite(value) or str(error)) from error


def _refused(path: Path, what: str) -> BadInputError:
    return BadInputError(
        f"{path.name} was not written: {what} in it is not finite (NaN or infinite), so nothing "
        "that follows from it would mean anything."
    )


def _not_finite(value: Any, place: str = "") -> str | None:
    """Where the first number is that JSON does not have, as ``splits.forget.margin[3]``."""
    if isinstance(value, float) and not math.isfinite(value):
        return place or "the number"
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inside = ((f"{place}.{key}" if place else str(key), v) for key, v in value.items())
    elif isinstance(value, list | tuple):
        inside = ((f"{place}[{i}]", v) for i, v in enumerate(value))
    return next((found for where, v in inside if (found := _not_finite(v, where))), None)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it becomes ``path`` at the end of a block that succeeds.

    Where ``path`` is a link to an empty folder, it becomes that folder, and the link stays. After
    an exception (also one that a signal raises) nothing of it is left.

    Raises:
        TakenError: ``path`` is there and is not an empty folder, at the start or at the end; or it
            is one that nothing can take the place of (a mounted disk, the working folder).
        StorageError: it cannot be written.
    """
    taken = TakenError(f"{path} is there already and is not an empty folder: give a new one.")
    fixed = TakenError(
        f"{path} is the root of a disk or the folder that this runs in: give a new folder inside "
        "it."
    )
    with writing(path):
        place = Path(os.path.realpath(path))  # nothing can take the place of a link to a folder
        if place.exists():
            if not place.is_dir() or any(place.iterdir()):
                raise taken
            if place.is_mount() or place.samefile(os.curdir):  # nor of these
                raise fixed
        _make_parent(place)
        with _part(place) as home:
            mode = _mode(home)
            folder = home / "new"  # not home itself, which only its owner may read
            folder.mkdir()
            try:
                yield folder
            except StorageError as error:  # names the place that the user knows
                raise StorageError(str(error).replace(str(folder), str(path))) from error
            for each in [*inside(folder), folder]:
                if not each.is_symlink():
                    _settle(each, mode)
            try:
                folder.replace(place)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise taken from error  # somebody else was quicker
                if error.errno == errno.EBUSY:  # a part of a disk is mounted there
                    raise fixed from error
                raise
            _settle(place.parent, mode)


LONGEST_NAME = 80
"""Characters of a name in a path: file systems take 255 bytes, and others are added to it."""


def slug(name: str) -> str:
    """A name as part of a path: letters of ASCII, digits, and ``._-`` inside; never a path itself.

    ::

        slug("../../my task") == "my-task"
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:LONGEST_NAME].rstrip("._-") or "x"


def with_end(path: Path, end: str) -> Path:
    """The path with this end, unless it has it: a dot in a name may begin no suffix.

    ::

        with_end(Path("rate-0.06"), ".zip") == Path("rate-0.06.zip")
    """
    if path.name in ("", "..") or path.suffix.lower() == end:  # a folder cannot be renamed here
        return path
    return path.with_name(path.name + end)


def answered(ask: Callable[[], bool]) -> bool:
    """What a path says of itself; no, where its name is longer than any that there can be.

    ::

        answered(Path(name).is_dir)
    """
    try:
        return ask()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def confined(path: Path, folder: Path) -> Path:
    """The path, if it lies in ``folder`` after every link has been followed.

    Raises:
        BadInputError: it leads out, by ``..`` or by a link.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInputError(f"{path} leads out of {folder}: give a name inside, without links.")
    return path


def read_json(path: Path) -> Any:
    """Read JSON, after a byte-order mark, too, which some editors write before it.

    Raises:
        NotMeasuredError: there is no such file.
        DamagedError: it is damaged, or holds a number that is NaN or infinite, or a key twice.
    """
    with reading(path):
        return parsed_json(path.read_text(encoding="utf-8-sig"))


def parsed_json(text: str) -> Any:
    """JSON as Python values.

    Raises:
        ValueError: it is none, holds a number that is NaN or infinite, or a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_float=_number, parse_constant=_number, object_pairs_hook=_object)


def repeated(names: Sequence[str]) -> str | None:
    """The first name that is there twice; Python's readers go by the last without a word."""
    if len({*names}) == len(names):
        return None
    return next(name for name in names if names.count(name) > 1)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := repeated([key for key, _ in pairs])) is not None:
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return dict(pairs)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text:.20} is not finite")
    return value
