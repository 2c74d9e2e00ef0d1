"""Sentences of the documents take their numbers from the record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.prose import Figure, by_name, filled
from mansu.evidence.verdict import ABOUT
from scripts import readme

GAP = {"what": "gap, rephrasings", "unit": "share", "value": [-0.028, -0.089, 0.039]}
GAP |= {"threshold": 0.1, "at_least": False}
LOST = [
    {"what": what, "unit": "nats", "value": [v, 0, 1], "threshold": 0.1, "at_least": False}
    for what, v in (("fall of a", 0.1), ("fall of b", 0.6), ("drift on text", 0.9))
]
FOUND = {
    "runs": [
        {
            "task": {"name": "some-facts"},
            "circuit": {"edges": 680, "mask": 0.004, "mass": 0.292, "interval": None},
            "methods": {
                "mansu": {
                    "full": {"forget": [0.5, 0.4, 0.6]},
                    "attacks": {"relearning": [0.75, 0.7, 0.8]},
                    "cad": {"signal": [0.113, 0.102, 0.118]},
                    "status": {"gap": "passed"},
                    "checks": {"gap": [GAP], "retention": LOST},
                }
            },
        }
    ]
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{some-facts[mansu][full forget]:0} %", "50\u00a0%"),
        ("{some-facts[mansu][attack relearning]:1i}", "75.0 [70.0, 80.0]"),
        ("{some-facts[mansu][share gap, rephrasings]:+1i}", "−2.8 [−8.9, +3.9]"),
        ("{some-facts[mansu][share gap, rephrasings]:-1i} fewer", "2.8 [−3.9, 8.9] fewer"),
        ("{some-facts[mansu][limit share gap, rephrasings]:0} points", "10 points"),
        ("{some-facts[mansu][CAD signal]:3i}", "0.113 [0.102, 0.118]"),
        ("{some-facts[mansu][worst]:2} nats", "0.60 nats"),
        ("The gap is {some-facts[mansu][status gap]}.", "The gap is passed."),
        ("{some-facts[circuit][mass]:0} % of it", "29\u00a0% of it"),
        (
            "# A head\n\n- an item\n  of two lines\n- another",
            "# A head\n\n- an item of two lines\n- another",
        ),
        ("| a | b |\n| - | - |", "| a | b |\n| - | - |"),
    ],
)
def test_a_template_is_filled(template: str, text: str) -> None:
    assert filled(template, FOUND) == text


@pytest.mark.parametrize(
    "name", ["no-task[mansu]", "some-facts[ga]", "some-facts[mansu][full retain]"]
)
def test_what_the_record_does_not_hold_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        filled(f"{{{name}}}", FOUND)


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        ([], "none"),
        (["gap"], "gap"),
        (["forgetting", "gap"], "forgetting and gap"),
        (["forgetting", "retention", "gap"], "forgetting, retention and gap"),
    ],
)
def test_what_is_passed_is_listed(passed: list[str], text: str) -> None:
    status = dict.fromkeys(ABOUT, "failed") | dict.fromkeys(passed, "passed")
    assert by_name({"status": status})["passed"] == text


def test_what_comes_back_is_listed_where_something_was_forgotten() -> None:
    def edit(status: str, **values: list[float]) -> dict[str, Any]:
        names = {"share": "gap, rephrasings", "nats": "gap among the choices, forget rows"}
        gaps = [GAP | {"what": names[u], "unit": u, "value": v} for u, v in values.items()]
        return {"status": {"gap": status}, "checks": {"gap": gaps}}

    methods = {
        "ga": edit("undecided", share=[0.05, -0.01, 0.1], nats=[0.103, 0.041, 0.165]),
        "rmu": edit("vacuous", share=[0.019, 0.004, 0.039]),
        "npo": edit("passed", share=[0.03, 0.01, 0.05], nats=[0.2, 0.1, 0.3]),
        "kl": edit("passed", share=[0.03, -0.01, 0.05]),
        "mansu": edit("failed", share=[0.3, 0.2, 0.4]),  # no baseline
    }
    run = {"task": {"name": "some-facts"}, "circuit": {}, "methods": methods}
    assert filled("{some-facts[back]}", {"runs": [run]}) == (
        "NPO +3.0 [+1.0, +5.0] points (rephrasings), GA +0.103 [+0.041, +0.165] nats (forget rows)"
    )
    assert filled("{some-facts[back]}", FOUND) == "nothing"


def test_a_figure_s_form_is_checked() -> None:
    with pytest.raises(ValueError, match=r"not as .\.2f."):
        format(Figure((0.1, 0.0, 0.2), "nats"), ".2f")


@pytest.mark.parametrize("path", sorted(readme.TEXTS.glob("*.md")), ids=lambda p: p.name)
def test_no_interval_is_written_by_hand(path: Path) -> None:
    assert not re.search(r"\[[−+]?\d[\d.]*, [−+]?\d", path.read_text(encoding="utf-8"))
