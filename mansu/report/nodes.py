"""Tables of what a node writes: its direct contribution to the logits, and its neurons'."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mansu.circuits.lens import Asked, Neurons, words
from mansu.show.numbers import written
from mansu.show.table import Table
from mansu.subjects.subject import Subject


def contributions(
    subject: Subject, asked: Asked, models: Mapping[str, Tensor], caption: str = ""
) -> Table:
    """A row a model: what the node adds to the logit of the answer, of the foil, and the two apart.

    Args:
        models: title → ``[vocabulary]``, as ``Look.promoted`` has it.
    """
    ends = asked.ends
    head = [f"To the logit of {word}" for word in words(subject, ends)]
    rows = []
    for title, promoted in models.items():
        values = [float(promoted[token]) for token in ends]
        apart = [values[0] - values[1]] if len(values) > 1 else []
        rows.append((title, *(written(value, "+.3f") for value in [*values, *apart])))
    more = ["Apart"] if len(ends) > 1 else []
    return Table(("Direct contribution", *head, *more), rows, caption)


def neurons(subject: Subject, models: Mapping[str, Neurons], caption: str = "") -> Table:
    """A row a neuron that is among the strongest of a model: its effect in each, what it raises."""
    raised: dict[int, str] = {}
    for found in models.values():
        for neuron, tokens in zip(found.top.tolist(), found.raised, strict=True):
            raised.setdefault(neuron, " ".join(words(subject, tokens)))
    rows = [
        (
            str(neuron),
            *(written(float(found.effect[neuron]), "+.3f") for found in models.values()),
            tokens,
        )
        for neuron, tokens in raised.items()
    ]
    head = ("Neuron", *models, "It raises")
    return Table(head, rows, caption, "<" + ">" * len(models) + "<")
