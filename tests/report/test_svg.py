"""The dossier's pictures."""

from __future__ import annotations

import re

import pytest

from mansu.job.runs import examples
from mansu.report import svg
from mansu.report.changes import changes
from mansu.statistics import Interval


def test_a_set_takes_one_thin_line_a_model() -> None:
    one, models, sets = Interval(0.5, 0.4, 0.6), 4, 9
    drawn = svg.intervals({str(i): [one] * models for i in range(sets)}, "abcd", chance=0.25)
    size = re.search(r'viewBox="0 0 680 ([\d.]+)"', drawn)
    assert size is not None and float(size[1]) == sets * (15 * models + 10) + 40


def texts(drawn: str) -> dict[str, tuple[float, float]]:
    """Where each text stands."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', drawn)
    return {text: (float(x), float(y)) for x, y, text in found}


def test_the_last_tick_stands_within_the_picture() -> None:
    half = len("100%") * 17 * 0.65 / 2  # of its width, in the letters of a narrow page
    drawn = svg.intervals({"set": [Interval(1.0, 1.0, 1.0)]}, "a", chance=0.25)
    assert texts(drawn)["100%"][0] + half <= 680
    counts = [0, 3, 5, 0]
    edges = [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert texts(svg.histogram(counts, counts, edges))["100"][0] + half <= 680


@pytest.mark.parametrize("name", [run.name for run in examples()])
def test_no_edge_strikes_through_a_label_of_the_circuit(name: str) -> None:
    """Edges run between the embedding and the logits: what is named stands outside of them."""
    (run,) = (run for run in examples() if run.name == name)
    found = changes(run, "mansu")
    assert found is not None
    drawn = svg.circuit(found)
    ys = [float(y) for y in re.findall(r"[MQ ]-?[\d.]+ (-?[\d.]+)", " ".join(_paths(drawn)))]
    named = texts(drawn)
    for text in ("embedding", "MLP", *(f"h{i}" for i in range(found.heads))):
        assert named[text][1] - 12 >= max(ys), text  # the letters are twelve high
    assert named["logits"][1] <= min(ys) and named["logits"][1] >= 12
    assert named["embedding"][1] + 12 <= named["h0"][1]


def _paths(drawn: str) -> list[str]:
    return re.findall(r'<path d="([^"]*Q[^"]*)"', drawn)
