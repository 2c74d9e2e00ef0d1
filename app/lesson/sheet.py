"""The end of the lesson on paper: what a student said, what was measured, what to take away."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.lesson.step import Outcome, Step

STYLE = """
.sheet { line-height: 1.45; max-width: 46rem; }
.sheet table { border-collapse: collapse; width: 100%; }
.sheet th, .sheet td { border: 1px solid #999; padding: 0.35rem 0.5rem; text-align: left;
  vertical-align: top; font-size: 0.9rem; overflow-wrap: break-word; }
.sheet td p { margin: 0.3rem 0 0; font-size: inherit; }
@media screen and (max-width: 480px) {
  .sheet th, .sheet td { font-size: 0.75rem; padding: 0.2rem 0.25rem; }
}
.sheet tr { break-inside: avoid; }
@page { size: A4; margin: 15mm; }
"""


def page(done: Sequence[tuple[Step, Outcome]], of: int, model: str) -> str:
    """The sheet as one HTML file that needs nothing from outside.

    Args:
        done: the steps that were answered, in order. of: steps that there are.
        model: what was measured, for people.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<title>Why forgetting comes back: my sheet</title></head>"
        '<body style="font-family: system-ui, sans-serif">'
        "<h1>Why forgetting comes back</h1><p>Name: ____________________ Date: ____________</p>"
        f"{body(done, of, model)}</body></html>"
    )


def body(done: Sequence[tuple[Step, Outcome]], of: int, model: str) -> str:
    """The sheet as a piece of HTML."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(step.question)}</th><td>{escape(o.said)}</td>"
        f"<td>{escape(o.truth)}</td><td>{escape(o.difference)}</td></tr>"
        f"<tr><td colspan='4'>{escape(o.lesson)}{_caught(o)}</td></tr>"
        for step, o in done
    )
    return (
        f"<style>{STYLE}</style><div class='sheet'>"
        f"<p>{len(done)} of {of} steps answered. "
        f"Measured on {escape(model)}.</p>"
        "<table><thead><tr><th scope='col'>Question</th><th scope='col'>I said</th>"
        "<th scope='col'>Measured</th><th scope='col'>Difference</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _caught(outcome: Outcome) -> str:
    return f"<p><em>To think about: {escape(outcome.caught)}</em></p>" if outcome.caught else ""
