"""What to forget and what to keep: facts, and one subject's tokens of them."""

from mansu.tasks.facts import (
    FOLDER,
    N_DISTRACTORS,
    NEEDED,
    SPLITS,
    Fact,
    Task,
    load,
    parse,
    shipped,
)
from mansu.tasks.tokens import Examples, Pairs, examples, pad, pairs, text

__all__ = [
    "FOLDER",
    "NEEDED",
    "N_DISTRACTORS",
    "SPLITS",
    "Examples",
    "Fact",
    "Pairs",
    "Task",
    "examples",
    "load",
    "pad",
    "pairs",
    "parse",
    "shipped",
    "text",
]
