"""What every method is given to keep besides facts: text, most of it the unedited model's own.

A handful of kept facts and of written sentences says little of all that a model knows. What it says
itself, of anything and of the very things whose facts are forgotten, is drawn from what must stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mansu.subjects.own_text import WORDS, Rows, own_text
from mansu.subjects.packing import together
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, entities, pad

TEXTS, ABOUT = 24, 60
"""Texts of the model's own: of anything; and of the forgotten facts' entities, at most."""

TOKENS, ABOUT_TOKENS = 32, 12
STEMS = ("", " is a", " was", " is used", " has")
"""How a text about a thing goes on, in turn: what is said of it first is as much worth keeping as
what an association brings up."""

BEGINNINGS = (" is used in", " is a", " has", " was", " can", " is found in", " is known for")
"""How else one may go on about a thing."""


def kept_text(subject: Subject, text: Rows, forget: Examples, *, seed: int = 0) -> Rows:
    """Texts of the task, and of the subject as it now is, other ones than drift is measured on.

    Args:
        text: of the task, (tokens ``[N, T]``, length ``[N]``).
        forget: whose entities it is asked to write about.
    """
    words = [subject.encode(WORDS[i % len(WORDS)], start=True) for i in range(TEXTS)]
    things, stems = entities(forget), [subject.encode(stem) for stem in STEMS]
    things = things[:: max(1, -(-len(things) // ABOUT))]
    about = [
        [*subject.prefix, *things[i % len(things)], *stems[(i + i // len(things)) % len(stems)]]
        for i in range(ABOUT if things else 0)
    ]
    own = own_text(subject, words, TOKENS, seed=seed + 1)
    of_them = own_text(subject, about, ABOUT_TOKENS, seed=seed + 2)
    written = [_without(rows, forget.vocabulary) for rows in (own, of_them)]
    return together([rows for rows in (text, *written) if len(rows[0])])


def said_of_things(subject: Subject, forget: Examples) -> Rows:
    """Each of the things whose facts are forgotten with each beginning of what else may be said.

    The inputs that other facts about these things are read from: (tokens ``[N, T]``, length
    ``[N]``), N = 0 where the rows ask about no things.
    """
    things, stems = entities(forget), [subject.encode(stem) for stem in BEGINNINGS]
    return pad([[*subject.prefix, *thing, *stem] for stem in stems for thing in things])


def _without(rows: Rows, answers: Tensor) -> Rows:
    """The texts that hold none of the answers: they might say what is to be forgotten."""
    tokens, length = rows
    real = torch.arange(tokens.shape[1]) < length[:, None]
    keep = ~(torch.isin(tokens, answers) & real).any(1)
    return tokens[keep], length[keep]
