"""Silenced nodes, against hooks that set what they write to zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mansu.circuits.graph import graph_of
from mansu.circuits.silence import silenced
from mansu.errors import BadInputError
from mansu.subjects.subject import Subject


def logits(subject: Subject, tokens: Tensor) -> Tensor:
    return subject.bridge(tokens)[0, -1]


@torch.no_grad()
@pytest.mark.usefixtures("untouched")
def test_a_silenced_head_and_mlp_write_nothing(tiny: Subject) -> None:
    graph, tokens = graph_of(tiny), torch.tensor([tiny.encode("The colour of boben is")])

    def no_head(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 2] = 0
        return z

    def nothing(value: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(value)

    base = logits(tiny, tokens)
    for nodes, hooks in (
        ([graph.head(0, 2)], [("blocks.0.attn.hook_z", no_head)]),
        ([graph.mlp(1)], [("blocks.1.hook_mlp_out", nothing)]),
    ):
        with tiny.bridge.hooks(fwd_hooks=hooks):
            wanted = logits(tiny, tokens)
        with silenced(tiny, nodes).applied(tiny):
            found = logits(tiny, tokens)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, base, atol=1e-2)


@pytest.mark.parametrize("node", [0, 16])
def test_what_is_no_head_and_no_mlp_is_refused(tiny: Subject, node: int) -> None:
    with pytest.raises(BadInputError, match="cannot be silenced"):
        silenced(tiny, [node])
