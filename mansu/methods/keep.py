"""What every method is given to keep besides facts: text, most of it the unedited model's own.

A handful of kept facts and of written sentences says little of all that a model knows. What it says
itself, of anything and of the very things whose facts are forgotten, is drawn from what must stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from mansu.subjects.own_text import WORDS, Rows, own_text
from mansu.subjects.packing import together
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, entities, pad

TEXTS, ABOUT = 24, 60
"""Texts of the model's own: of anything; and of the forgotten facts' entities, at most."""

TOKENS, ABOUT_TOKENS = 32, 12
LEAST = 6
"""Tokens of a text that was cut off, at least: fewer are the beginning of a prompt."""

STEMS = ("", " is a", " was", " is used", " has")
"""How a text about a thing goes on, in turn: what is said of it first is as much worth keeping as
what an association brings up."""

FRAMES = (
    "_ is used in", "_ is a", "_ has", "_ was", "_ can", "_ is found in", "_ is known for",
    "_ comes from", "_ is often", "The color of _ is", "The meaning of _ is", "The history of _ is",
    "The price of _ is", "The best thing about _ is", "The main reason for _ is",
    "The problem with _ is", "An example of _ is", "A piece of _ is", "We need _ for",
    "We need _ to", "People use _ as", "Most people think _ is", "He was looking for _ in",
    "She told me that _ is a", "In the story, _ was", "They bought _ and", "Without _,",
    "I read that _ can", "This kind of _ is called", "Something like _ is",
    "At school we learn that _ is", "You can find _ in",
)  # fmt: skip
"""What else may be said of a thing, ``_``."""

Things = Sequence[Sequence[int]]
"""Token ids of each, as ``entities`` gives them."""

COMMON = (
    "time", "water", "light", "music", "work", "house", "cold", "hot", "school", "man", "animal",
    "tree", "book", "city", "night", "war", "love", "food", "money", "car", "river", "big", "old",
    "happy", "fast", "sleep", "green", "stone", "child", "sea", "horse", "winter", "bread", "king",
    "door", "salt", "paper", "fear", "north", "blue", "Paris", "John", "summer", "doctor", "fire",
    "ship", "sugar", "law",
)  # fmt: skip
"""Things that no task of ours is about, of which the same is asked."""

FRAMES_EACH = 8
"""Of the frames, so many for each thing, other ones for the next. A subject that knows fewer of
them, a toy, is asked of none."""

BEGINNINGS = 7
"""So many frames that begin with the thing are asked of every thing where a projection protects
it: more would leave nothing to be forgotten by."""


def kept_text(subject: Subject, text: Rows, forget: Examples, *, seed: int = 0) -> Rows:
    """Texts of the task, and of the subject as it now is, other ones than drift is measured on.

    Args:
        text: of the task, (tokens ``[N, T]``, length ``[N]``).
        forget: whose entities it is asked to write about.
    """
    begun = [subject.encode(word, start=True) for word in WORDS]
    words = list(islice(cycle([start for start in begun if _known(subject, start)]), TEXTS))
    things = entities(forget)
    stems = [stem for stem in map(subject.encode, STEMS) if _known(subject, stem)]
    things = things[:: max(1, -(-len(things) // ABOUT))]
    about = [
        [*subject.prefix, *things[i % len(things)], *stems[(i + i // len(things)) % len(stems)]]
        for i in range(ABOUT if things else 0)
    ]
    own = own_text(subject, words, TOKENS, seed=seed + 1)
    of_them = own_text(subject, about, ABOUT_TOKENS, seed=seed + 2)
    free = _before if subject.is_toy else _without
    written = [free(rows, forget.vocabulary) for rows in (own, of_them)]
    return together([rows for rows in (text, *written) if len(rows[0])])


def said_of(subject: Subject, things: Things) -> Rows:
    """Each thing in the first ``BEGINNINGS`` frames: (tokens ``[N, T]``, length ``[N]``)."""
    frames = _frames(subject)[:BEGINNINGS]
    return pad([[*a, *thing, *b] for thing in things for a, b in frames])


def prompts_of(subject: Subject, things: Things) -> Rows:
    """Each thing in ``FRAMES_EACH`` of the frames, in turn: (tokens ``[N, T]``, length ``[N]``)."""
    turn = cycle(_frames(subject))
    return pad([[*a, *thing, *b] for thing in things for a, b in islice(turn, FRAMES_EACH)])


def _frames(subject: Subject) -> list[tuple[list[int], list[int]]]:
    """What comes before a thing and after it, for the frames whose every word the subject knows."""
    parts = [[subject.encode(part.rstrip()) for part in frame.split("_")] for frame in FRAMES]
    known = [(a, b) for a, b in parts if _known(subject, a) and _known(subject, b)]
    return [([*subject.prefix, *a], b) for a, b in known] if len(known) >= FRAMES_EACH else []


def common(subject: Subject) -> list[list[int]]:
    """``COMMON`` as a subject reads them amid a sentence, but for those that it does not know."""
    found = (subject.encode(f" {word}") for word in COMMON)
    return [thing for thing in found if _known(subject, thing)]


def _known(subject: Subject, tokens: Sequence[int]) -> bool:
    return subject.tokenizer.unk_token_id not in tokens


def _before(rows: Rows, answers: Tensor) -> Rows:
    """The texts up to the word that an answer follows, but for short ones: a toy's few sentences
    say one so often that hardly a text is free of them."""
    tokens, length = rows
    real = torch.arange(tokens.shape[1]) < length[:, None]
    says = torch.isin(tokens, answers) & real
    free = torch.where(says.any(1), says.int().argmax(1) - 1, length)
    return pad([row[:n].tolist() for row, n in zip(tokens, free, strict=True) if n >= LEAST])


def _without(rows: Rows, answers: Tensor) -> Rows:
    """The texts that hold none of the answers: they might say what is to be forgotten."""
    tokens, length = rows
    real = torch.arange(tokens.shape[1]) < length[:, None]
    keep = ~(torch.isin(tokens, answers) & real).any(1)
    return tokens[keep], length[keep]
