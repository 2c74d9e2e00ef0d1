"""The layers below the first one that moves: run once, and begun after from then on.

Attention is causal and a layer reads only what the one below it leaves. So while nothing below a
layer changes, what enters it for the same rows is the same, whatever an edit does above::

    lower = LowerLayers(subject, length, [first])     # rows of these lengths
    hidden = lower.hidden(pack)                       # all layers, the first time
    with edit.applied(subject):                       # of ``first`` and above
        hidden = lower.hidden(pack, changed=first)    # from ``first`` on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mansu.subjects.packing import Pack
from mansu.subjects.subject import Subject
from mansu.subjects.weights import family_of, layer_of

SHARE, LEAST = 1 / 8, 64 << 20
"""What is kept takes no more than this share of the weights' bytes, or so many bytes: of many long
prompts it would be more than it is worth, and every run is of all layers."""


def first_changed(subject: Subject, names: Iterable[str]) -> int:
    """The first layer with one of the named parameters; 0 where one is in no layer."""
    return min((layer_of(subject, name) or 0 for name in names), default=0)


def quarters(subject: Subject) -> tuple[int, ...]:
    """A quarter, half and three quarters up a subject: boundaries for what may move anywhere."""
    layers = int(subject.config.num_hidden_layers)
    return tuple(sorted({layers * part // 4 for part in (1, 2, 3)} - {0}))


class LowerLayers:
    """What enters some layers of a subject, kept for rows that run again: the same to rounding,
    and to the last bit where they run in the same packs.

    Args:
        length: int64 ``[N]``, real tokens of each row.
        boundaries: layers that may be begun at, ascending. Each takes a vector a token.
    """

    def __init__(self, subject: Subject, length: Tensor, boundaries: Sequence[int]) -> None:
        self.subject, boundaries = subject, tuple(b for b in boundaries if b > 0)
        self._first, self._total = length.cumsum(0) - length, int(length.sum())
        size = self._total * int(subject.config.hidden_size) * subject.dtype.itemsize
        room = max(LEAST, SHARE * sum(p.nbytes for p in subject.parameters.values()))
        self.boundaries = boundaries if size * len(boundaries) <= room else ()
        self._known = torch.zeros(len(length), dtype=torch.bool)
        self._entering: dict[int, Tensor] = {}

    def hidden(
        self,
        pack: Pack,
        *,
        rows: Tensor | None = None,
        tokens: Tensor | None = None,
        changed: int | None = None,
    ) -> Tensor:
        """Final hidden states of a pack's tokens, ``[T, d]``, as ``Subject.hidden`` has them.

        Args:
            rows: int64, which of the rows those of the pack are; by default as the pack says.
            tokens: as ``Subject.hidden``. changed: the first layer that is not as it was when what
                enters was kept; None: no layer.
        """
        subject, rows = self.subject, pack.rows if rows is None else rows
        usable = [b for b in self.boundaries if changed is None or b <= changed]
        if not usable:
            return subject.hidden(pack, tokens=tokens)
        own, within = pack.real.nonzero(as_tuple=True)
        kept, at = self._first[rows[own]] + within, pack.at[pack.real]
        with subject.lock:
            if bool(self._known[rows].all()):
                place = torch.empty(len(pack), dtype=torch.long)
                place[at] = kept
                entering = self._entering[usable[-1]]
                entering = entering[place.to(entering.device)]
                with _begun_at(subject, usable[-1], entering[None]):
                    return subject.hidden(pack, tokens=tokens)
            if usable != list(self.boundaries):  # others would be kept as they are no longer
                return subject.hidden(pack, tokens=tokens)
            with _seen_entering(subject, self.boundaries) as seen:
                hidden = subject.hidden(pack, tokens=tokens)
            for layer, entering in seen.items():
                if layer not in self._entering:
                    shape = self._total, entering.shape[-1]
                    self._entering[layer] = entering.new_empty(shape)
                device = entering.device
                self._entering[layer][kept.to(device)] = entering[at.to(device)]
            self._known[rows] = len(seen) == len(self.boundaries)
        return hidden


def _layers(subject: Subject) -> Any:
    return subject.plain.get_submodule(family_of(subject).layers)


@contextmanager
def _seen_entering(subject: Subject, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What enters some layers in a run inside the block, by layer, ``[T, d]``."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:

            def see(module: Module, inputs: Any, layer: int = layer) -> None:
                seen[layer] = inputs[0][0].detach()

            hook = _layers(subject)[layer].register_forward_pre_hook(see)
            hooks.callback(hook.remove)
        yield seen


@contextmanager
def _begun_at(subject: Subject, layer: int, entering: Tensor) -> Iterator[None]:
    """``entering`` ``[1, T, d]`` enters a layer inside the block, and those below it do nothing."""

    def through(hidden: Tensor, *inputs: Any, **named: Any) -> Tensor:
        return entering

    # An own ``forward`` of a module may be there already: where a device map offloads it.
    below = _layers(subject)[:layer]
    before = [module.__dict__.get("forward") for module in below]
    try:
        for module in below:
            module.forward = through
        yield
    finally:
        for module, own in zip(below, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own
