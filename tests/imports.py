"""What a Python file imports, read from its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is for type checkers only) of every import of a file.

    ``from a.b import c`` gives ``a.b.c``, since c may be a module.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                yield from ((alias.name, typing_only) for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                assert inner.level == 0, f"{path} has a relative import"
                yield from ((f"{inner.module}.{a.name}", typing_only) for a in inner.names)
