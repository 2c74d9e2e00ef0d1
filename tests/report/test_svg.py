"""The dossier's pictures."""

from __future__ import annotations

import re

from mansu.measure.statistics import Interval
from mansu.report import svg


def test_a_set_takes_one_thin_line_a_model() -> None:
    one, models, sets = Interval(0.5, 0.4, 0.6), 4, 9
    drawn = svg.intervals({str(i): [one] * models for i in range(sets)}, "abcd", chance=0.25)
    size = re.search(r'viewBox="0 0 680 ([\d.]+)"', drawn)
    assert size is not None and float(size[1]) == sets * (15 * models + 10) + 40
