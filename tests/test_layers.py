"""Imports point one way: from the pages down to the leaves, and never up."""

from __future__ import annotations

from pathlib import Path

import pytest
from imports import imports

ROOT = Path(__file__).parents[1]

# From the bottom up; a room may import those before it, and itself.
ROOMS = (
    ("errors", "interrupts", "memory", "progress", "settings", "files", "room", "statistics"),
    ("show",),
    ("subjects",),
    ("tasks",),
    ("quant",),
    ("circuits",),
    ("measure",),
    ("methods",),
    ("evidence",),
    ("sets",),
    ("job",),
    ("sweep",),
    ("report",),
    ("exports",),
    ("api",),
    ("launch",),
    ("cli",),
    ("__main__",),
)
FORBIDDEN = {  # top folder → what nothing in it may import
    "mansu": {"app", "pages", "experiments", "scripts", "tests", "streamlit", "plotly"},
    "app": {"pages", "experiments", "scripts", "tests"},
    "pages": {"pages", "experiments", "scripts", "tests"},
    "experiments": {"app", "pages", "scripts", "streamlit"},
}


def level(module: str) -> int | None:
    """Height of the room of ``mansu.…``, the deepest match; None for the package itself."""
    inside = module.removeprefix("mansu.")
    found = [
        (len(room), height)
        for height, rooms in enumerate(ROOMS)
        for room in rooms
        if inside == room or inside.startswith(f"{room}.")
    ]
    return max(found)[1] if found else None


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_has_a_room() -> None:
    names = {name_of(path) for path in (ROOT / "mansu").rglob("*.py")} - {"mansu"}
    assert not {name for name in names if level(name) is None}


def test_rooms_import_downwards_only() -> None:
    up = set()
    for path in (ROOT / "mansu").rglob("*.py"):
        here = level(name_of(path))
        for module, typing_only in imports(path):
            there = level(module) if module.startswith("mansu.") else None
            if here is not None and there is not None and there > here and not typing_only:
                up.add(f"{name_of(path)} imports {module}")
    assert not up


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_nothing_imports_what_stands_above_it(folder: str) -> None:
    found = {
        f"{name_of(path)} imports {module}"
        for path in (ROOT / folder).rglob("*.py")
        for module, _ in imports(path)
        if module.split(".")[0] in FORBIDDEN[folder]
    }
    assert not found
