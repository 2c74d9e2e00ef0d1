"""What a model does on one prompt: a node's attention and the tokens it promotes, layer by layer.

One pass shows all nodes of a clean–corrupt pair (``look``); asking for another node costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.record import Hook, Record, difference, packed
from mansu.quant.swap import quantized
from mansu.subjects.blocks import Block, final_norm
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs


@dataclass(frozen=True, eq=False)
class Look:
    """One pair as the model ran it.

    Attributes:
        patterns: ``[layers, 2, heads, T, T]``, of the clean and the corrupt prompt.
        delta: what nodes write on the corrupt prompt minus the clean one, from the first token on
            in which they differ. logits: ``[2, vocabulary]``.
        scale: the final norm's on the clean prompt, ``[d]`` with its r.
    """

    subject: Subject
    graph: Graph
    patterns: Tensor
    delta: Record
    logits: Tensor
    scale: Tensor

    def attention(self, layer: int, head: int) -> Tensor:
        """Attention pattern of a head on the clean and the corrupt prompt.

        Returns:
            ``[2, T, T]``: from every position (axis 1) to every earlier one (axis 2); rows sum
            to 1.
        """
        return self.patterns[layer, :, head]

    def promoted(self, source: int) -> Tensor:
        """How much a node's output raises each token's logit on the clean prompt over the corrupt.

        The logit lens (nostalgebraist 2020) on a difference: (z_clean − z_corrupt) at the last
        position, through the final norm at the clean run's scale, through the unembedding. It is
        the node's direct effect; what later layers do with it is not in it.

        Args:
            source: index of the node in ``mansu.circuits.graph.Graph``; ``n_sources`` for the
                logits themselves, where the difference is that of the two runs' logits.

        Returns:
            float32 ``[vocabulary]``.
        """
        if source == self.graph.n_sources:
            return (self.logits[0] - self.logits[1]).float().cpu()
        layer, head = divmod(source - 1, self.graph.n_heads + 1)
        with self.subject.lock, torch.no_grad():
            if source == 0:
                change = -self.delta.embedding[-1]
            elif head == self.graph.n_heads:
                change = -self.delta.mlp[layer][-1]
            else:
                z = -self.delta.z[layer][-1, head]
                change = z @ Block(self.subject, layer).output()[head].to(z.dtype)
            centred = final_norm(self.subject).centred
            change = change - change.mean() if centred else change
            unembedding = self.subject.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
            return ((change * self.scale).to(unembedding.dtype) @ unembedding.T).float().cpu()

    def predicted(self) -> Tensor:
        """Probabilities of the next token on the clean and the corrupt prompt, ``[2, V]``."""
        return self.logits.float().softmax(-1).cpu()


def look(subject: Subject, pairs: Pairs, row: int) -> Look:
    """Run pair ``row`` once and keep what any of its nodes can be asked.

    Raises:
        MansuError: an activation is not finite.
    """
    graph, (pair,) = graph_of(subject), packed(subject, pairs.select([row]))
    patterns: list[Tensor] = []
    final: list[Tensor] = []
    hooks: list[Hook] = [
        (f"blocks.{i}.attn.hook_pattern", lambda value, hook: patterns.append(value.float().cpu()))
        for i in range(graph.n_layers)
    ]
    hooks.append(("ln_final.hook_in", lambda value, hook: final.append(value[0])))
    with subject.lock:
        delta, logits = difference(subject, graph, pair, ("z", "mlp"), hooks)
        norm = final_norm(subject)
        scale = norm.normalise(final[0][-1])[1] * norm.scale
    return Look(subject, graph, torch.stack(patterns), delta, logits[:, 0], scale)


@dataclass(frozen=True, eq=False)
class Seen:
    """One node on one pair, in the unedited or an edited model.

    Attributes:
        attention: as ``Look.attention``; None of what is no head. promoted: as ``Look.promoted``.
    """

    attention: Tensor | None
    promoted: Tensor


def node_of_edited(
    subject: Subject, pairs: Pairs, row: int, source: int, edit: Edit, *, nf4: bool = False
) -> Seen:
    """What a node does on pair ``row`` after an edit, in full precision or in NF4.

    Raises:
        MansuError: the edit does not fit the subject, or an activation is not finite.
    """
    with edit.applied(subject), quantized(subject) if nf4 else nullcontext():
        return node_seen(look(subject, pairs, row), source)


def node_seen(seen: Look, source: int) -> Seen:
    """One node of a look, whose weights must still be those that it was taken with."""
    layer, head = divmod(source - 1, seen.graph.n_heads + 1)
    is_head = 0 < source < seen.graph.n_sources and head < seen.graph.n_heads
    return Seen(seen.attention(layer, head) if is_head else None, seen.promoted(source))


def extremes(raised: Sequence[Tensor], n: int, always: Sequence[int]) -> Tensor:
    """Tokens to show of one model, or of several side by side.

    Args:
        raised: ``[vocabulary]`` of each model. n: how many to show at either end, shared by them.
        always: tokens that are shown, whatever they are.

    Returns:
        int64: the tokens that a model raises or lowers most, by what the first one does to them,
        falling.
    """
    each, found = max(1, n // len(raised)), set(always)
    for values in raised:
        found |= {*values.topk(each).indices.tolist(), *(-values).topk(each).indices.tolist()}
    tokens = torch.tensor(sorted(found), dtype=torch.long)
    return tokens[raised[0][tokens].argsort(descending=True)]


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the residual stream would say if the model ended after each layer.

    Attributes:
        tokens: int64 ``[T]``, those that were read: the prompt's, or its last.
        top: int64 ``[layers + 1, T, k]``, the most probable next tokens before layer 0, before
            layer 1, … and at the end. probability: theirs.
        wanted: ``[layers + 1, T, n]``, the log-probability of n tokens that were asked for, nats.
    """

    tokens: Tensor
    top: Tensor
    probability: Tensor
    wanted: Tensor


@torch.no_grad()
def logit_lens(
    subject: Subject,
    prompt: str,
    *,
    top: int = 5,
    wanted: Sequence[int] = (),
    last: bool = False,
) -> LogitLens:
    """The logit lens (nostalgebraist 2020) of a prompt, every layer and position in one pass.

    Args:
        top: so many of the most probable tokens; all of a smaller vocabulary.
        wanted: tokens whose log-probability is told, too.
        last: at the prompt's last position only, which is much quicker.
    """
    tokens = torch.tensor(subject.encode(prompt, start=True))
    streams: list[Tensor] = []
    read = slice(-1, None) if last else slice(None)

    def keep(value: Tensor, hook: object) -> None:
        streams.append(value[0, read])

    names = [Block(subject, i).hook_in for i in range(graph_of(subject).n_layers)]
    (pack,) = subject.packs(tokens[None], torch.tensor([len(tokens)]))
    with subject.lock:
        with subject.bridge.hooks(fwd_hooks=[(n, keep) for n in [*names, "ln_final.hook_in"]]):
            subject.run(pack, pack.tokens[None], hooked=True)
        logits = subject.head(subject.bridge.ln_final(torch.stack(streams))).float()
    said = logits.log_softmax(-1).cpu()
    values, found = said.exp().topk(min(top, said.shape[-1]))
    asked = torch.tensor(list(wanted), dtype=torch.long)
    return LogitLens(tokens[read], found, values, said[..., asked])


def words(subject: Subject, tokens: Tensor | Sequence[int]) -> list[str]:
    """Each token of ``[T]`` as text, with its space shown as ``·``."""
    ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    texts = [str(subject.tokenizer.decode([token])) for token in ids]
    return [text.replace(" ", "·").replace("\n", "⏎") for text in texts]
