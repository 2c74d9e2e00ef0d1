"""How far a circuit can be trusted: stability, completeness, minimality, its mask at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.attribution import attribute
from mansu.circuits.circuit import Circuit
from mansu.circuits.graph import graph_of
from mansu.circuits.mask import Mask
from mansu.circuits.metric import MEMORY, Metric, metric_values
from mansu.circuits.parameters import random_mask
from mansu.circuits.patching import Patched, faithfulness_of
from mansu.errors import MansuError
from mansu.progress import OnStep, Step, silent
from mansu.show.numbers import ALONE, NOTHING, many, percent
from mansu.show.table import Shown, Table
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject, locked
from mansu.tasks.tokens import Pairs

LOGITS: Metric = "logit_difference"

NONE_LEFT = "none are left: all facts are in the circuit's pairs"
"""Said where faithfulness on other pairs would stand."""


@dataclass(frozen=True)
class Stability:
    """How far a circuit depends on the facts that were drawn.

    Attributes:
        overlap: mean Jaccard overlap of the best n edges of a bootstrap resample with those of
            all pairs; interval: its central 95 % over resamples.
        edges: int64 ``[n]``, the best n edges of all pairs, coded; frequency: float32 ``[n]``, the
            share of resamples whose best n have it.
    """

    overlap: float
    interval: tuple[float, float]
    edges: Tensor
    frequency: Tensor


def stability(
    subject: Subject,
    pairs: Pairs,
    n: int,
    *,
    groups: int = 8,
    resamples: int = 200,
    seed: int = 0,
    memory: int = MEMORY,
    **options: Any,
) -> Stability:
    """Bootstrap the best ``n`` edges over ``groups`` groups of as many facts each.

    All pairs of a fact are in one group: its templates are no independent evidence. Scores are
    means over pairs, so a resample of groups is a weighted mean of their scores: the cost is one
    attribution in all.

    Args:
        options: ``method``, ``steps``, ``metric`` of ``attribute``.

    Raises:
        MansuError: the pairs ask for fewer facts than two, or as ``attribute``.
    """
    fact = torch.from_numpy(pairs.clusters)
    n_facts = int(fact.max()) + 1
    groups = min(groups, n_facts)
    if groups < 2:
        raise MansuError(
            "Stability needs pairs of at least two facts: give the task more forget facts."
        )
    shuffled = torch.randperm(n_facts, generator=torch.Generator().manual_seed(seed))
    parts = [
        pairs.select(torch.isin(fact, some).nonzero()[:, 0])
        for some in shuffled.tensor_split(groups)
    ]
    layout = graph_of(subject)
    codes = layout.edges.flatten().nonzero()[:, 0]
    scores = torch.stack(
        [
            attribute(subject, part, memory=memory, **options).scores.flatten()[codes] * len(part)
            for part in parts
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    best = scores.sum(0).abs().topk(n).indices
    inside = torch.zeros(scores.shape[1], dtype=torch.bool)
    inside[best] = True
    counts, overlaps = torch.zeros(scores.shape[1]), []
    for _ in range(resamples):
        drawn = torch.randint(len(parts), (len(parts),), generator=generator)
        again = scores[drawn].sum(0).abs().topk(n).indices
        counts[again] += 1
        shared = int(inside[again].sum())
        overlaps.append(shared / (2 * n - shared))
    all_overlaps = torch.tensor(overlaps)
    low, high = all_overlaps.quantile(torch.tensor([0.025, 0.975])).tolist()
    mean = float(all_overlaps.mean())
    bounds = min(low, mean), max(high, mean)  # where nearly all are equal, the mean is none of them
    return Stability(mean, bounds, codes[best], counts[best] / resamples)


@dataclass(frozen=True)
class Criteria:
    """Completeness and minimality of a circuit C in a model M (Wang et al. 2022, section 4).

    Attributes:
        completeness: float32 ``[subsets, 2]``: faithfulness of C \\ K and of M \\ K for random
            sets K of the circuit's nodes; incompleteness is their mean distance.
        nodes: the circuit's nodes by name; minimality: float32 ``[nodes]``, how much faithfulness
            the circuit loses without each node.
    """

    completeness: Tensor
    nodes: tuple[str, ...]
    minimality: Tensor

    @property
    def incompleteness(self) -> float:
        """Mean of |F(C \\ K) − F(M \\ K)|."""
        return float((self.completeness[:, 0] - self.completeness[:, 1]).abs().mean())


def criteria(
    subject: Subject,
    pairs: Pairs,
    circuit: Circuit,
    *,
    subsets: int = 8,
    nodes: int = 32,
    seed: int = 0,
    memory: int = MEMORY,
) -> Criteria:
    """Measure completeness on random subsets of nodes, and minimality node by node.

    Args:
        subsets: how many sets K; a node is in K with probability 1/4.
        nodes: minimality of this many nodes at most, drawn with ``seed``.
    """
    patched = Patched(subject, pairs, circuit.metric, memory)
    layout, kept = circuit.layout, circuit.edge_mask
    generator = torch.Generator().manual_seed(seed)
    inner = kept.any(1)
    inner[0] = False  # the embedding is the input, not a part to remove
    sources = inner.nonzero()[:, 0]

    def without(edges: Tensor, gone: Tensor) -> Tensor:
        edges = edges.clone()
        edges[gone] = False
        return edges

    drawn = [sources[torch.rand(len(sources), generator=generator) < 0.25] for _ in range(subsets)]
    masks = [without(edges, gone) for gone in drawn for edges in (kept, layout.edges)]
    some = sources[torch.randperm(len(sources), generator=generator)[:nodes]].sort().values
    masks += [kept, *(without(kept, node[None]) for node in some)]
    values = torch.cat([patched.values(mask[None]) for mask in masks])
    shares = patched.faithfulness(values).float()
    return Criteria(
        completeness=shares[: 2 * subsets].view(subsets, 2),
        nodes=tuple(layout.source_name(int(node)) for node in some),
        minimality=shares[2 * subsets] - shares[2 * subsets + 1 :],
    )


@dataclass(frozen=True)
class Ablation:
    """The metric on clean prompts with a mask's parameters set to zero, beside random masks.

    Attributes:
        whole: mean metric of the untouched model. masked: with the circuit's mask at zero.
        random: float32 ``[draws]``, with random masks of the same number of slices and neurons.
        size, random_sizes: parameters in each.
    """

    whole: float
    masked: float
    random: Tensor
    size: int
    random_sizes: tuple[int, ...]


def ablate(
    subject: Subject,
    pairs: Pairs,
    circuit: Circuit,
    mask: Mask,
    *,
    draws: int = 5,
    seed: int = 0,
) -> Ablation:
    """Compare zeroing a mask with zeroing random masks of the same size.

    A random mask has as many slices of each kind and as many neurons, drawn from the whole model.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = mask.tensors()
    masks = [mask, *(random_mask(subject, dense, generator) for _ in range(draws))]

    metric: Metric = "log_probability" if circuit.metric == "log_probability" else LOGITS

    def value() -> float:
        with torch.no_grad():
            logits = subject.next_token_logits(pairs.clean, pairs.length)
        return float(metric_values(metric, logits, pairs).mean())

    values = []
    for each in masks:
        changes = {}
        for name in each.names:
            where = each.dense(name).flatten().nonzero()[:, 0]
            parameter = subject.parameters[name]
            changes[name] = (where, torch.zeros(len(where), dtype=parameter.dtype))
        with Edit(changes, "ablation").applied(subject):
            values.append(value())
    return Ablation(
        value(), values[0], torch.tensor(values[1:]), mask.size, tuple(m.size for m in masks[1:])
    )


@dataclass(frozen=True, repr=False)
class Trust(Shown):
    """How far a circuit can be trusted, in numbers.

    Attributes:
        overlap: of the best edges of resamples with the circuit's (``Stability``), and its central
            95 %; None where the circuit was chosen on one fact.
        always: share of the circuit's edges that more than 95 % of the resamples have; so, too.
        held_out_faithfulness: on pairs that it was not chosen on, with its bootstrap 95 % interval;
            the value alone where they are of one fact, None without such pairs.
        held_out_pairs: how many there were.
        incompleteness, minimality: as in ``Criteria``, minimality by node.
        metric, metric_masked, metric_random_masks: as in ``Ablation``.
        facts: how many it was chosen on, which resamples and intervals are over; None in a file of
            before, whose resamples and intervals are over pairs.
        held_out_facts: how many facts the held-out pairs ask for, where it was chosen on none of
            them; None where it was on some, and in a file of before, whose pairs were the first
            other rows of the task, whatever facts they ask for.
    """

    overlap: tuple[float, float, float] | None
    always: float | None
    held_out_faithfulness: tuple[float, float, float] | tuple[float] | None
    held_out_pairs: int
    incompleteness: float
    minimality: Mapping[str, float]
    metric: float
    metric_masked: float
    metric_random_masks: tuple[float, ...]
    facts: int | None = None
    held_out_facts: int | None = None

    @property
    def sampled(self) -> str:
        """What is resampled: facts, or pairs in a file of before."""
        return "pairs" if self.facts is None else "facts"

    @property
    def held_out(self) -> str:
        """What the held-out pairs are."""
        if not self.held_out_pairs:
            return "other pairs"
        pairs = many(self.held_out_pairs, "pair")
        if self.held_out_facts is not None:
            return f"{pairs} of {many(self.held_out_facts, 'fact')} that it was not chosen on"
        if self.facts is None:
            return f"{pairs} of other rows, whatever facts they ask for"
        return f"{pairs} of other rows, not all of other facts"

    @property
    def spare(self) -> tuple[str, ...]:
        """The nodes without which faithfulness falls by less than 0.001."""
        return tuple(name for name, loss in self.minimality.items() if loss < 0.001)

    def table(self) -> Table:
        """A row a number."""

        def interval(value: Sequence[float] | None) -> str:
            if value is None:
                return NOTHING
            return ("{:.3f} [{:.3f}, {:.3f}]" if value[1:] else f"{{:.3f}} {ALONE}").format(*value)

        randomly = ", ".join(f"{x:.2f}" for x in self.metric_random_masks)
        elsewhere = interval(self.held_out_faithfulness) if self.held_out_pairs else NONE_LEFT
        rows = [
            (f"overlap with the best edges of resampled {self.sampled}", interval(self.overlap)),
            ("edges that are in more than 95 % of the resamples", percent(self.always, 0)),
            (f"faithfulness on {self.held_out}", elsewhere),
            ("incompleteness", f"{self.incompleteness:.3f}"),
            ("nodes that could go", f"{len(self.spare)} of {len(self.minimality)}"),
            ("metric", f"{self.metric:.2f}"),
            ("metric with the mask at zero", f"{self.metric_masked:.2f}"),
            ("metric with random masks at zero", randomly),
        ]
        overlap = ALONE if self.overlap is None else f"{self.overlap[0]:.2f}"
        caption = f"trust: overlap {overlap}, incompleteness {self.incompleteness:.3f}"
        return Table(("Trust", "Measured"), rows, caption, "<<")

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "minimality": dict(self.minimality)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trust:
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in value.items()
        }
        return cls(**values)


@locked
def trust(
    subject: Subject,
    pairs: Pairs,
    circuit: Circuit,
    mask: Mask,
    others: Pairs | None,
    *,
    steps: int = 5,
    memory: int = MEMORY,
    on_step: OnStep = silent,
) -> Trust:
    """Ask what other facts would have chosen, and what breaking the circuit does.

    Args:
        pairs: those that the circuit was chosen on. others: pairs that it was not chosen on; None
            where the task has none.
        steps: of the attributions of resamples.
    """
    asked = set(pairs.asked)
    on_step(Step("trust", 0, 10, part="stability over resamples of the facts"))
    stable = None
    if len(asked) > 1:
        stable = stability(subject, pairs, len(circuit), steps=steps, memory=memory)
    on_step(Step("trust", 3, 10, part="faithfulness on other pairs"))
    held_out, fresh = None, None
    if others is not None:
        patched = Patched(subject, others, circuit.metric, memory)
        held_out = faithfulness_of(patched, circuit.edge_mask)
        fresh = patched.facts if asked.isdisjoint(others.asked) else None
    on_step(Step("trust", 4, 10, part="completeness and minimality"))
    tested = criteria(subject, pairs, circuit, memory=memory)
    on_step(Step("trust", 9, 10, part="the mask at zero"))
    effect = ablate(subject, pairs, circuit, mask)
    return Trust(
        overlap=None if stable is None else (stable.overlap, *stable.interval),
        always=None if stable is None else float((stable.frequency > 0.95).float().mean()),
        held_out_faithfulness=held_out,
        held_out_pairs=0 if others is None else len(others),
        incompleteness=tested.incompleteness,
        minimality=dict(zip(tested.nodes, tested.minimality.tolist(), strict=True)),
        metric=effect.whole,
        metric_masked=effect.masked,
        metric_random_masks=tuple(effect.random.tolist()),
        facts=len(asked),
        held_out_facts=fresh,
    )
