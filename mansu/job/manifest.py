"""What a run's manifest must hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from mansu.files import typed
from mansu.job.settings import Settings
from mansu.settings import configure


@dataclass(frozen=True)
class _About:
    """What a manifest says of its task, for the types."""

    name: str
    title: str
    description: str
    provenance: str
    margin: float
    tolerance: float
    digest: str


@dataclass(frozen=True)
class _Manifest:
    """What a manifest must hold, for the types; it may hold more."""

    version: int
    created: str
    subject: str
    fingerprint: str
    task: dict[str, Any]
    settings: dict[str, Any]
    asked: list[str]
    python: str
    packages: dict[str, str]
    threads: int


def check_manifest(manifest: Any) -> None:
    """Raises KeyError, TypeError or ValueError where a manifest is not one."""
    manifest = typed(_Manifest(**{f.name: manifest[f.name] for f in fields(_Manifest)}))
    datetime.fromisoformat(manifest.created)
    about = typed(_About(**manifest.task))
    if not (0 <= about.margin <= 1 and 0 <= about.tolerance <= 1):
        raise ValueError("margin or tolerance is not between 0 and 1")
    if not all(isinstance(method, str) for method in manifest.asked):
        raise TypeError("asked is no list of methods")
    configure(Settings, manifest.settings, "a run")
