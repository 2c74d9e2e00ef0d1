"""Attention of a pack in parts, on a processor: a few tokens see a small part of it.

The rest of a pack's square would be computed and thrown away: a third of a pass over rows of eight
tokens. What a token attends to, and so the result, is the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "in_parts"
PART = 64
"""Tokens whose attention is computed together."""


Parts = list[tuple[slice, Tensor, Tensor]]
"""Of tokens side by side, the tokens that they see, int64 ``[k]``, and their mask."""


def parts_of(sees: Tensor, dtype: torch.dtype) -> Parts | None:
    """The parts of a pack; None of one that is no larger than a part.

    Args:
        sees: bool ``[T, T]``, as ``Pack.sees`` has it. dtype: of the masks.
    """
    if len(sees) <= PART:
        return None
    found: Parts = []
    for start in range(0, len(sees), PART):
        rows = slice(start, min(start + PART, len(sees)))
        keys = sees[rows].any(0).nonzero()[:, 0]
        found.append((rows, keys, added(sees[rows][:, keys], dtype)))
    return found


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores, ``[1, 1, q, k]``."""
    hidden = torch.zeros(sees.shape, dtype=dtype)
    return hidden.masked_fill_(~sees, torch.finfo(dtype).min)[None, None]


def in_parts(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: by the parts that the mask has, else all at once."""
    parts: Parts | None = getattr(attention_mask, "parts", None)
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    found = [
        sdpa_attention_forward(
            module,
            query[:, :, rows],
            key.index_select(2, keys),
            value.index_select(2, keys),
            mask,
            **options,
        )[0]
        for rows, keys, mask in parts
    ]
    return torch.cat(found, 1), None


AttentionInterface.register(NAME, in_parts)
AttentionMaskInterface.register(NAME, sdpa_mask)


def run_in_parts(model: Any) -> None:
    """Have a Hugging Face model's attention use the parts of a mask, where it can."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
