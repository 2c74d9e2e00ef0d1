"""A node beside itself in an edited model."""

from __future__ import annotations

import torch

from mansu import tasks
from mansu.circuits import lens
from mansu.circuits.graph import graph_of
from mansu.quant.swap import quantized
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import slices
from mansu.tasks.facts import Task


def test_a_node_is_seen_in_the_edited_model_and_in_nf4(
    tiny: Subject, tiny_task: Task, untouched: None
) -> None:
    pairs, layout = tasks.pairs(tiny_task, tiny, n=4), graph_of(tiny)
    (output,) = slices(tiny, 1, "o")
    weight = tiny.parameters[output.name]
    gone = torch.zeros(weight.shape, dtype=torch.bool)
    gone.index_fill_(output.axis, output.of(torch.tensor([2])), True)
    edit = Edit({output.name: (gone.flatten(), torch.zeros(int(gone.sum())))}, "head 2 is silent")
    head, other = layout.head(1, 2), layout.head(1, 1)
    silent = lens.node_of_edited(tiny, pairs, 1, head, edit)
    before = lens.node_seen(lens.look(tiny, pairs, 1), head)
    assert float(silent.promoted.abs().max()) == 0 < float(before.promoted.abs().max())
    assert silent.attention is not None and before.attention is not None
    assert torch.allclose(silent.attention, before.attention, atol=1e-6)  # read before it writes
    with edit.applied(tiny), quantized(tiny):
        wanted = lens.look(tiny, pairs, 1)
        promoted = wanted.promoted(other)
    found = lens.node_of_edited(tiny, pairs, 1, other, edit, nf4=True)
    assert torch.equal(found.promoted, promoted)
    assert found.attention is not None
    assert torch.equal(found.attention, wanted.attention(1, 1))
    assert lens.node_of_edited(tiny, pairs, 1, layout.mlp(1), edit).attention is None


def test_tokens_shown_side_by_side_are_the_extremes_of_each() -> None:
    a, b = torch.tensor([0.0, 5, -5, 1, 0]), torch.tensor([9.0, 0, 0, 0, -9])
    assert lens.extremes([a], 1, [3]).tolist() == [1, 3, 2]
    assert set(lens.extremes([a, b], 2, []).tolist()) == {0, 1, 2, 4}
