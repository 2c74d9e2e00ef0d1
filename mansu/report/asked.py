"""Tables of what models answer to each fact, and of one weight followed through edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mansu.errors import MismatchError
from mansu.measure.answers import Answer, Answered
from mansu.measure.scores import TITLES
from mansu.quant.followed import Coded, Followed
from mansu.show.numbers import number, written
from mansu.show.table import Table
from mansu.tasks.facts import Fact


def kind(fact: Fact) -> str:
    """What set a fact belongs to, for people: ``Retain: homes``."""
    title = TITLES[fact.split]
    return title if fact.group == fact.split else f"{title}: {fact.group}"


def answers(edits: Mapping[str, Sequence[Answered]], caption: str = "") -> Table:
    """A row a fact, columns for the unedited model and for each edit, in full precision and NF4.

    ✓ where the answer is right; else the wrong one that is taken (✗ where it was not kept).

    Args:
        edits: title of an edit → the same facts in the same order.

    Raises:
        MismatchError: the edits were measured on different facts.
    """
    columns = list(edits.values())
    if any([a.fact for a in c] != [a.fact for a in columns[0]] for c in columns):
        raise MismatchError("The edits were measured on different facts: they do not compare.")
    head = ["Set", "Prompt", "Right answer", *(f"{name}: outcome" for name in edits), "Unedited"]
    head += [h for name in edits for h in (name, f"{name}, NF4")]
    rows = []
    for same in zip(*columns, strict=True):
        fact = same[0].fact
        cells = [kind(fact), fact.prompt, fact.answer.strip(), *(found.flip for found in same)]
        cells += [_said(same[0].before)]
        cells += [_said(answer) for found in same for answer in (found.full, found.nf4)]
        rows.append(cells)
    return Table(head, rows, caption, "<" * len(head))


def _said(answer: Answer) -> str:
    if answer.right:
        return "✓"
    return f"✗ {answer.chosen.strip()}" if answer.chosen else "✗"


_WEIGHT: Mapping[str, Callable[[Coded], str]] = {
    "Value": lambda c: written(c.value, "+.5f"),
    "Largest in its block (absmax)": lambda c: f"{c.absmax:.5f}",
    "Value ÷ absmax": lambda c: written(c.scaled, "+.4f"),
    "Bin, from": lambda c: written(c.low, "+.5f"),
    "Bin, to": lambda c: written(c.high, "+.5f"),
    "Bin width": lambda c: f"{c.width:.5f}",
    "Code": lambda c: str(c.code),
    "What the code stands for": lambda c: written(c.stored, "+.5f"),
}


def weight(edits: Mapping[str, Followed], caption: str = "") -> Table:
    """A row a quantity, a column for the weight before and after each edit.

    Args:
        edits: title of an edit → the same weight followed.
    """
    before = next(iter(edits.values())).before
    rows = [(n, say(before), *(say(f.after) for f in edits.values())) for n, say in _WEIGHT.items()]
    rows += [
        ("Update", "", *(written(f.update, "+.5f") for f in edits.values())),
        ("|update| ÷ bin width", "", *(number(f.ratio) for f in edits.values())),
        ("Code changes", "", *("yes" if f.changes else "no" for f in edits.values())),
    ]
    return Table(("Quantity", "Unedited", *edits), rows, caption)
