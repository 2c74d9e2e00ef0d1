"""The metric of a pair: what attribution explains and patching measures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.tasks.tokens import Pairs

Metric = Literal["logit_difference", "log_probability", "kl"]


MEMORY = 4 << 30  # default budget, bytes


def metric_values(
    metric: Metric, logits: Tensor, pairs: Pairs, clean_log_probabilities: Tensor | None = None
) -> Tensor:
    """The metric of every pair.

    Args:
        logits: ``[N, vocabulary]`` after the last token.
        clean_log_probabilities: ``[N, vocabulary]`` of the clean run, for ``kl``.

    Returns:
        ``[N]``: logit(answer) − logit(foil); log p(answer); or KL(p_clean ‖ p), in nats.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    answer = pairs.answer.to(logits.device)[:, None]
    if metric == "logit_difference":
        foil = pairs.foil.to(logits.device)[:, None]
        return (logits.gather(1, answer) - logits.gather(1, foil))[:, 0]
    log_probabilities = logits.log_softmax(-1)
    if metric == "log_probability":
        return log_probabilities.gather(1, answer)[:, 0]
    assert clean_log_probabilities is not None
    reference = clean_log_probabilities.to(logits.device)
    return (reference.exp() * (reference - log_probabilities)).sum(-1)


def refuse_equal(clean: float, corrupt: float, metric: str) -> None:
    """Refuse a task on which there is no difference to explain.

    Raises:
        MansuError: with both numbers.
    """
    if abs(clean - corrupt) <= 1e-6 * max(abs(clean), abs(corrupt), 1e-6):
        raise MansuError(
            f"The metric {metric} is {clean:.6g} on the clean prompts and {corrupt:.6g} on the "
            "corrupt ones: there is no difference to attribute. Give corrupt prompts with another "
            "answer."
        )
