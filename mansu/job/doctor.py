"""Whether MANSU can work on this machine, and what a bug report has to say of it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from mansu import __version__, quant, subjects
from mansu.job.limits import limits, n_cores
from mansu.job.machine import machine
from mansu.job.runs import examples, folder, listed, unreadable
from mansu.room import GIB, machine_memory
from mansu.subjects.shipped import DEFAULT, TABLE, TINY, cache_folder

ROOM = 2.0
"""GiB of disk and of memory below which a job on the default model does not get far."""


@dataclass(frozen=True)
class Finding:
    """What was looked at.

    Attributes:
        what, said: a word or two, and a phrase.
        right: whether MANSU can work so.
    """

    what: str
    said: str
    right: bool = True

    def __str__(self) -> str:
        return f"{'ok   ' if self.right else 'WRONG'}  {self.what}: {self.said}"


def examine() -> Iterator[Finding]:
    """Look at everything, the quick first; what fails is a finding, not an error.

    No finding holds the path of a home or the name of a user.
    """
    for what, look in CHECKS:
        try:
            yield from (Finding(what, _private(said), right) for said, right in look())
        except Exception as error:  # the very thing that is asked for
            yield Finding(what, _private(f"{type(error).__name__}: {error}"), False)


Looked = Iterator[tuple[str, bool]]


def _versions() -> Looked:
    yield f"MANSU {__version__}, Python {platform.python_version()}, {platform.platform()}", True
    needed = [Requirement(text) for text in requires("mansu") or ()]
    told, wrong = [], []
    for each in needed:
        optional = each.marker is not None  # of an extra
        try:
            here = version(each.name)
        except PackageNotFoundError:
            if not optional:
                wrong.append(f"{each.name} is missing ({each.specifier} is needed)")
            continue
        if not optional:
            told.append(f"{each.name} {here}")
        if not each.specifier.contains(here, prereleases=True):
            wrong.append(f"{each.name} is {here}, and {each.specifier} is needed")
    yield ", ".join(told) or "mansu is not installed: run pip install .", bool(told)
    for sentence in dict.fromkeys(wrong):
        yield f"{sentence}: run `pip install 'mansu[app]'`", False


def _processor() -> Looked:
    here = machine()
    yield f"{here['cpu']}; {n_cores()} cores; device {here['device']}", True
    threads, cores = here["threads"], n_cores()
    said = f"{threads} threads of torch on {cores} cores"
    if threads > cores:
        said += ": they wait for each other; set OMP_NUM_THREADS to the number of cores"
    yield said, threads <= cores
    settings = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    given = [f"{name}={os.environ[name]}" for name in settings if name in os.environ]
    if given:
        yield ", ".join(given), True


def _memory() -> Looked:
    free, all_of_it = psutil.virtual_memory().available / GIB, machine_memory() / GIB
    yield f"{free:.1f} of {all_of_it:.1f} GiB are free", free >= ROOM
    found = limits()
    yield f"models may take {found.memory:.1f} GiB, and {found.jobs} jobs work at once", True


def _disk() -> Looked:
    for what, place in (("runs", folder()), ("prepared models", cache_folder())):
        there = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        free = shutil.disk_usage(there).free / GIB
        wrong = "" if there.is_dir() else f", and {there} is no folder"
        if not wrong and not os.access(there, os.W_OK):
            wrong = ", and it cannot be written"
        yield f"{what} in {place}: {free:.1f} GiB free{wrong}", not wrong and free >= ROOM


def _kernels() -> Looked:
    for kind in ("nf4", "fp4"):
        right = quant.rounds_as_said(kind)
        how = "rounds to the nearest level, as ours" if right else "rounds in another way than ours"
        yield f"bitsandbytes' {kind} {how}", right
    weight = quant.CODES.repeat(4, 4)  # each block's levels lie at its own centres
    same = torch.equal(quant.dequantize(quant.quantize(weight)), weight)
    yield ("NF4 gives its own levels back" if same else "NF4 changes its own levels"), same


def _models() -> Looked:
    tiny = subjects.load(TINY)
    for run in examples():
        if run.subject == TINY:
            same = run.fingerprint == tiny.fingerprint
            told = "is the one of its example" if same else "is not the one of its example"
            yield f"tiny loads, and {told} (fingerprint {tiny.fingerprint})", same
    yield f"{DEFAULT}: {TABLE[DEFAULT].state}", True


def _runs() -> Looked:
    yield f"{sum(not run.is_example for run in listed())} that can be read", True
    for sentence in unreadable():
        yield sentence, False


CHECKS: tuple[tuple[str, Callable[[], Looked]], ...] = (
    ("versions", _versions),
    ("processor", _processor),
    ("memory", _memory),
    ("disk", _disk),
    ("kernels", _kernels),
    ("models", _models),
    ("runs", _runs),
)


def _private(text: str) -> str:
    """Without the path of the home, of this environment and of the working directory."""
    for path, name in ((Path(sys.prefix), "ENV"), (Path.cwd(), "."), (Path.home(), "~")):
        if len(path.parts) > 1:
            text = text.replace(str(path), name)
    return text
