"""The signal: what the circuit's nodes write differently for one forget fact than for another.

An objective on the output alone teaches a model to hide an answer that its nodes still write; so a
rephrasing, a few steps of relearning, or a metric of the writes (signal CAD) finds it. This one
asks that what attention and MLPs of the circuit write at a prompt's last token is the same for
every fact that is asked for in one form: how much it differs is divided by how much it did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mansu.subjects.packing import Pack
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of, layer_of, weight_name
from mansu.tasks.tokens import Examples, forms

ATTENTION = ("q", "k", "v", "o", "qkv")
MLP = ("gate", "up", "gate and up", "down")


class Signal:
    """The share of the unedited model's signal that is still there, differentiable.

    Args:
        mask: the circuit's parameters. A layer's attention or MLP is looked at where the mask has
            weights of it, and counts by how many.

    Attributes:
        forms: int64 ``[N]``: rows of one form of asking have one number.

    Use: ``with signal.watched() as seen: hidden = subject.hidden(pack)``, then
    ``signal.share(seen, pack, rows)``.
    """

    def __init__(self, subject: Subject, forget: Examples, mask: Mapping[str, Tensor]) -> None:
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
        self.forms = forms(forget)
        self.before = self._variances(forget)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Tensor]]:
        """What is written by name, ``[T, d]``, of a run inside the block."""
        seen: dict[str, Tensor] = {}
        handles = []
        for name in self.weights:
            module = self.subject.plain.get_submodule(name.removesuffix(".weight"))

            def see(module: object, inputs: object, output: Tensor, name: str = name) -> None:
                seen[name] = output[0]

            handles.append(module.register_forward_hook(see))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def share(self, seen: Mapping[str, Tensor], pack: Pack, rows: Tensor, form: Tensor) -> Tensor:
        """Mean over the writes of what is left of the variance within a form, 1 at the start.

        Args:
            seen: of ``watched``. rows: bool ``[B]``, the pack's rows that are meant.
            form: int64, of those rows.
        """
        total = torch.zeros((), device=self.subject.device)
        for name, weight in self.weights.items():
            written = seen[name][pack.last[rows].to(total.device)].float()
            found, before = written.new_zeros(()), written.new_zeros(())
            for one in form.unique().tolist():
                some = written[(form == one).to(written.device)]
                if len(some) > 1:
                    found = found + len(some) * some.var(0).sum()
                    before = before + len(some) * self.before[name][one]
            total = total + weight * found / before.clamp_min(1e-12)
        return total

    @torch.no_grad()
    def _variances(self, forget: Examples) -> dict[str, Tensor]:
        """By write, of each form: Σ over the width of the variance over facts, ``[forms]``."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        order = []
        for pack in self.subject.packs(forget.tokens, forget.length):
            with self.watched() as seen:
                self.subject.hidden(pack)
            order.append(pack.rows)
            for name, written in seen.items():
                found[name].append(written[pack.last.to(written.device)].float())
        place = torch.cat(order).argsort()
        variances = {}
        for name, parts in found.items():
            written = torch.cat(parts)[place.to(parts[0].device)]
            by_form = [
                written[(self.forms == form).to(written.device)] for form in self.forms.unique()
            ]
            variances[name] = torch.stack(
                [w.var(0).sum() if len(w) > 1 else w.new_zeros(()) for w in by_form]
            )
        return variances
