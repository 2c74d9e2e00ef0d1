"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mansu.errors import BadInputError, DamagedError, NotMeasuredError

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


def typed(value: T) -> T:
    """A dataclass that was made of a file, each field of which must be what its hint says.

    Raises:
        TypeError: one is not; it is named.
    """
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        found = getattr(value, field.name)
        if not _fits(found, hints[field.name]):
            raise TypeError(f"{field.name} is {found!r:.60}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, kind):
        return False
    if kind is tuple and parts:
        every = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(every) and all(map(_fits, value, every))
    if isinstance(value, Mapping) and parts:
        return all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if dataclasses.is_dataclass(value):
        typed(value)
    return True


def save_values(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one safetensors file, whole or not at all.

    Raises:
        BadInputError: a number, in a tensor or a value, is NaN or infinite; it is named.
    """
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise _refused(path, f"the tensor {name}")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"mansu": _json_of(path, dict(meta))}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def load_values(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_values`` wrote.

    Raises:
        NotMeasuredError: there is no such file.
        DamagedError: it is not one of ours, or holds a number that is NaN or infinite.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        meta = _parsed(file.metadata()["mansu"])
        if not isinstance(meta, dict):
            raise TypeError("its header is no object")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                raise ValueError(f"the tensor {name} is not finite")
        return tensors, meta


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write; it takes ``path``'s place at the end of a block that succeeds.

    After an exception ``path`` is what it was, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, and not by mkstemp, whose files only their owner may read.
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as home:
        temporary = Path(home) / path.name
        yield temporary
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        BadInputError: a number that is NaN or infinite, which JSON does not have; it is named.
    """
    content = _json_of(path, value, indent=1, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


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

    After an exception (also one that a signal raises) nothing of it is left.

    Raises:
        BadInputError: ``path`` is there and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInputError(f"{path} is there already and is not an empty folder: give a new one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as home:
        folder = Path(home) / "new"  # not home itself, which only its owner may read
        folder.mkdir()
        yield folder
        folder.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        NotMeasuredError: there is no such file.
        DamagedError: it is damaged, or holds a number that is NaN or infinite.
    """
    with reading(path):
        return _parsed(path.read_text(encoding="utf-8"))


def _parsed(text: str) -> Any:
    return json.loads(text, parse_float=_number, parse_constant=_number)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text:.20} is not finite")
    return value
