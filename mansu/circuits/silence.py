"""Nodes of the graph switched off: what they write to the residual stream is zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mansu.circuits.graph import graph_of
from mansu.errors import BadInputError
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject, locked
from mansu.subjects.weights import lines, weight_name


@locked
def silenced(subject: Subject, nodes: Iterable[int]) -> Edit:
    """The edit that has some heads and MLPs write nothing.

    It sets the weights that they write with to zero: a head's columns of the output projection, an
    MLP's down projection. (A bias there stays; it is the same for every prompt.)

    Args:
        nodes: sources of ``mansu.circuits.graph.Graph``; not the embedding, 0.

    Raises:
        BadInputError: a node is no head and no MLP of the subject.
    """
    graph = graph_of(subject)
    masks: dict[str, Tensor] = {}

    def mask(layer: int, role: str) -> Tensor:
        name = weight_name(subject, layer, role)
        empty = torch.zeros_like(subject.parameters[name], dtype=torch.bool)
        return masks.setdefault(name, empty)

    for node in nodes:
        if not 0 < node < graph.n_sources:
            raise BadInputError(
                f"Node {node} cannot be silenced: give heads and MLPs, 1 to {graph.n_sources - 1}."
            )
        layer, head = divmod(node - 1, graph.n_heads + 1)
        if head == graph.n_heads:
            mask(layer, "down")[:] = True
        else:
            part = lines(subject, layer, "o")
            own = part.of(torch.tensor([head]))
            mask(layer, "o").index_fill_(part.axis, own.to(subject.device), True)
    changes = {}
    for name, chosen in masks.items():
        where = chosen.flatten().nonzero()[:, 0]
        changes[name] = (where, torch.zeros(len(where), dtype=subject.parameters[name].dtype))
    return Edit(changes, label="silenced")
