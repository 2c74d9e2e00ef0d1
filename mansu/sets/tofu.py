"""TOFU (arXiv 2401.06121): ROUGE-L recall, answer probability, truth ratio, utility, quality.

As the paper writes them. The authors' code (github.com/locuslab/tofu at bdc209e) agrees but for
these: it scores at most 300 rows of a set; it counts the end token among an answer's and, in the
prompt used here, the word "Answer:", which its greedy answers say themselves; and its truth ratio
is of mean losses (``aggregate_eval_stat.py``), a geometric mean of the wrong answers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hmean, ks_2samp

from mansu.errors import MansuError
from mansu.progress import OnStep, silent
from mansu.sets import hub
from mansu.sets.continuation import greedy, log_probabilities, rouge_l
from mansu.subjects.subject import Subject

SCHEMA = {"question": "a string", "answer": "a string"}


PERTURBED = {"paraphrased_answer": "a string", "perturbed_answer": hub.LISTS}


WORLD = ("real_authors", "world_facts")
"""Sets whose probability is taken among the given answers (TOFU §2.2.2)."""


LENGTH = 200
"""Tokens of a prompt and its greedy answer together, at most, as in the authors' code."""


@dataclass(frozen=True)
class Row:
    """One question; without perturbed answers it has no truth ratio.

    Attributes:
        paraphrased: the answer in other words (the ``real_authors`` and ``world_facts`` sets have
            none: it is the answer itself). perturbed: wrong answers in the same form.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]


def read(source: str, *, split: str = "train") -> list[Row]:
    """The rows of one of TOFU's sets, e.g. ``forget10_perturbed`` (see ``hub.read``).

    Raises:
        MansuError: it cannot be read, or a column is missing or of another type.
    """
    rows = hub.read(source, SCHEMA, optional=PERTURBED, split=split)
    return [
        Row(
            row["question"].strip(),
            row["answer"].strip(),
            row.get("paraphrased_answer", row["answer"]).strip(),
            tuple(a.strip() for a in row.get("perturbed_answer") or ()),
        )
        for row in rows
    ]


def prompt(question: str) -> str:
    """The prompt that TOFU's code trains models on which have no chat format of their own."""
    return f"Question: {question}\nAnswer:"


def probability(subject: Subject, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """P(a|q)^(1/|a|), the geometric mean over the answer's tokens: ``[N]``."""
    found = log_probabilities(subject, [prompt(q) for q in questions], [f" {a}" for a in answers])
    return np.array([np.exp(row.mean()) for row in found])


def truth_ratio(paraphrased: np.ndarray, perturbed: Sequence[np.ndarray]) -> np.ndarray:
    """TOFU's equation 1: mean probability of the wrong answers ÷ that of the right one.

    Args:
        paraphrased: ``[N]``, P(ã|q)^(1/|ã|). perturbed: N arrays of P(â|q)^(1/|â|).

    Returns:
        ``[N]``: near 0 where the model knows the truth, about 1 where it cannot tell.
    """
    return np.array([wrong.mean() for wrong in perturbed]) / paraphrased


def scores(
    subject: Subject,
    rows: Sequence[Row],
    *,
    world: bool = False,
    tokens: int | None = None,
    on_step: OnStep = silent,
) -> dict[str, np.ndarray]:
    """The three measures by row, on the subject as it now is.

    Args:
        world: take the probability among the given answers, P(a) ÷ (P(a) + Σ P(â)), as TOFU does
            for its real-world sets.
        tokens: the longest greedy answer; by default what the longest prompt leaves of ``LENGTH``,
            or of the context where that is shorter.

    Returns:
        ``rouge`` ``[N]`` (ROUGE-L recall of the greedy answer), ``probability`` ``[N]`` and, where
        every row has perturbed answers, ``truth_ratio`` ``[N]``.
    """
    questions = [r.question for r in rows]
    prompts = [prompt(q) for q in questions]
    if tokens is None:
        longest = max(len(subject.encode(p, start=True)) for p in prompts)
        tokens = max(min(LENGTH, subject.context or LENGTH) - longest, 1)
    said = greedy(subject, prompts, tokens=tokens, on_step=on_step)
    own = probability(subject, questions, [r.answer for r in rows])
    found = {
        "rouge": rouge_l([r.answer for r in rows], said, "recall", stem=True),
        "probability": own,
    }
    if not all(r.perturbed for r in rows):
        return found
    asked = [r.question for r in rows for _ in r.perturbed]
    flat = probability(subject, asked, [a for r in rows for a in r.perturbed])
    wrong = np.split(flat, np.cumsum([len(r.perturbed) for r in rows])[:-1])
    if world:
        found["probability"] = own / (own + np.array([w.sum() for w in wrong]))
    paraphrased = probability(subject, questions, [r.paraphrased for r in rows])
    return {**found, "truth_ratio": truth_ratio(paraphrased, wrong)}


def utility(kept: Mapping[str, Mapping[str, np.ndarray]]) -> float:
    """Model utility: the harmonic mean of all measures over the sets to keep (TOFU §2.2.2).

    The truth ratio R enters as max(0, 1 − R), so that more is better.

    Args:
        kept: set → its ``scores``.

    Raises:
        MansuError: a set has no truth ratio.
    """
    means = []
    for name, found in kept.items():
        if "truth_ratio" not in found:
            raise MansuError(
                f"The set {name!r} has no perturbed_answer, which model utility needs: give its "
                "_perturbed config."
            )
        known = np.maximum(0, 1 - found["truth_ratio"])
        means += [found["rouge"].mean(), found["probability"].mean(), known.mean()]
    return float(hmean(means))


def forget_quality(truth_ratios: np.ndarray, reference: np.ndarray) -> float:
    """p of a two-sample Kolmogorov–Smirnov test: can the two models be told apart?

    Args:
        truth_ratios: of the forget set after unlearning. reference: of the same set for a model
            that never saw it.

    Returns:
        p in 0 to 1; above 0.05 they cannot be told apart.
    """
    return float(ks_2samp(truth_ratios, reference).pvalue)  # type: ignore[union-attr]
