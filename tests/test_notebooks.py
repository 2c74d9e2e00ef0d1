"""The notebooks run, cell after cell, on the tiny subject, and hold no outputs to go stale."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"


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
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    if path.stem == "quickstart":  # what it says of its baseline is what it shows
        printed = capsys.readouterr().out
        (survive,) = re.findall(r"graddiff: ([\d.]+)% of its moves survive", printed)
        assert 100 / 3 < float(survive) < 50 and "GradDiff 100.0%" in printed


def test_there_are_two_of_them() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"quickstart", "circuit"}


def test_what_the_quickstart_says_of_real_models_is_in_the_record() -> None:
    text = "".join(
        (NOTEBOOKS / "quickstart.ipynb").read_text(encoding="utf-8").split('\\n",\n    "')
    )
    assert "a quarter of a percent" in text and "brings back 9 points of the" in text
    record = json.loads((ROOT / "experiments" / "results" / "reproduce.json").read_text())
    small, large = (
        next(run["methods"]["graddiff"] for run in record["runs"] if run["name"].startswith(name))
        for name in ("chemical-symbols-smollm2", "gemma-symbols")
    )
    assert round(100 * small["codes changed"], 2) in (0.24, 0.25, 0.26)
    assert all(check["value"][1] <= 0 for check in small["checks"]["gap"])
    (back,) = [c["value"] for c in large["checks"]["gap"] if c["what"] == "gap, rephrasings"]
    assert back[1] > 0 and round(100 * back[0]) == 9
