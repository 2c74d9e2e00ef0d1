"""TransformerLens's own edge attribution on our subjects, and its scores in our layout.

Its ``attribution_patch`` (4.3) is EAP with one gradient a pair, taken on the corrupt run and
towards the clean one; it refuses grouped queries and more than one step. Its edges are ours, one
for every position: their sum is what we score. The benchmark and a test compare the two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs


def lens_attribution(subject: Subject, pairs: Pairs) -> list[Any]:
    """Its results for the effect of corrupt on clean, as ours: one call a pair, batch 1.

    It takes one pair at a time whatever it is given, and a metric that cannot know which pair it
    sees; so the calls are no slower than one with all pairs.
    """
    from transformer_lens.tools.analysis.attribution_patching import (
        EdgeAttributionConfig,
        attribution_patch,
    )

    swapped = replace(pairs, clean=pairs.corrupt, corrupt=pairs.clean)
    embedding: Any = subject.model.get_input_embeddings()  # type: ignore[operator]
    embedding.weight.requires_grad_(True)  # the least that lets it take gradients
    try:
        results = []
        for row in range(len(pairs)):
            one, last = swapped.select([row]), int(pairs.length[row]) - 1
            answer, foil = int(one.answer[0]), int(one.foil[0])
            results.append(
                attribution_patch(
                    subject.bridge,
                    one.clean[:, : last + 1],
                    one.corrupt[:, : last + 1],
                    lambda logits, a=answer, f=foil: logits[0, -1, a] - logits[0, -1, f],
                    EdgeAttributionConfig("edge"),
                )
            )
        return results
    finally:
        embedding.weight.requires_grad_(False)


def in_our_layout(layout: Graph, results: list[Any]) -> Tensor:
    """Mean over the pairs, summed over positions: ``[n_sources, n_destinations]``."""
    first = {"q_input": 0, "k_input": layout.n_heads, "v_input": 2 * layout.n_heads}
    scores = torch.zeros(layout.n_sources, layout.n_destinations, dtype=torch.float64)
    places: list[int] = []
    values: list[float] = []
    for result in results:
        for (writer, reader), score in result.edge_scores.items():
            source = 0
            if writer.layer is not None:
                place = layout.n_heads if writer.head is None else writer.head
                source = layout.head(writer.layer, place)
            if reader.kind == "logits":
                destination = layout.logits
            elif reader.kind == "mlp_in":
                destination = layout.mlp_input(reader.layer)
            else:
                start = layout.attention_inputs(reader.layer).start
                destination = start + first[reader.kind] + reader.head
            places.append(source * layout.n_destinations + destination)
            values.append(score)
    index = torch.tensor(places)
    scores.view(-1).index_add_(0, index, torch.tensor(values, dtype=torch.float64))
    return (scores / len(results)).float()
