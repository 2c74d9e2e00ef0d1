"""What becomes of a circuit: in the unedited model, after an edit, and when that is in NF4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mansu.circuits.circuit import Circuit, pruned
from mansu.circuits.graph import Graph, graph_of
from mansu.errors import MismatchError
from mansu.files import load_values, reading, save_values
from mansu.quant.survival import changed_codes
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import UNITS, kind_of, slices

STRONGEST = 5000

Change = Literal["kept", "gone", "back", "new"]
CHANGES: tuple[Change, ...] = get_args(Change)


@dataclass(frozen=True, eq=False)
class Scores:
    """The edge scores of three models on the same pairs, of all edges that are strong in one.

    Attributes:
        codes: int64 ``[n]``, source · n_destinations + destination, ascending.
        values: float32 ``[n, 3]``, mean over the pairs in the unedited model, the edited one, and
            the edited one in NF4.
    """

    codes: Tensor
    values: Tensor

    @classmethod
    def of(cls, base: Tensor, edited: Tensor, nf4: Tensor, circuit: Tensor) -> Scores:
        """The strongest ``STRONGEST`` edges of each model, and the circuit's.

        Args:
            base, edited, nf4: ``[n_sources, n_destinations]``. circuit: bool, the same shape.
        """
        every = torch.stack([base, edited, nf4]).flatten(1)
        strong = circuit.flatten().clone()
        n = min(max(STRONGEST, int(strong.sum())), every.shape[1])
        for row in every:
            strong[row.abs().topk(n).indices] = True
        codes = (strong & (every != 0).any(0)).nonzero()[:, 0]
        return cls(codes, every[:, codes].T.float().contiguous())

    def save(self, path: Path, of: Mapping[str, str] | None = None) -> None:
        """Write one safetensors file, whole or not at all; ``of``: as ``save_values`` has it."""
        save_values(path, {"codes": self.codes, "values": self.values}, {}, of)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        with reading(path):
            tensors, _ = load_values(path)
            found = cls(tensors["codes"], tensors["values"])
            if found.codes.dtype != torch.long or found.codes.ndim != 1:
                raise ValueError("its codes are no indices")
            if found.values.shape != (len(found.codes), 3):
                raise ValueError("its scores are of another shape")
            if not bool((found.codes[1:] > found.codes[:-1]).all()):
                raise ValueError("its codes are not in order")
            return found


@dataclass(frozen=True, eq=False)
class Diff:
    """The edges of a circuit before an edit, after it, or after it in NF4.

    Attributes:
        bar: |score| from which an edge counts: that of the weakest edge of the circuit.
        codes: int64 ``[n]``. scores: float32 ``[n, 3]``, as in ``Scores``.
        member: bool ``[n, 3]``, in which of the three circuits an edge is.
        changes: *kept* in all three; *gone* from the model in NF4; *back*: gone after the edit and
            there again in NF4; *new*: not there before.
    """

    bar: float
    codes: Tensor
    scores: Tensor
    member: Tensor
    changes: tuple[Change, ...]

    def counts(self) -> Mapping[Change, int]:
        """Edges of each kind."""
        found = Counter(self.changes)
        return {change: found[change] for change in CHANGES}


def diff(circuit: Circuit, scores: Scores) -> Diff:
    """Compare a circuit with what an edit, and the edit in NF4, leave of it.

    An edge is in a model's circuit while its |score| there is at least that of the weakest edge of
    the circuit in the unedited model, and while it is on a path of such edges from the embedding to
    the logits. Edges that were as strong before, but that the search found the circuit can do
    without, are in none of the three.

    Raises:
        MismatchError: the scores are not of this circuit's graph.
    """
    layout = circuit.layout
    dense = torch.zeros(3, layout.n_sources * layout.n_destinations)
    codes = scores.codes
    if len(codes) and not 0 <= int(codes[0]) <= int(codes[-1]) < dense.shape[1]:
        raise MismatchError("The edge scores are of another model: measure the verdict again.")
    dense[:, codes] = scores.values.T
    before = torch.zeros(dense.shape[1], dtype=torch.bool)
    before[circuit.kept] = True
    bar = float(dense[0, circuit.kept].abs().min())
    may = before | (dense[0].abs() < bar)
    circuits = [before]
    for row in dense[1:]:
        now = torch.zeros_like(before)
        now[pruned(layout, (may & (row.abs() >= bar)).nonzero()[:, 0])] = True
        circuits.append(now)
    member = torch.stack(circuits, 1)
    codes = member.any(1).nonzero()[:, 0]
    member = member[codes]
    return Diff(
        bar, codes, dense[:, codes].T, member, tuple(_change(*row) for row in member.tolist())
    )


def _change(before: bool, edited: bool, nf4: bool) -> Change:
    if not before:
        return "new"
    if not nf4:
        return "gone"
    return "kept" if edited else "back"


def moved_by_node(subject: Subject, edit: Edit) -> dict[str, tuple[int, int]]:
    """How many weights of each node an edit moves, and how many of these to another NF4 code.

    A key or value that several heads share is counted in each of them; the unembedding is the
    logits'. Biases and norms are no node's. Nodes without a moved weight are left out.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    layout = graph_of(subject)
    found: dict[str, tuple[int, int]] = {}

    def add(node: str, moved: int, changed: int) -> None:
        if moved:
            before = found.get(node, (0, 0))
            found[node] = before[0] + moved, before[1] + changed

    places = {name: _places(subject, edit, name) for name in edit.changes}
    for layer in range(layout.n_layers):
        for kind in UNITS:
            for lines in slices(subject, layer, kind):
                if lines.name not in places:
                    continue
                along = [p.sum(1 - lines.axis)[lines.all()] for p in places[lines.name]]
                moved, changed = (x.view(lines.count, lines.width).sum(1).tolist() for x in along)
                for unit, counts in enumerate(zip(moved, changed, strict=True)):
                    for node in _nodes(layout, layer, kind, unit):
                        add(layout.source_name(node), *counts)
    for name, (moved, changed) in places.items():
        if (
            node := {"embedding": "embed", "head": "logits"}.get(kind_of(subject, name))
        ) is not None:
            add(node, int(moved.sum()), int(changed.sum()))
    return found


def _places(subject: Subject, edit: Edit, name: str) -> tuple[Tensor, Tensor]:
    """Where a parameter moves, and where to another code: bool, its shape."""
    where, values = edit.changes[name]
    parameter = subject.parameters[name]
    after = parameter.data.reshape(-1).clone()
    after[where.to(after.device)] = values.to(after)
    moved = (after != parameter.data.reshape(-1)).view(parameter.shape).cpu()
    return moved, changed_codes(subject, edit, name)


def _nodes(layout: Graph, layer: int, kind: str, unit: int) -> list[int]:
    """The nodes that a unit is part of."""
    if kind == "neuron":
        return [layout.mlp(layer)]
    if kind in ("k", "v"):
        shared = layout.n_heads // layout.n_kv_heads
        return [layout.head(layer, unit * shared + i) for i in range(shared)]
    return [layout.head(layer, unit)]
