"""A node beside itself in an edited model."""

from __future__ import annotations

import pytest
import torch
from families import family, random_pairs

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
    asked = lens.Asked.of(pairs, 1)
    head, other = layout.head(1, 2), layout.head(1, 1)
    silent = lens.node_of_edited(tiny, asked, head, edit)
    before = lens.node_seen(lens.look(tiny, asked), head)
    assert float(silent.promoted.abs().max()) == 0 < float(before.promoted.abs().max())
    assert silent.attention is not None and before.attention is not None
    assert torch.allclose(silent.attention, before.attention, atol=1e-6)  # read before it writes
    with edit.applied(tiny), quantized(tiny):
        wanted = lens.look(tiny, asked)
        promoted = wanted.promoted(other)
    found = lens.node_of_edited(tiny, asked, other, edit, nf4=True)
    assert torch.equal(found.promoted, promoted)
    assert found.attention is not None
    assert torch.equal(found.attention, wanted.attention(1, 1))
    assert lens.node_of_edited(tiny, asked, layout.mlp(1), edit).attention is None


def test_tokens_shown_side_by_side_are_the_extremes_of_each() -> None:
    a, b = torch.tensor([0.0, 5, -5, 1, 0]), torch.tensor([9.0, 0, 0, 0, -9])
    assert lens.extremes([a], 1, [3]).tolist() == [1, 3, 2]
    assert set(lens.extremes([a, b], 2, []).tolist()) == {0, 1, 2, 4}


@pytest.mark.parametrize("name", ["llama", "gemma2", "pythia"])
def test_the_neurons_of_an_mlp_add_up_to_what_it_writes(name: str) -> None:
    subject, pairs = family(name), random_pairs(3)
    asked = lens.Asked.of(pairs, 1)
    seen = lens.look(subject, asked)
    for layer in range(seen.graph.n_layers):
        found = seen.neurons_of(layer, 3, 2)
        promoted = seen.promoted(seen.graph.mlp(layer))
        whole = float(promoted[asked.answer] - promoted[asked.foil])
        assert float(found.effect.sum()) == pytest.approx(whole, rel=1e-3, abs=1e-5)
        assert found.top.tolist() == found.effect.abs().topk(3).indices.tolist()


@torch.no_grad()
def test_on_a_prompt_alone_all_nodes_add_up_to_the_logits(
    tiny: Subject, tiny_task: Task, untouched: None
) -> None:
    pair = lens.Asked.of(tasks.pairs(tiny_task, tiny, n=4), 1)
    alone = lens.Asked(pair.clean, pair.answer)
    seen, both = lens.look(tiny, alone), lens.look(tiny, pair)
    parts = torch.stack([seen.promoted(source) for source in range(seen.graph.n_sources)])
    plain = tiny.model(torch.tensor([alone.clean])).logits[0, -1]
    assert torch.allclose(parts.sum(0), plain, atol=1e-4)
    assert torch.allclose(seen.promoted(seen.graph.n_sources), plain, atol=1e-4)
    assert torch.allclose(seen.attention(1, 2)[0], both.attention(1, 2)[0], atol=1e-6)
    layer = 1
    found, wrote = seen.neurons_of(layer, 2, 3), parts[seen.graph.mlp(layer)]
    assert float(found.effect.sum()) == pytest.approx(float(wrote[alone.answer]), abs=1e-4)
    assert lens.Asked(pair.clean, pair.answer) == alone != pair  # a cache's key is its content
