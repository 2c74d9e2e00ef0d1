"""What a result hangs on besides what was asked: versions, threads and the processor.

A run's manifest records it. The same manifest on the same machine gives the same bytes: a job has
as many threads as the run was begun with (``threads_of``). With other versions, another processor
or fewer cores sums are taken in another order, and their last digits may differ. So a run that goes
on elsewhere says what is other there.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mansu import __version__
from mansu.job.limits import n_cores

PACKAGES = ("torch", "transformers", "transformer-lens", "bitsandbytes")
"""Those that compute."""
_MATTER = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """``mansu`` and ``python`` (versions), ``packages`` (versions by name), ``threads`` of torch,
    ``cpu`` (its kind and the instructions that kernels choose by) and ``device`` (``cpu``, or the
    name of the GPU)."""
    return {
        "mansu": __version__,
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def differences(manifest: Mapping[str, Any]) -> list[str]:
    """What of this machine is other than where a run was made, a phrase each.

    Args:
        manifest: of a run; of what an older one does not record nothing is said.
    """
    return [f"{name} {had} there, {here} here" for name, had, here in _other(manifest)]


def _other(manifest: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What is other, its name, there and here."""
    had, here = {**manifest, **manifest["packages"]}, machine()
    here |= here["packages"]
    names = ("mansu", "python", *PACKAGES, "threads", "cpu", "device")
    return [(n, had[n], here[n]) for n in names if n in had and had[n] != here[n]]


@contextmanager
def threads_of(manifest: Mapping[str, Any]) -> Iterator[None]:
    """Compute with as many threads as a run was begun with, for the block.

    So what is added to it here has the bytes that it would have had then. Not where more than the
    threads is other, or there are fewer cores: then nothing would be won.
    """
    here, other = torch.get_num_threads(), [name for name, _, _ in _other(manifest)]
    if other == ["threads"] and manifest["threads"] <= n_cores():
        torch.set_num_threads(manifest["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(here)


def sentence(manifest: Mapping[str, Any]) -> str:
    """``differences`` as one sentence; "" where there are none."""
    found = differences(manifest)
    if not found:
        return ""
    return (
        f"This run was begun on another machine or with other versions ({'; '.join(found)}): "
        "numbers made here may differ from its own in their last digits."
    )


@cache
def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in PACKAGES}


@cache
def _cpu() -> str:
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    kinds = [name for name in _MATTER if name in flags]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *kinds])
