"""What to forget and what to keep: facts, and one subject's tokens of them."""

from mansu.tasks.facts import (
    FOLDER,
    N_DISTRACTORS,
    NEEDED,
    SPLITS,
    SUFFIXES,
    Fact,
    Task,
    load,
    parse,
    problems,
    shipped,
)
from mansu.tasks.tokens import Examples, Pairs, Reading, examples, pad, pairs, read, text

__all__ = [
    "FOLDER",
    "NEEDED",
    "N_DISTRACTORS",
    "SPLITS",
    "SUFFIXES",
    "Examples",
    "Fact",
    "Pairs",
    "Reading",
    "Task",
    "examples",
    "load",
    "pad",
    "pairs",
    "parse",
    "problems",
    "read",
    "shipped",
    "text",
]
