"""The signal: what the nodes that move write differently for one forget fact than for another.

An objective on the output alone teaches a model to hide an answer that its nodes still write; so a
rephrasing, a few steps of relearning, or a metric of the writes (signal CAD) finds it. This one
asks that the attention and MLPs whose weights may move write at a prompt's last token, whichever
fact it asks for, what they write in that form of asking on average, so far as it tells the
candidate answers apart. What else they write is not of these facts alone.

How far a write is from that is divided by how far it was. It is the distance and not its square,
whose pull fades with what is left: held-out rephrasings are answered from what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mansu.subjects.blocks import Block, readout
from mansu.subjects.packing import Hidden
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of, layer_of, weight_name
from mansu.tasks.tokens import Examples, forms

ATTENTION = ("q", "k", "v", "o", "qkv")
MLP = ("gate", "up", "gate and up", "down")


class Signal:
    """The share of the unedited model's signal that is still there, differentiable.

    Args:
        mask: the parameters that may move. A layer's attention or MLP is looked at where the mask
            has weights of it, and counts by how many.
        hidden: what runs a pack of the forget rows; by default ``subject.hidden``.

    Attributes:
        weights: name of a writing weight → its share of the mask.
        writers: that name → the module whose output is what is written.
        forms: int64 ``[N]``: rows of one form of asking have one number.
        readout: what tells the answers' logits apart, ``[V, d]``.
        means, spreads: of the unedited model, by name: what it writes of that in each form on
            average, ``[forms, V]``, and the mean distance of a fact's write from that, ``[forms]``.
        final: its final hidden states at the rows' last tokens, ``[N, d]``.

    Use: ``with signal.watched() as seen: subject.hidden(pack)``, then
    ``signal.share(seen, pack.last, signal.forms[pack.rows])``.
    """

    def __init__(
        self,
        subject: Subject,
        forget: Examples,
        mask: Mapping[str, Tensor],
        hidden: Hidden | None = None,
    ) -> None:
        self.subject = subject
        counts: dict[str, int] = {}
        for name, chosen in mask.items():
            layer, kind = layer_of(subject, name), kind_of(subject, name)
            role = "o" if kind in ATTENTION else "down" if kind in MLP else None
            if layer is not None and role is not None:
                write = weight_name(subject, layer, role)
                counts[write] = counts.get(write, 0) + int(chosen.sum())
        total = sum(counts.values())
        self.weights = {name: count / total for name, count in counts.items()}
        self.writers = {name: self._writer(name) for name in counts}
        self.forms = forms(forget)
        self.readout = readout(subject, forget.vocabulary)
        self.means: dict[str, Tensor] = {}
        self.spreads: dict[str, Tensor] = {}
        self._measure(forget, hidden or subject.hidden)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Tensor]]:
        """What the stream is given by name, ``[T, d]``, of a run inside the block."""
        seen: dict[str, Tensor] = {}
        handles = []
        for name in self.weights:

            def see(module: object, inputs: object, output: Tensor, name: str = name) -> None:
                seen[name] = output[0]

            module = self.subject.plain.get_submodule(self.writers[name])
            handles.append(module.register_forward_hook(see))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _writer(self, name: str) -> str:
        """The module whose output the stream gets: a weight's map, or the norm after it."""
        layer = layer_of(self.subject, name)
        assert layer is not None
        block = Block(self.subject, layer)
        if block.has_post_norms:
            norm = (
                block.post_norm if kind_of(self.subject, name) in ATTENTION else block.mlp_post_norm
            )
            named = self.subject.parameters.items()
            (name,) = (found for found, weight in named if weight is norm.module.weight)
        return name.removesuffix(".weight")

    def share(self, seen: Mapping[str, Tensor], at: Tensor, form: Tensor) -> Tensor:
        """Of each of some rows, how far from the form's mean its writes are, ``[B]``.

        Over the mean of that in the unedited model, mean over the writes by weight: at the start it
        is 1 on average (0 in a form that asks for one fact, whose writes are all alike).

        Args:
            seen: of ``watched``. at: int64 ``[B]``, the rows' last tokens in that run.
            form: int64 ``[B]``, the rows' forms.
        """
        total = torch.zeros(len(at), device=self.subject.device)
        for name, weight in self.weights.items():
            written = self._of_answers(seen[name], at)
            mean, spread = self.means[name][form], self.spreads[name][form]
            away = (written - mean).norm(dim=1)
            alike = spread < 1e-3 * mean.norm(dim=1)  # a form of one fact
            total = total + weight * torch.where(alike, 0.0, away / spread.clamp_min(1e-12))
        return total

    def _of_answers(self, written: Tensor, at: Tensor) -> Tensor:
        """What is written at some tokens, as the answers' logits read it, ``[B, V]``."""
        return written[at.to(written.device)].float() @ self.readout.to(written.device).T

    @torch.no_grad()
    def _measure(self, forget: Examples, hidden: Hidden) -> None:
        """The unedited model's mean write of each form, and the mean distance from it."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        order, final = [], []
        for pack in self.subject.packs(forget.tokens, forget.length):
            with self.watched() as seen:
                states = hidden(pack)
            order.append(pack.rows)
            final.append(states[pack.last.to(states.device)])
            for name, written in seen.items():
                found[name].append(self._of_answers(written, pack.last))
        rows = torch.cat(order)
        self.final = torch.cat(final)[rows.argsort().to(final[0].device)]
        form = self.forms[rows]
        count = form.bincount()[:, None]
        for name, parts in found.items():
            written = torch.cat(parts).float()  # products may be of bfloat16, means are not
            where = form.to(written.device)
            zero = written.new_zeros(len(count), written.shape[1])
            mean = zero.index_add(0, where, written) / count.to(written.device)
            away = (written - mean[where]).norm(dim=1)
            spread = zero[:, 0].index_add(0, where, away) / count[:, 0].to(written.device)
            self.means[name], self.spreads[name] = mean, spread
