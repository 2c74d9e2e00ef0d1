"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mansu.errors import MansuError


def save_values(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one safetensors file, whole or not at all."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(
            contiguous, temporary, metadata={"mansu": json.dumps(dict(meta), allow_nan=False)}
        )


def load_values(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_values`` wrote.

    Raises:
        MansuError: there is no such file, or it is not one of ours.
    """
    if not path.is_file():
        raise MansuError(f"There is no {path.name} in {path.parent}: run the step that makes it.")
    try:
        with safe_open(str(path), "pt") as file:
            meta = json.loads(file.metadata()["mansu"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise MansuError(f"{path} is damaged or was not written by MANSU: {error}.") from error


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
        MansuError: a number that is NaN or infinite, which JSON does not have; it is named.
    """
    try:
        content = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise MansuError(
            f"{path.name} was not written: {_not_finite(value)} in it is not finite (NaN or "
            "infinite), so nothing that follows from it would mean anything."
        ) from error
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


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
        MansuError: ``path`` is there and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise MansuError(f"{path} is there already and is not an empty folder: give a new one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as home:
        folder = Path(home) / "new"  # not home itself, which only its owner may read
        folder.mkdir()
        yield folder
        folder.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        MansuError: there is no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MansuError(
            f"There is no {path.name} in {path.parent}: run the step that makes it."
        ) from error
    except json.JSONDecodeError as error:
        raise MansuError(f"{path} is damaged ({error.msg}): make it again.") from error
