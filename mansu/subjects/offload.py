"""Room on the disk for what of a subject the machine's memory does not hold.

A checkpoint on the processor is mapped: its weights are pages of its files, which the system reads
when a layer runs and lets go where it needs the room. So may everything of that size be: weights
in another dtype than the checkpoint's (``converted``), what they are in NF4, and the second moments
of their inputs (``placed``). Values are the same wherever they lie. On a GPU nothing is offloaded.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mansu.files import writing
from mansu.room import machine_memory

TIMES = 3
"""Memory that work on a subject in memory takes, in sizes of its weights: they, NF4's values, and
what attribution and edits hold."""


def fits(weights: int) -> bool:
    """Whether a subject of so many bytes is worked on in memory."""
    return TIMES * weights <= machine_memory()


def placed(found: Tensor, folder: Path | None) -> Tensor:
    """What is as large as the weights: ``on_disk``, where a subject's ``offload`` is a folder.

    Raises:
        StorageError: there is no room for it.
    """
    return found if folder is None or found.device.type != "cpu" else on_disk(found, folder)


def on_disk(like: Tensor, folder: Path) -> Tensor:
    """A copy of a tensor in pages of a file without a name, which is gone with the tensor.

    Raises:
        StorageError: there is no room for it.
    """
    size = max(1, math.prod(like.shape)) * like.itemsize
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so now, not as SIGBUS
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=size)
    found: Tensor = torch.tensor([], dtype=like.dtype)
    found.set_(storage, 0, like.shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return found.copy_(like)


@contextmanager
def converted(source: Path, dtype: torch.dtype, folder: Path) -> Iterator[Path]:
    """A checkpoint whose weights are all of a dtype, so that they can be mapped, for the block.

    What maps its files keeps them afterwards.

    Args:
        source: a folder with a checkpoint. folder: where there is room for another.

    Yields:
        ``source`` where its weights are of the dtype already.

    Raises:
        StorageError: there is no room for it.
    """
    files = sorted(source.glob("*.safetensors"))
    if all(kind == dtype for file in files for kind in _dtypes(file)):
        yield source
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as new:
            shutil.copytree(
                source, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
            )
            for file in files:
                with safe_open(file, "pt") as weights:
                    names = weights.keys()
                    some = {name: weights.get_tensor(name).to(dtype) for name in names}
                save_file(some, Path(new) / file.name, {"format": "pt"})
                del some
            yield Path(new)


def _dtypes(file: Path) -> set[torch.dtype]:
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        return {weights.get_tensor(name).dtype for name in names}
