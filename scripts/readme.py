"""Write the results in README.md and docs/results.md, and the README's picture of the tradeoff.

::

    python -m experiments.reproduce
    python scripts/readme.py

What stands between the markers of both files is generated: numbers and tables from
``experiments/results``, the sentences from ``experiments/texts``, which is where they are changed;
``tests/experiments/test_results.py`` holds the files to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # experiments and app are beside the package, not in it

from app import charts, words  # noqa: E402
from experiments import tables  # noqa: E402
from experiments.claims import separation  # noqa: E402
from experiments.prose import filled  # noqa: E402
from mansu.files import read_json, replacing  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
TEXTS = ROOT / "experiments" / "texts"
PICTURE = ROOT / "docs" / "tradeoff.svg"
BEGIN, END = "<!-- results: begin (python scripts/readme.py) -->", "<!-- results: end -->"

GENERATED: Mapping[str, Callable[..., str]] = {
    "README.md": tables.summary,
    "docs/results.md": tables.report,
}
"""File → the tables of the results that stand in it."""


def written(name: str) -> str:
    """A file with the part between its markers made anew."""
    head, rest = (ROOT / name).read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    found = read_json(RESULTS / "reproduce.json")
    template = (TEXTS / Path(name).name.lower()).read_text(encoding="utf-8")
    shown = GENERATED[name](found, separation(RESULTS)).strip()
    text = filled(template, found).replace("<tables>", shown)
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"


def picture(run: Mapping[str, Any]) -> None:
    """Draw forgetting against permanence of one run's methods."""
    edits = {words.title(name): points for name, points in tables.tradeoff(run).items()}
    figure = charts.tradeoff(edits, run["task"]["tolerance"])
    figure.update_layout(template="plotly_white", width=900, height=520, margin_b=90)
    figure.add_annotation(  # nobody can ask a picture what its marks are
        text=words.STRENGTHS, xref="paper", yref="paper", x=0.5, y=0, yshift=-75, showarrow=False
    )
    drawn = figure.to_image(format="svg").decode()
    # Plotly names its parts at random: the same figures are to be the same bytes.
    names = dict.fromkeys(re.findall(r"\b(?:defs-|trace)([0-9a-f]{6})\b", drawn))
    for number, name in enumerate(names):
        drawn = drawn.replace(name, f"{number:06}")
    with replacing(PICTURE) as temporary:
        temporary.write_text(drawn, encoding="utf-8")


def main() -> None:
    for name in GENERATED:
        text = written(name)
        with replacing(ROOT / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    runs = read_json(RESULTS / "reproduce.json")["runs"]
    try:
        picture(next(run for run in runs if run["task"]["name"] == "chemical-symbols"))
    except RuntimeError as error:  # kaleido draws with a Chrome
        sys.exit(f"The texts are written, the picture is not: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
