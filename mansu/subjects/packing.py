"""Rows of tokens run as one tree: nothing is padding, and a beginning that rows share is run once.

Attention is causal, so what a model computes at a token depends on the tokens before it only. Rows
that begin alike are therefore one path until they part. A pack lays every distinct token of such a
tree side by side, as one row, and lets each see its own ancestors at its own position. Logits and
gradients are those of the rows run one by one, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mansu.subjects.attention import added, parts_of

SIZE = {"cpu": 768, "cuda": 2048}
"""Tokens of a pack, by kind of device: matrix products want many, attention costs their square."""


def pack_size(device: torch.device) -> int:
    """Tokens of a pack on a device."""
    return SIZE.get(device.type, min(SIZE.values()))


@dataclass(frozen=True, eq=False)
class Pack:
    """Some rows as one tree of T tokens.

    Attributes:
        tokens, positions: int64 ``[T]``; a token's position is its place in its row.
        at: int64 ``[N, P]``, where each row's tokens lie; that of padding is any place.
        length: int64 ``[N]``. rows: int64 ``[N]``, which of the given rows these are.
    """

    tokens: Tensor
    positions: Tensor
    at: Tensor
    length: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def last(self) -> Tensor:
        """int64 ``[N]``: where each row's last token lies."""
        return self.at[torch.arange(len(self.at)), self.length - 1]

    @cached_property
    def real(self) -> Tensor:
        """bool ``[N, P]``: what of ``at`` is no padding."""
        return torch.arange(self.at.shape[1]) < self.length[:, None]

    def sees(self, window: int | None = None) -> Tensor:
        """bool ``[T, T]``: which tokens each token attends to: itself, those before it in its row.

        Args:
            window: only so many of them, the nearest.
        """
        found = torch.zeros(len(self), len(self), dtype=torch.bool)
        rows, places = self.real.nonzero(as_tuple=True)
        for back in range(min(int(self.length.max()), window or len(self))):
            some = places >= back
            found[self.at[rows, places][some], self.at[rows[some], places[some] - back]] = True
        return found

    def inputs(self, config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What a Hugging Face decoder is called with, but the tokens.

        Args:
            config: of the text model, for its sliding window. dtype: of its weights.
        """

        def masked(sees: Tensor) -> Any:
            mask: Any = added(sees, dtype).to(device)
            mask.parts = parts_of(sees, dtype) if device.type == "cpu" else None
            return mask

        window = getattr(config, "sliding_window", None)
        mask: Any = masked(self.sees())
        if window is not None and int(self.length.max()) > window:
            near = masked(self.sees(window))
            kinds = {"full_attention": mask, "sliding_attention": near}
            mask = kinds if getattr(config, "layer_types", None) else near
        positions = self.positions[None].to(device)
        return {"attention_mask": mask, "position_ids": positions, "use_cache": False}


Hidden = Callable[[Pack], Tensor]
"""Final hidden states of a pack's tokens, ``[T, d]``: ``Subject.hidden``, or what gives the same
sooner (``LowerLayers.hidden``)."""


def together(sets: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sets of rows, (tokens ``[n, P]``, length ``[n]``) each, as one, padded to the widest."""
    width = max(tokens.shape[1] for tokens, _ in sets)
    tokens = torch.cat([pad(tokens, (0, width - tokens.shape[1])) for tokens, _ in sets])
    return tokens, torch.cat([length for _, length in sets])


def packs(
    tokens: Tensor,
    length: Tensor,
    *,
    size: int,
    alone: Tensor | None = None,
) -> Iterator[Pack]:
    """Rows as packs of about equal sizes, ``size`` tokens at most; what begins alike is together.

    Args:
        tokens: int64 ``[N, P]``, right-padded, or ``[N, P, C]`` of rows that are alike only where
            all C channels are; then a pack's tokens are ``[T, C]``.
        length: int64 ``[N]``, real tokens a row, at least one.
        alone: bool ``[N, P]``: from the first of these tokens on a row shares none. Rows that are
            alike up to one have it in the same place.

    Use: ``for pack in packs(rows.tokens, rows.length, size=512): …``
    """
    keys = tokens.numpy() if tokens.ndim == 3 else tokens[:, :, None].numpy()
    n, width, _ = keys.shape
    real = np.arange(width) < length.numpy()[:, None]
    keys = np.where(real[:, :, None], keys, -1)
    order = np.lexsort(keys.reshape(n, -1).T[::-1])
    keys, real = keys[order], real[order]
    parted = np.ones((n, width), dtype=bool)
    parted[1:] = (keys[1:] != keys[:-1]).any(2)
    if alone is not None:
        parted |= alone.numpy()[order]
    fresh = np.maximum.accumulate(parted, axis=1) & real
    left = -(-int(fresh.sum()) // size)  # packs still to make, of about equal sizes
    first = 0
    while first < n:
        new = fresh[first:].copy()
        new[0] = real[first]
        total = new.sum(1).cumsum()
        most = min(size, -(-int(total[-1]) // max(left, 1)))
        count = max(1, int(np.searchsorted(total, most, side="right")))
        left -= 1
        new, some = new[:count], order[first : first + count]
        names = np.where(new, (new.cumsum() - 1).reshape(new.shape), 0)
        at = torch.from_numpy(np.maximum.accumulate(names, axis=0))
        rows, places = np.nonzero(new)
        found = torch.from_numpy(keys[first + rows, places])
        yield Pack(
            tokens=found if tokens.ndim == 3 else found[:, 0],
            positions=torch.from_numpy(places),
            at=at[:, : int(real[first : first + count].sum(1).max())],
            length=length[torch.from_numpy(some)],
            rows=torch.from_numpy(some),
        )
        first += count
