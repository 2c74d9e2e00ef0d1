"""One line of text for a record of work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mansu.progress import Step
from mansu.show.numbers import minus

STAGES: Mapping[str, str] = {
    "load": "loading",
    "base": "unedited model",
    "base_nf4": "unedited model in NF4",
    "base_attacks": "attacks on the unedited model",
    "reference": "relearning of the reference",
    "unlearn": "",
    "by_format": "other formats",
    "cad": "CAD",
}
"""What a stage is called where its own name says too little; a method at work needs no word."""

VALUES: Mapping[str, str] = {
    "forget_loss": "forget loss {:.3f}",
    "retain_loss": "retain loss {:.4f}",
    "forget": "forget {:.3f}",
    "retain": "retain {:.3f}",
    "text": "text {:.3f}",
    "moved": "{:,.0f} weights moved",
    "forget_accuracy": "forget accuracy {:.1%}",
    "forget_accuracy_nf4": "in NF4 {:.1%}",
    "retain_fall": "fall of retain accuracy {:.1%}",
    "in_nf4": "",
}
"""How values are written; those without an entry by their name, those with an empty one not."""


def enumerated(words: Iterable[str]) -> str:
    """``a, b and c``; nothing of none."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def capitalised(text: str) -> str:
    """With a capital first letter, and the others as they are: ``PTQ gap``, ``This edit, NF4``."""
    return text[:1].upper() + text[1:]


def sentence(step: Step) -> str:
    """The record as text, e.g. ``mansu: step 3 of 36: forget loss 1.203, 812 weights moved``."""
    count = f"{step.done:,} of {step.total:,}"
    at = f"step {count}" if step.total > 1 else ""
    if step.part:
        at = f"{step.part} ({count})" if step.done else step.part
    values = (
        minus(VALUES.get(name, f"{name.replace('_', ' ')} {{:.4g}}").format(value))
        for name, value in step.values.items()
    )
    stage = STAGES.get(step.stage, step.stage)
    return ": ".join(filter(None, [step.method, stage, at, ", ".join(filter(None, values))]))
