"""What a run's manifest must hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from mansu.files import made_of
from mansu.job.settings import Settings
from mansu.settings import configure

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _About:
    """What a manifest says of its task, for the types."""

    name: str
    title: str
    description: str
    provenance: str
    margin: Share
    tolerance: Share
    digest: str


ABOUT = tuple(field.name for field in fields(_About))


@dataclass(frozen=True)
class _Manifest:
    """What a manifest must hold, for the types; it may hold more."""

    version: int
    created: str
    subject: str
    fingerprint: str
    task: _About
    settings: dict[str, Any]
    asked: list[str]
    python: str
    packages: dict[str, str]
    threads: int
    mansu: str = ""
    cpu: str = ""
    device: str = ""
    start: str = ""


def check_manifest(manifest: Any) -> None:
    """Raises ValueError where a manifest is not one."""
    found = made_of(_Manifest, manifest)
    datetime.fromisoformat(found.created)
    configure(Settings, found.settings, "a run")
