"""What a result hangs on besides what was asked: versions, threads and the processor.

A run's manifest records it. The same manifest on the same machine gives the same numbers; with
other versions, another number of threads or another processor sums are taken in another order, and
their last digits may differ. So a run that goes on elsewhere says what is other there.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "transformer-lens", "bitsandbytes")
"""Those that compute."""
_MATTER = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """``python``, ``packages`` (versions by name), ``threads`` of torch, ``cpu`` (its kind and the
    instructions that kernels choose by) and ``device`` (``cpu``, or the name of the GPU)."""
    return {
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
    had, here = {**manifest, **manifest["packages"]}, machine()
    here |= here["packages"]
    names = {**dict.fromkeys(("python", *PACKAGES)), "threads": None, "cpu": None, "device": None}
    return [
        f"{name} {had[name]} there, {here[name]} here"
        for name in names
        if name in had and had[name] != here[name]
    ]


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
