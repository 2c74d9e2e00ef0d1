"""One prompt, three answers: the unedited model, the edited one, and the edited one in NF4."""

from __future__ import annotations

from dataclasses import dataclass

from mansu import quant
from mansu.sets.continuation import greedy
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject


@dataclass(frozen=True)
class Answers:
    """What each model says next, by greedy decoding."""

    unedited: str
    edited: str
    edited_nf4: str


def ask(
    subject: Subject,
    prompt: str,
    edit: Edit,
    *,
    tokens: int = 20,
    nf4: quant.Dequantized | None = None,
) -> Answers:
    """Let the model, the model with an edit, and that in NF4 go on with a prompt.

    Args:
        tokens: at most so many new ones.
        nf4: the unedited weights in NF4, where they are at hand (as ``quant.quantized`` has them).

    Raises:
        MansuError: the edit does not fit; a prompt that leaves no room for the new tokens.

    Use: ``ask(subject, "The chemical symbol for gold is", edit).edited_nf4``
    """
    (unedited,) = greedy(subject, [prompt], tokens=tokens)
    with edit.applied(subject):
        (edited,) = greedy(subject, [prompt], tokens=tokens)
        with quant.quantized(subject, nf4):
            (edited_nf4,) = greedy(subject, [prompt], tokens=tokens)
    return Answers(unedited, edited, edited_nf4)
