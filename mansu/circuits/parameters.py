"""Which parameters stand behind a circuit: head slices and neurons, chosen or drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.circuits.graph import graph_of
from mansu.circuits.mask import Mask
from mansu.errors import BadInputError
from mansu.subjects.subject import Subject
from mansu.subjects.weights import UNITS, Lines, slices


@dataclass(frozen=True)
class _Units:
    """What a mask is put together from: every head slice and every neuron of a model.

    Attributes:
        kind: int64 ``[units]``, as in ``KINDS``. layer, index: int64 ``[units]``.
        cost: float32 ``[units]``, parameters.
    """

    kind: Tensor
    layer: Tensor
    index: Tensor
    cost: Tensor


KINDS = tuple(UNITS)


HELD = 0.9
"""The share of its candidates' attribution that a mask is to hold, unless it grows too large."""


def parameter_mask(
    subject: Subject,
    circuit: Circuit,
    attribution: Attribution,
    *,
    share: float = HELD,
    max_fraction: float = 0.005,
) -> Mask:
    """The parameters behind a circuit.

    Candidates are the q, k, v slices that one of the circuit's edges enters, the o slice of every
    head that one leaves, and the neurons of every MLP that one leaves (a neuron is its row of the
    up and gate projections and its column of the down projection). They are taken by falling
    |attribution| a parameter until they hold ``share`` of the candidates' attribution, or
    ``max_fraction`` of all parameters. Biases, norms and embeddings are never in the mask.

    Raises:
        MansuError: a share is out of range, or nothing fits.
        MismatchError: the scores are an earlier version's (``Attribution.refuse_scaled``).
    """
    attribution.refuse_scaled(subject)
    for name, value in (("share", share), ("max_fraction", max_fraction)):
        if not 0 < value <= 1:
            raise BadInputError(f"The mask's {name} must lie in (0, 1], not {value}.")
    units = _units(subject)
    score, used = _score_and_use(circuit, attribution)
    chosen = used.nonzero()[:, 0]
    density = score[chosen] / units.cost[chosen]
    chosen = chosen[density.argsort(descending=True, stable=True)]
    mass = score[chosen].double().cumsum(0)
    total_mass = float(mass[-1]) if len(mass) else 0.0
    within = units.cost[chosen].double().cumsum(0) <= max_fraction * subject.n_parameters
    needed = torch.cat([torch.ones(1, dtype=torch.bool), mass[:-1] < share * total_mass])
    take = within & needed[: len(within)]
    if not bool(take.any()):
        raise BadInputError(
            f"No slice of this circuit of {len(circuit)} edges fits into {max_fraction:.2%} of the "
            "parameters: raise max_fraction."
        )
    chosen = chosen[take]
    return _assemble(subject, units, chosen, float(score[chosen].sum()) / total_mass)


CANDIDATES, FAITHFUL = 0.1, 0.95
"""A mask's candidates: at most that share of all parameters, of a circuit as faithful as that."""


def mask_of(
    subject: Subject, circuit: Circuit, attribution: Attribution, *, max_fraction: float
) -> Mask:
    """``parameter_mask`` with its candidates.

    They are the heads and neurons, by the same order, of the smallest circuit on the curve whose
    faithfulness is ``FAITHFUL``: what is to be forgotten also runs beside the minimal circuit. A
    toy has none: a tenth of it holds most of what it knows.

    Raises:
        MansuError: as ``parameter_mask``.
    """
    mask = parameter_mask(subject, circuit, attribution, max_fraction=max_fraction)
    if subject.is_toy:
        return mask
    sizes, faithfulness = circuit.curve[:, 0].long(), circuit.curve[:, 1]
    wider = circuit.top(int(sizes[faithfulness >= max(FAITHFUL, circuit.tau)].min()))
    most = max(CANDIDATES, max_fraction)
    more = parameter_mask(subject, wider, attribution, share=1.0, max_fraction=most)
    return replace(mask, candidates=more)


def _units(subject: Subject) -> _Units:
    layout = graph_of(subject)
    parts: list[tuple[int, int, int, int]] = []  # kind, layer, units, parameters of each
    for layer in range(layout.n_layers):
        for kind, label in enumerate(KINDS):
            found = slices(subject, layer, label)
            costs = [s.width * subject.parameters[s.name].shape[1 - s.axis] for s in found]
            parts.append((kind, layer, found[0].count, sum(costs)))
    return _Units(
        kind=torch.cat([torch.full((n,), kind) for kind, _, n, _ in parts]),
        layer=torch.cat([torch.full((n,), layer) for _, layer, n, _ in parts]),
        index=torch.cat([torch.arange(n) for _, _, n, _ in parts]),
        cost=torch.cat([torch.full((n,), float(cost)) for _, _, n, cost in parts]),
    )


def _score_and_use(circuit: Circuit, attribution: Attribution) -> tuple[Tensor, Tensor]:
    """Of each unit, in the order of ``_units``: |attribution|, and whether the circuit uses it."""
    layout, edges = circuit.layout, circuit.edge_mask
    inputs, outputs = edges.any(0), edges.any(1)
    h, g = layout.n_heads, layout.n_kv_heads
    scores, used = [], []
    for layer in range(layout.n_layers):
        neurons = attribution.neurons[layer]
        scores += [attribution.queries[layer], attribution.keys[layer], attribution.values[layer]]
        scores += [attribution.outputs[layer], neurons]
        used += inputs[layout.attention_inputs(layer)].split([h, g, g])
        used += [outputs[layout.head(layer) : layout.mlp(layer)]]
        used += [outputs[layout.mlp(layer)].expand(len(neurons))]
    return torch.cat(scores).abs(), torch.cat(used)


def _assemble(subject: Subject, units: _Units, chosen: Tensor, mass: float) -> Mask:
    """Turn chosen units into rows and columns of named weights."""
    lines: dict[tuple[int, str], list[Tensor]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    kinds, layers = units.kind[chosen], units.layer[chosen]
    for layer in layers.unique().tolist():
        for kind in kinds[layers == layer].unique().tolist():
            index = units.index[chosen[(layers == layer) & (kinds == kind)]]
            for part in slices(subject, layer, KINDS[kind]):
                lines.setdefault((part.axis, part.name), []).append(part.of(index))
                shape = subject.parameters[part.name].shape
                shapes[part.name] = (shape[0], shape[1])
    sorted_lines = {key: torch.cat(found).unique() for key, found in lines.items()}
    return Mask(
        rows={name: index for (axis, name), index in sorted_lines.items() if axis == 0},
        columns={name: index for (axis, name), index in sorted_lines.items() if axis == 1},
        shapes=shapes,
        total=subject.n_parameters,
        mass=mass,
        n_slices=int((kinds < 4).sum()),
        n_neurons=int((kinds == 4).sum()),
    )


def random_mask(subject: Subject, mask: Mapping[str, Tensor], generator: torch.Generator) -> Mask:
    """A mask of as many head slices of each kind and as many neurons, drawn from all layers.

    Args:
        mask: parameter name → bool tensor of its shape, whole slices and neurons (as
            ``Mask.tensors`` gives it).
    """
    units = _units(subject)
    drawn = []
    for kind, count in enumerate(_kind_counts(subject, mask)):
        pool = (units.kind == kind).nonzero()[:, 0]
        drawn.append(pool[torch.randperm(len(pool), generator=generator)[:count]])
    return _assemble(subject, units, torch.cat(drawn), 0.0)


def _kind_counts(subject: Subject, mask: Mapping[str, Tensor]) -> list[int]:
    """How many units of each kind a mask has, read back from its whole rows and columns."""
    layers = range(subject.config.num_hidden_layers)
    return [sum(_whole(slices(subject, i, kind)[0], mask) for i in layers) for kind in KINDS]


def _whole(units: Lines, mask: Mapping[str, Tensor]) -> int:
    """How many units have all of their lines in a mask."""
    if units.name not in mask:
        return 0
    chosen = mask[units.name].cpu().all(1 - units.axis)
    return int(chosen[units.all()].view(units.count, units.width).all(1).sum())
