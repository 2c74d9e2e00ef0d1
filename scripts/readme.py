"""Write the README's results from ``experiments/results``, and its picture of the tradeoff.

::

    mansu reproduce
    python scripts/readme.py

What stands between the two markers is generated; ``tests/test_reproduce.py`` checks that it is
what the results say.
"""

from __future__ import annotations

from pathlib import Path

from app import charts, words
from experiments import reproduce
from mansu.files import read_json, replacing

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PICTURE = "docs/tradeoff.svg"
BEGIN, END = "<!-- results: begin (python scripts/readme.py) -->", "<!-- results: end -->"


def with_results(readme: str) -> str:
    """The README with the part between the markers made anew."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    found = read_json(RESULTS / "reproduce.json")
    text = reproduce.summary(found, reproduce.separation(RESULTS))
    return f"{head}{BEGIN}\n\n{text}\n![Forgetting against permanence]({PICTURE})\n\n{END}{tail}"


def main() -> None:
    found = read_json(RESULTS / "reproduce.json")
    run = next(r for r in found["runs"] if r["task"]["name"] == "chemical-symbols")
    edits = {words.title(name): points for name, points in reproduce.tradeoff(run).items()}
    figure = charts.tradeoff(edits, run["task"]["tolerance"])
    figure.update_layout(template="plotly_white", width=900)
    with replacing(ROOT / PICTURE) as temporary:
        figure.write_image(temporary, format="svg")
    with replacing(ROOT / "README.md") as temporary:
        temporary.write_text(with_results((ROOT / "README.md").read_text()))


if __name__ == "__main__":
    main()
