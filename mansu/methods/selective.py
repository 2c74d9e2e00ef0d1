"""Which of a mask's weights may move: those that the forget facts hang on more than the rest.

A circuit's heads and neurons do more than the forget facts, and few of their weights are the
facts' alone. Weights are ranked by their diagonal Fisher information of the forget facts over that
of what is kept (as Foster et al. 2024, arXiv 2308.07707, choose what to dampen).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FAINT = 1e-3
"""Of a weight matrix's mean retain Fisher: less than that says nothing of one weight."""


def selective(
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor] | None,
    mask: Mapping[str, Tensor],
    count: int,
) -> dict[str, Tensor]:
    """A part of a mask: its ``count`` weights of the largest F_forget ÷ F_retain, if it has more.

    Args:
        forget, retain: name → ``[n]``, the diagonal Fisher at the mask's entries
            (``geometry.fisher``); without ``retain``, by that of the forget facts alone.
        mask: name → bool, of the weight's shape.

    Returns:
        name → bool, of the weights of which some are left.

    Use: ``selective(fisher(subject, forget, none, mask), fisher(subject, retain, text, mask),
    mask, count)``
    """
    if sum(int(chosen.sum()) for chosen in mask.values()) <= count:
        return dict(mask)
    ranked = [
        forget[name] if retain is None else forget[name] / (retain[name] + _least(retain[name]))
        for name in mask
    ]
    sizes = [len(values) for values in ranked]
    best = torch.zeros(sum(sizes), dtype=torch.bool)
    best[torch.cat(ranked).topk(count).indices] = True
    found = {}
    for (name, chosen), some in zip(mask.items(), best.split(sizes), strict=True):
        if some.any():
            found[name] = torch.zeros_like(chosen).masked_scatter_(chosen, some.to(chosen.device))
    return found


def _least(retain: Tensor) -> Tensor:
    return (FAINT * retain.mean()).clamp_min(1e-30)
