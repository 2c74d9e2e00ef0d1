"""The notebooks run, cell after cell, on the tiny subject, and hold no outputs to go stale."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(notebook: dict[str, Any], name: str) -> list[Any]:
    """Run the code cells in one namespace; what each cell's last expression gives, as shown."""
    shown, space = [], {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        *body, last = ast.parse("".join(cell["source"])).body
        where = f"{name}, cell {number}"
        value = None
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(body, []), where, "exec"), space)
            value = eval(compile(ast.Expression(last.value), where, "eval"), space)
        else:
            exec(compile(ast.Module([*body, last], []), where, "exec"), space)
        html = getattr(value, "_repr_html_", None)
        shown.append(html() if html else repr(value))
    return shown


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 5
    assert notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == (
            [],
            None,
        ), f"{path.name} holds outputs: clear them"
    shown = execute(notebook, path.name)
    assert len(shown) > 4 and any(text != "None" for text in shown)


def test_there_are_two_of_them() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"quickstart", "circuit"}
