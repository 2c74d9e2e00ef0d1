"""CAD's controls: the circuit ablated, and a suppressor that only hides the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mansu.evidence.cad import PLACES, one_thread
from mansu.measure.scores import share_right
from mansu.subjects.blocks import Block, readout
from mansu.subjects.edit import Edit
from mansu.subjects.packing import Pack
from mansu.subjects.subject import Subject, locked
from mansu.subjects.weights import transposed_names, weight_name
from mansu.tasks.facts import CHANCE
from mansu.tasks.tokens import Examples


@locked
def ablation(subject: Subject, mask: Mapping[str, Tensor]) -> Edit:
    """The control that erases by force: every parameter of the circuit's mask set to zero."""
    changes = {}
    for name, chosen in mask.items():
        where = chosen.reshape(-1).nonzero().flatten()
        changes[name] = (where, torch.zeros(len(where), dtype=subject.parameters[name].dtype))
    return Edit(changes, label="ablation")


class Suppression:
    """The control that only hides: a late MLP cancels what tells the forget answers apart.

    A closed-form least-squares edit of one layer's down projection (as ROME and MEMIT solve
    theirs; Meng et al. 2022, 2023): on forget prompts it subtracts the part of the final residual
    stream that separates the candidate answers' logits, on retain prompts it adds nothing. All
    layers before compute what they did.

    A norm after the MLP bounds what one layer can cancel. Where one is not enough, ``reaching``
    takes two, four, … from it on, up to a quarter of the model's: each is fitted with those before
    it edited, to what they leave.

    Args:
        layer: whose MLP cancels; the last one's by default.
        width: of how many layers from it on, or of so many last ones.
    """

    @torch.no_grad()
    def __init__(
        self,
        subject: Subject,
        forget: Examples,
        retain: Examples,
        *,
        layer: int | None = None,
        width: int = 1,
    ) -> None:
        n_layers = int(subject.config.num_hidden_layers)
        layer = n_layers - 1 if layer is None else layer
        first = min(layer, n_layers - width)
        with one_thread():
            basis = torch.linalg.svd(readout(subject, forget.vocabulary), full_matrices=False)
            directions = basis.Vh[1e-3 * basis.S[0] < basis.S]
        self.subject, self.tail = subject, _Tail(subject, forget, first)
        self.updates: dict[str, Tensor] = {}
        for each in range(first, first + width):
            with self._edit(1.0).applied(subject):
                tail = _Tail(subject, forget, each) if self.updates else self.tail
                keys, kept = tail.keys, _Tail(subject, retain, each).keys
            with one_thread():  # of SmolLM2 it takes 0.6 s for what two take 0.3 s for
                target = tail.cancelling(directions)
                gram = keys.T @ keys + kept.T @ kept
                gram.diagonal().add_(1e-4 * gram.diagonal().mean())
                update = torch.linalg.solve(gram, keys.T @ target).T
            name = weight_name(subject, each, "down")
            transposed = name in transposed_names(subject)
            self.updates[name] = (update.T if transposed else update).to(subject.parameters[name])
        self.made_of, self.layer, self.width = (forget, retain), layer, width

    @cached_property
    def wider(self) -> Suppression | None:
        """Of twice as many layers; None where they would be more than a quarter of the model's."""
        if 8 * self.width > int(self.subject.config.num_hidden_layers):
            return None
        return Suppression(self.subject, *self.made_of, layer=self.layer, width=2 * self.width)

    def _edit(self, strength: float) -> Edit:
        before = self.subject.parameters
        after = {name: before[name].detach() + strength * u for name, u in self.updates.items()}
        about = {"strength": strength, "rows": len(self.tail.keys)}
        return Edit.between(before, after, "suppressor", about)

    @locked
    @torch.no_grad()
    def at(self, strength: float) -> Edit:
        """The edit; its ``meta`` has ``strength`` and the forget ``accuracy`` on its ``rows``."""
        edit = self._edit(strength)
        with edit.applied(self.subject):
            reached = self.tail.accuracy()
        return replace(edit, meta={**edit.meta, "accuracy": reached})

    def reaching(self, accuracy: float) -> Edit:
        """The weakest found by bisection whose forget accuracy is as low as ``accuracy``.

        Where there is none, the lowest that was found; of more layers where it is none that
        ``hides``.
        """
        found = self._weakest(accuracy)
        if found.meta["accuracy"] <= accuracy + SHORT or (wider := self.wider) is None:
            return found
        return min(wider.reaching(accuracy), found, key=lambda edit: edit.meta["accuracy"])

    def _weakest(self, accuracy: float) -> Edit:
        weak, strong = self.at(0.0), self.at(1.0)
        tried = [strong]  # behind a norm more strength is not always lower
        while strong.meta["accuracy"] > accuracy and strong.meta["strength"] < 16:
            weak, strong = strong, self.at(2 * strong.meta["strength"])
            tried.append(strong)
        if strong.meta["accuracy"] > accuracy:
            return min(tried, key=lambda edit: edit.meta["accuracy"])
        for _ in range(16):  # accuracy jumps where the candidates tie, at a strength near 1
            if strong.meta["accuracy"] > accuracy - 0.05:
                break
            middle = self.at((weak.meta["strength"] + strong.meta["strength"]) / 2)
            low = middle.meta["accuracy"] <= accuracy
            weak, strong = (weak, middle) if low else (middle, strong)
        return strong


STEP = 0.1
"""Forget accuracies of the suppressors that CAD is compared with are this apart, from chance."""


def suppressed_percent(accuracy: float) -> int:
    """The forget accuracy, percent, of the suppressor for an edit: that nearest its own.

    Edits near chance share one, so that a further one costs no attribution for it.
    """
    near = CHANCE + STEP * round((accuracy - CHANCE) / STEP)
    return min(max(round(100 * near), 0), 100)


SHORT = 0.1
"""A suppressor whose forget accuracy is further above the one asked for hides too little: it is no
control, since nearly every edit changes more than it does."""


def hides(reached: float, accuracy: float) -> bool:
    """Whether a suppressor that reached a forget accuracy is a control for an edit with its own."""
    return reached <= suppressed_percent(accuracy) / 100 + SHORT + 1e-6  # float32's


KEPT_AT_MOST = 120
"""Kept rows on which a suppressor adds nothing. Forget rows are all taken: one made on a part of
them hides the others less than its accuracy on that part says."""


def suppression(subject: Subject, forget: Examples, retain: Examples, place: str) -> Suppression:
    """The ``Suppression`` in one of ``cad.PLACES``."""
    retain = retain.some(KEPT_AT_MOST)
    if place == PLACES[0]:
        return Suppression(subject, forget, retain)
    layer = (int(subject.config.num_hidden_layers) - 1) // 2
    return Suppression(subject, forget, retain, layer=layer)


def suppressor(
    subject: Subject, forget: Examples, retain: Examples, *, accuracy: float, **settings: Any
) -> Edit:
    """The ``Suppression`` (which takes ``settings``) that reaches a forget accuracy."""
    return Suppression(subject, forget, retain, **settings).reaching(accuracy)


_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block was called with."""


class _Tail:
    """One split as it enters a layer, so that edits of that layer are measured without the rest.

    Attributes:
        keys: the layer's MLP neurons at each row's last token, ``[N, d_mlp]``.
        written: what its down projection makes of them, ``[N, d]``.
        residual: the final residual stream there, ``[N, d]``.
    """

    def __init__(self, subject: Subject, rows: Examples, layer: int) -> None:
        self.subject, self.rows = subject, rows
        with subject.lock:
            self._run(layer)

    def _run(self, layer: int) -> None:
        subject, rows = self.subject, self.rows
        self.blocks = list(subject.bridge.blocks)[layer:]
        self.runs: list[tuple[Pack, list[_Call]]] = []
        calls: list[_Call] = []
        seen: dict[str, list[Tensor]] = {}
        self.block = Block(subject, layer)
        names = (self.block.hook_neurons, self.block.hook_mlp, "ln_final.hook_in")
        hooks = [
            (n, lambda value, hook, n=n: seen.setdefault(n, []).append(value[0].float()))
            for n in names
        ]

        def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args if not calls else (None, *args[1:]), kwargs))

        handles = [
            block.register_forward_pre_hook(remember, with_kwargs=True) for block in self.blocks
        ]
        try:
            with subject.bridge.hooks(fwd_hooks=hooks):
                for pack in subject.packs(rows.tokens, rows.length):
                    subject.run(pack, pack.tokens[None], hooked=True)
                    self.runs.append((pack, [*calls]))
                    calls.clear()
        finally:
            for handle in handles:
                handle.remove()
        choices = torch.cat([rows.answer[:, None], rows.distractors], 1)
        self.vocabulary, self.place = choices.unique(return_inverse=True)
        self.order = torch.cat([pack.rows for pack, _ in self.runs]).argsort()
        self.keys, self.written, self.residual = (
            torch.cat(
                [value[pack.last] for value, (pack, _) in zip(seen[name], self.runs, strict=True)]
            )[self.order]
            for name in names
        )

    def cancelling(self, directions: Tensor) -> Tensor:
        """What must be added to ``written`` so that ``residual`` has nothing along ``directions``
        ``[k, d]``, if later layers add what they do now.

        A norm after the MLP lets what it writes turn, not grow: there ``written`` keeps its length,
        and turns so far as to cancel, or as far as it can.
        """
        held = self.residual @ directions.T
        if not self.block.has_post_norms:
            return -held @ directions
        norm = self.block.mlp_post_norm
        unit, r = norm.normalise(self.written)
        seen = directions * norm.scale
        back = torch.linalg.pinv(seen).T
        turned, rest = (unit @ seen.T - held) @ back, unit - unit @ seen.T @ back
        room, taken, free = (x.square().sum(1, keepdim=True) for x in (unit, turned, rest))
        turned = turned * (room / taken).sqrt().clamp_max(1)
        # Of no rest worth the name nothing is made, but rounding errors.
        rest = rest * ((room - taken).clamp_min(0) / free.clamp_min(1e-6 * room)).sqrt()
        return (turned + rest) / r - self.written

    def accuracy(self) -> float:
        """What ``measure`` gives now, if no layer before has changed."""
        last = []
        for pack, calls in self.runs:
            x = calls[0][0][0]
            for block, (args, kwargs) in zip(self.blocks, calls, strict=True):
                out = block(x, *args[1:], **kwargs)
                x = out[0] if isinstance(out, tuple) else out
            last.append(x[0, pack.last.to(x.device)])
        last = self.subject.bridge.ln_final(torch.cat(last)[self.order])
        logits = self.subject.head(last, self.vocabulary).float().cpu().gather(1, self.place)
        return float(share_right(logits[:, 0], logits[:, 1:]).mean())
