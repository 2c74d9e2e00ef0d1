"""Circuit Attribution Divergence: was the circuit erased, or is the behaviour only suppressed?

CAD is the Jensen–Shannon divergence (base 2, so 0 to 1) between the normalised magnitudes of the
edge attributions of the forget task before and after an edit. It means something only beside its
controls: the same model on another half of the data (the noise floor), an output-layer suppressor
with the same forget accuracy, and the circuit ablated.

An edge's attribution is a product: what its node writes, times how sensitive the metric is to it.
A suppressor at the output makes the metric insensitive to *every* node, so plain CAD calls it an
erasure (measured: it scores as high as MANSU). *Signal CAD* holds the sensitivities at those of the
unedited model and lets only what the nodes write differ: is the knowledge still written into the
residual stream? That separates the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mansu.attribution import attribute, differences, sensitivities
from mansu.edit import Edit
from mansu.evaluate import Interval, measure
from mansu.graph import graph_of
from mansu.subjects import WRAPPER, Subject
from mansu.tasks import Examples, Pairs

GROUPS = 8
RESAMPLES = 200
TOP = 100


@dataclass(frozen=True)
class Divergences:
    """CAD of an edit and of its controls; None where it was not measured.

    Attributes:
        edited: of the edit in full precision; edited_nf4: after NF4, against the same base.
        noise_floor: the unedited model, half the pairs against the other half.
        suppressor, ablation: of the controls.
        signal, signal_nf4, signal_suppressor, signal_ablation: the same with the unedited model's
            sensitivities (signal CAD).
        suppressor_accuracy: the suppressor's forget accuracy, to be near the edit's.
        rank_correlation: Spearman's, of edge magnitudes before and after the edit.
        top_overlap: share of the strongest ``TOP`` edges that are still among the strongest.
    """

    edited: Interval
    edited_nf4: Interval | None = None
    noise_floor: Interval | None = None
    suppressor: Interval | None = None
    ablation: Interval | None = None
    signal: Interval | None = None
    signal_nf4: Interval | None = None
    signal_suppressor: Interval | None = None
    signal_ablation: Interval | None = None
    suppressor_accuracy: float | None = None
    rank_correlation: float | None = None
    top_overlap: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            name: value.to_json() if isinstance(value, Interval) else value
            for name, value in self.__dict__.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Divergences:
        values: dict[str, Any] = {
            name: Interval(*v) if isinstance(v, list) else v for name, v in value.items()
        }
        return cls(**values)


def grouped_scores(
    subject: Subject,
    pairs: Pairs,
    *,
    steps: int = 5,
    groups: int = GROUPS,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Edge scores by group of pairs, so that CAD's interval can be bootstrapped over groups.

    Pairs are dealt to groups in turn; scores of a group are summed over its pairs. An edited
    model may give the same metric on clean and corrupt prompts: that is what erasure looks like,
    and it is not refused here.

    Returns:
        float32 ``[groups, n_sources, n_destinations]``.
    """
    groups = min(groups, len(pairs))
    scores = []
    for g in range(groups):
        some = pairs.select(range(g, len(pairs), groups))
        part = attribute(subject, some, steps=steps, allow_equal=True)
        scores.append(part.scores * len(some))
        if progress is not None:
            progress(g + 1, groups)
    return torch.stack(scores)


class Signals:
    """Edge scores with the unedited model's sensitivities, by group of pairs.

    Made on the unedited model; called inside ``edit.applied(subject)`` it gives
    float32 ``[groups, n_sources, n_destinations]`` of the edited one, at the cost of two forward
    passes. Called on the unedited model it gives what ``grouped_scores`` does.
    """

    def __init__(
        self,
        subject: Subject,
        pairs: Pairs,
        *,
        steps: int = 5,
        groups: int = GROUPS,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.subject, self.edges = subject, graph_of(subject).edges
        groups = min(groups, len(pairs))
        self.parts = [pairs.select(range(g, len(pairs), groups)) for g in range(groups)]
        self.reads: list[Tensor] = []
        for part in self.parts:
            self.reads.append(sensitivities(subject, part, steps=steps).flatten(1).cpu())
            if progress is not None:
                progress(len(self.reads), groups)

    def __call__(self) -> Tensor:
        return torch.stack(
            [
                differences(self.subject, part).flatten(1).cpu() @ read.T * self.edges
                for part, read in zip(self.parts, self.reads, strict=True)
            ]
        )


def divergence(before: Tensor, after: Tensor) -> float:
    """Jensen–Shannon divergence (base 2) of two edge-score tensors of any equal shape.

    Magnitudes are normalised to sum to 1. If one tensor is all zero there is no distribution: the
    divergence is 1, or 0 if both are.
    """
    p, q = before.double().abs().flatten(), after.double().abs().flatten()
    if p.sum() == 0 or q.sum() == 0:
        return float((p.sum() == 0) != (q.sum() == 0))
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    total = torch.special.xlogy(p, p / m.clamp_min(1e-300)).sum()
    total += torch.special.xlogy(q, q / m.clamp_min(1e-300)).sum()
    return float((total / 2 / np.log(2)).clamp(0, 1))


def cad(before: Tensor, after: Tensor, *, seed: int = 0) -> Interval:
    """CAD between grouped scores ``[groups, …]``, with its bootstrap interval over groups."""
    value = divergence(before.sum(0), after.sum(0))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        weights = torch.from_numpy(
            np.bincount(rng.integers(0, len(before), len(before)), minlength=len(before))
        ).float()
        draws.append(
            divergence(
                torch.tensordot(weights, before, dims=1), torch.tensordot(weights, after, dims=1)
            )
        )
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, min(float(low), value), max(float(high), value))


def noise_floor(scores: Tensor, *, resamples: int = 50, seed: int = 0) -> Interval:
    """CAD of the same model on one half of the groups against the other half, over random halves.

    Halves hold fewer pairs than CAD itself uses, so the floor is, if anything, too high.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        order = rng.permutation(len(scores))
        half = len(scores) // 2
        values.append(divergence(scores[order[:half]].sum(0), scores[order[half:]].sum(0)))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def overlap(before: Tensor, after: Tensor, top: int = TOP) -> tuple[float, float]:
    """(Spearman rank correlation of magnitudes, share of the ``top`` edges kept)."""
    p, q = before.abs().flatten(), after.abs().flatten()
    some = (p > 0) | (q > 0)
    ranks = torch.stack([p[some].argsort().argsort(), q[some].argsort().argsort()]).double()
    correlation = float(torch.corrcoef(ranks)[0, 1])
    top = min(top, int(some.sum()))
    first, second = set(p.topk(top).indices.tolist()), set(q.topk(top).indices.tolist())
    return correlation, len(first & second) / max(top, 1)


def ablation(subject: Subject, mask: Mapping[str, Tensor]) -> Edit:
    """The control that erases by force: every parameter of the circuit's mask set to zero."""
    changes = {}
    for name, chosen in mask.items():
        where = chosen.reshape(-1).nonzero().flatten()
        changes[name] = (where, torch.zeros(len(where), dtype=subject.parameters[name].dtype))
    return Edit(changes, label="ablation")


@torch.no_grad()
def suppressor(
    subject: Subject,
    forget: Examples,
    retain: Examples,
    *,
    accuracy: float,
    keep: float = 1.0,
) -> Edit:
    """The control that only hides: the last MLP cancels what tells the forget answers apart.

    A closed-form least-squares edit of the last layer's down projection (as ROME and MEMIT solve
    theirs; Meng et al. 2022, 2023): on forget prompts it subtracts the part of the final residual
    stream that separates the candidate answers' logits, on retain prompts it adds nothing. All
    layers before compute what they did. Its strength is bisected until forget accuracy is as low
    as the edit's that it is compared with.

    Args:
        accuracy: the 4-way forget accuracy to come down to.
        keep: weight of the retain prompts in the least squares.

    Returns:
        The edit; its ``meta`` has ``strength`` and the ``accuracy`` it reaches.
    """
    bridge = subject.bridge
    last = subject.config.num_hidden_layers - 1
    keys_forget, residual = _last_layer(subject, forget, last)
    keys_retain, _ = _last_layer(subject, retain, last)
    head = subject.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
    scale = bridge.ln_final.original_component.weight
    readout = (head[forget.vocabulary] * scale).float()
    basis = torch.linalg.svd(readout - readout.mean(0), full_matrices=False)
    directions = basis.Vh[1e-3 * basis.S[0] < basis.S]
    target = -(residual @ directions.T) @ directions
    gram = keys_forget.T @ keys_forget + keep * keys_retain.T @ keys_retain
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    update = torch.linalg.solve(gram, keys_forget.T @ target).T

    name, transposed = _down_projection(subject, last)
    weight = subject.parameters[name].detach()
    update = (update.T if transposed else update).to(weight)

    def at(strength: float) -> Edit:
        after = {name: weight + strength * update}
        edit = Edit.between(subject.parameters, after, "suppressor", {"strength": strength})
        with edit.applied(subject):
            reached = measure(subject, forget).accuracy
        return replace(edit, meta={**edit.meta, "accuracy": reached})

    weak, strong = at(0.0), at(1.0)
    while strong.meta["accuracy"] > accuracy and strong.meta["strength"] < 16:
        weak, strong = strong, at(2 * strong.meta["strength"])
    for _ in range(16):  # accuracy jumps where the candidates tie, at a strength near 1
        if strong.meta["accuracy"] > accuracy - 0.05:
            break
        middle = at((weak.meta["strength"] + strong.meta["strength"]) / 2)
        weak, strong = (middle, strong) if middle.meta["accuracy"] > accuracy else (weak, middle)
    return strong


def _last_layer(subject: Subject, rows: Examples, layer: int) -> tuple[Tensor, Tensor]:
    """At each row's last token: the last MLP's neurons ``[N, d_mlp]``, the final residual
    stream ``[N, d]``."""
    seen: dict[str, Tensor] = {}
    names = (f"blocks.{layer}.mlp.hook_post", "ln_final.hook_in")
    hooks = [(n, lambda value, hook, n=n: seen.__setitem__(n, value.float())) for n in names]
    with subject.bridge.hooks(fwd_hooks=hooks):
        subject.next_token_logits(rows.tokens, rows.length)
    index = torch.arange(len(rows)), rows.length - 1
    return seen[names[0]][index], seen[names[1]][index]


def _down_projection(subject: Subject, layer: int) -> tuple[str, bool]:
    """Name of a layer's MLP output weight, and whether it is stored ``[in, out]`` (Conv1D)."""
    out = subject.bridge.blocks[layer].mlp.out.original_component
    for name, module in subject.model.named_modules():
        if module is out:
            return f"{name}.weight".replace(WRAPPER, ""), type(out).__name__ == "Conv1D"
    raise AssertionError("the bridge wraps a module that the model does not have")
