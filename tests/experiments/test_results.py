"""What the README and docs/results.md say is what the recorded results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import tables
from experiments.claims import claims, separation
from mansu.evidence.verdict import ABOUT
from mansu.files import read_json
from scripts import readme


@pytest.mark.parametrize("name", readme.GENERATED)
def test_the_files_say_what_the_results_say(name: str) -> None:
    assert readme.written(name) == (readme.ROOT / name).read_text(encoding="utf-8")


def test_every_claim_is_in_both() -> None:
    found = claims(read_json(readme.RESULTS / "reproduce.json"), separation(readme.RESULTS))
    texts = [(readme.ROOT / name).read_text(encoding="utf-8") for name in readme.GENERATED]
    assert len(found) == 18 and all(claim.claim in text for claim in found for text in texts)


def test_the_recorded_figures_are_keyed_by_the_verdict_s_fields() -> None:
    for run in read_json(readme.RESULTS / "reproduce.json")["runs"]:
        for name, figures in run["methods"].items():
            if name != "no edit":
                for key in ("status", "certain", "margin"):
                    assert list(figures[key]) == list(ABOUT)
        row = tables.properties_table(run).columns["verdict"][1]
        assert len(row.split()) == 4  # MANSU's marks


@pytest.mark.parametrize("path", sorted(readme.RESULTS.glob("*.json")), ids=lambda p: p.name)
def test_every_recorded_result_is_readable(path: Path) -> None:
    assert read_json(path)


def test_links_in_the_readme_lead_somewhere() -> None:
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert "docs/results.md" in links and "docs/tradeoff.svg" in links
    assert not [link for link in links if not (readme.ROOT / link).exists()]
