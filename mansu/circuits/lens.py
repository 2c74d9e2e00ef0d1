"""What one node does on one clean–corrupt pair: its attention pattern, the tokens it promotes."""

from __future__ import annotations

import torch
from torch import Tensor

from mansu.circuits.graph import graph_of
from mansu.circuits.record import logits_with, record
from mansu.subjects.blocks import Block, final_norm
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs


def attention(subject: Subject, pairs: Pairs, row: int, layer: int, head: int) -> Tensor:
    """Attention pattern of a head on the clean and the corrupt prompt of pair ``row``.

    Returns:
        ``[2, T, T]``: from every position (axis 1) to every earlier one (axis 2); rows sum to 1.
    """
    pair = pairs.select([row])
    patterns: list[Tensor] = []

    def keep(value: Tensor, hook: object) -> None:
        patterns.append(value[0, head].float().cpu())

    hooks = [(f"blocks.{layer}.attn.hook_pattern", keep)]
    with subject.lock, torch.no_grad():
        logits_with(subject, pair, pair.clean, hooks)
        logits_with(subject, pair, pair.corrupt, hooks)
    return torch.stack(patterns)


def promoted(subject: Subject, pairs: Pairs, row: int, source: int) -> Tensor:
    """How much a node's output raises each token's logit on the clean prompt over the corrupt one.

    The logit lens (nostalgebraist 2020) on a difference: (z_clean − z_corrupt) at the last
    position, through the final norm at the clean run's scale, through the unembedding. It is the
    node's direct effect; what later layers do with it is not in it.

    Args:
        source: index of the node in ``mansu.circuits.graph.Graph``; ``n_sources`` for the
            logits themselves, where the difference is that of the two runs' logits.

    Returns:
        float32 ``[vocabulary]``.
    """
    graph, pair = graph_of(subject), pairs.select([row])
    with subject.lock, torch.no_grad():
        clean = record(subject, graph, pair, pair.clean, ("z", "mlp"))
        corrupt = record(subject, graph, pair, pair.corrupt, ("z", "mlp"))
        if source == graph.n_sources:
            return (clean.logits[0] - corrupt.logits[0]).float().cpu()
        last = int(pair.length[0]) - 1
        if source == 0:
            change = clean.embedding[0, last] - corrupt.embedding[0, last]
        else:
            layer, head = divmod(source - 1, graph.n_heads + 1)
            if head == graph.n_heads:
                change = clean.mlp[layer][0, last] - corrupt.mlp[layer][0, last]
            else:
                z = clean.z[layer][0, last, head] - corrupt.z[layer][0, last, head]
                change = z @ Block(subject, layer).output()[head].to(z.dtype)
        norm = final_norm(subject)
        scale = norm.normalise(clean.final[0, last])[1]
        change = change - change.mean() if norm.centred else change
        unembedding = subject.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
        raised = (change * scale * norm.scale).to(unembedding.dtype) @ unembedding.T
    return raised.float().cpu()


def predicted(subject: Subject, pairs: Pairs, row: int) -> Tensor:
    """Probabilities of the next token on the clean and the corrupt prompt, ``[2, vocabulary]``."""
    pair = pairs.select([row])
    tokens = torch.cat([pair.clean, pair.corrupt])
    with subject.lock, torch.no_grad():
        logits = subject.next_token_logits(tokens, pair.length.repeat(2))
    return logits.float().softmax(-1).cpu()


def words(subject: Subject, tokens: Tensor) -> list[str]:
    """Each token of ``[T]`` as text, with its space shown as ``·``."""
    texts = [str(subject.tokenizer.decode([token])) for token in tokens.tolist()]
    return [text.replace(" ", "·").replace("\n", "⏎") for text in texts]
