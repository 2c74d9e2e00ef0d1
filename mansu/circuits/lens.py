"""What a model does on one prompt: a node's attention and the tokens it promotes, layer by layer.

One pass shows all nodes of a prompt (``look``); asking for another node costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.record import Hook, Record, difference, packed, record
from mansu.quant.swap import quantized
from mansu.subjects.blocks import Block, final_norm
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs


@dataclass(frozen=True)
class Asked:
    """A prompt that a node is looked at on; by its content, so that it can be a cache's key.

    Attributes:
        clean: its tokens. corrupt: as many of the prompt that it is held against; None where it is
            held against none.
        answer, foil: tokens that are followed; no foil where there is no corrupt prompt.
    """

    clean: tuple[int, ...]
    answer: int
    corrupt: tuple[int, ...] | None = None
    foil: int | None = None

    @classmethod
    def of(cls, pairs: Pairs, row: int) -> Asked:
        """A clean–corrupt pair."""
        n = int(pairs.length[row])
        clean, corrupt = (tuple(x[row, :n].tolist()) for x in (pairs.clean, pairs.corrupt))
        return cls(clean, int(pairs.answer[row]), corrupt, int(pairs.foil[row]))

    @property
    def ends(self) -> list[int]:
        """The answer, and the foil where there is one."""
        return [self.answer] if self.foil is None else [self.answer, self.foil]

    @property
    def pairs(self) -> Pairs:
        """As one pair; of the prompt and itself where it is held against none."""
        clean = torch.tensor([self.clean])
        corrupt = clean if self.corrupt is None else torch.tensor([self.corrupt])
        ends = torch.tensor([self.answer]), torch.tensor([self.ends[-1]])
        return Pairs(clean, corrupt, torch.tensor([clean.shape[1]]), *ends, (0,))


@dataclass(frozen=True, eq=False)
class Look:
    """A prompt as the model ran it, held against its corrupt one or against nothing.

    Attributes:
        asked: the prompt. c below is 2 with a corrupt prompt, its runs in this order, else 1.
        patterns: ``[layers, c, heads, T, T]``.
        delta: what nodes write on the corrupt prompt minus the clean one, from the first token on
            in which they differ; against nothing, what they write with its sign turned.
        logits: ``[c, vocabulary]``.
        neurons: ``[layers, c, m]``, activations at the last token, times the post-norm's r where
            there is one.
        scale: the final norm's on the clean prompt, ``[d]`` with its r.
    """

    subject: Subject
    graph: Graph
    asked: Asked
    patterns: Tensor
    delta: Record
    logits: Tensor
    neurons: Tensor
    scale: Tensor

    def attention(self, layer: int, head: int) -> Tensor:
        """Attention pattern of a head on the clean and, where there is one, the corrupt prompt.

        Returns:
            ``[c, T, T]``: from every position (axis 1) to every earlier one (axis 2); rows sum
            to 1.
        """
        return self.patterns[layer, :, head]

    def promoted(self, source: int) -> Tensor:
        """How much a node's output raises each token's logit on the clean prompt over the corrupt.

        The logit lens (nostalgebraist 2020) on a difference: (z_clean − z_corrupt) at the last
        position, through the final norm at the clean run's scale, through the unembedding. It is
        the node's direct effect; what later layers do with it is not in it. Without a corrupt
        prompt it is z_clean's: of a model without biases, all nodes' add up to the logits.

        Args:
            source: index of the node in ``mansu.circuits.graph.Graph``; ``n_sources`` for the
                logits themselves, where the difference is that of the two runs' logits.

        Returns:
            float32 ``[vocabulary]``.
        """
        if source == self.graph.n_sources:
            return self._over(self.logits).float().cpu()
        layer, head = divmod(source - 1, self.graph.n_heads + 1)
        with self.subject.lock, torch.no_grad():
            if source == 0:
                change = -self.delta.embedding[-1]
            elif head == self.graph.n_heads:
                change = -self.delta.mlp[layer][-1]
            else:
                z = -self.delta.z[layer][-1, head]
                change = z @ Block(self.subject, layer).output()[head].to(z.dtype)
            return self._read(change).float().cpu()

    def neurons_of(self, layer: int, n: int, k: int) -> Neurons:
        """What the neurons of an MLP do to the answer's logit (over the foil's), each by itself.

        A neuron writes its activation, clean − corrupt, times its column of the down projection;
        that is read as ``promoted`` is.

        Args:
            n: so many of the strongest neurons are told with the k tokens that they raise most.
        """
        with self.subject.lock, torch.no_grad():
            down = Block(self.subject, layer).down()
            activation = self._over(self.neurons[layer]).to(down.dtype)
            ends = self.asked.ends
            direction = self._unembedding[ends[0]].to(down.dtype)
            if len(ends) > 1:
                direction = direction - self._unembedding[ends[1]].to(down.dtype)
            direction = direction * self.scale.to(down.dtype)
            if final_norm(self.subject).centred:
                direction = direction - direction.mean()
            effect = activation * (down @ direction)
            top = effect.abs().topk(min(n, len(effect))).indices
            raised = self._read(activation[top, None] * down[top]).topk(k).indices
        return Neurons(effect.float().cpu(), top.cpu(), raised.cpu())

    def predicted(self) -> Tensor:
        """Probabilities of the next token on each prompt, ``[c, V]``."""
        return self.logits.float().softmax(-1).cpu()

    def _over(self, values: Tensor) -> Tensor:
        """The clean run's of ``[c, ...]``, less the corrupt one's."""
        return values[0] - values[1] if len(values) > 1 else values[0]

    @property
    def _unembedding(self) -> Tensor:
        return self.subject.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]

    def _read(self, change: Tensor) -> Tensor:
        """``[..., d]`` at the last position as logits ``[..., vocabulary]``."""
        if final_norm(self.subject).centred:
            change = change - change.mean(-1, keepdim=True)
        unembedding = self._unembedding
        return (change * self.scale).to(unembedding.dtype) @ unembedding.T


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of an MLP on one prompt.

    Attributes:
        effect: float32 ``[m]``, each one's direct effect on the answer's logit (over the foil's).
        top: int64 ``[n]``, the strongest ones. raised: int64 ``[n, k]``, the tokens that each
            raises most.
    """

    effect: Tensor
    top: Tensor
    raised: Tensor


def look(subject: Subject, asked: Asked) -> Look:
    """Run a prompt (and its corrupt one) once and keep what any node can be asked.

    Raises:
        MansuError: an activation is not finite.
    """
    graph, (pair,) = graph_of(subject), packed(subject, asked.pairs)
    patterns: list[Tensor] = []
    neurons: list[Tensor] = []
    final: list[Tensor] = []
    hooks: list[Hook] = [("ln_final.hook_in", lambda value, hook: final.append(value[0]))]

    def scaled(block: Block, value: Tensor) -> None:
        """The activations of the layer, which came just before, times the post-norm's r."""
        neurons[-1] = neurons[-1] * block.mlp_post_norm.normalise(value[:, -1])[1]

    for block in (Block(subject, layer) for layer in range(graph.n_layers)):
        name = f"{block.name}.attn.hook_pattern"
        hooks.append((name, lambda value, hook: patterns.append(value.float().cpu())))
        hooks.append((block.hook_neurons, lambda value, hook: neurons.append(value[:, -1])))
        if block.has_post_norms:
            hooks.append((block.hook_mlp, lambda value, hook, b=block: scaled(b, value)))
    kept = ("z", "mlp")
    with subject.lock, torch.no_grad():
        if asked.corrupt is None:
            delta = -record(subject, graph, pair, pair.clean, kept, hooks)
            logits = -delta.logits
        else:
            delta, both = difference(subject, graph, pair, kept, hooks)
            logits = both[:, 0]
        norm = final_norm(subject)
        scale = norm.normalise(final[0][-1])[1] * norm.scale
    seen = torch.stack(patterns), delta, logits, torch.stack(neurons), scale
    return Look(subject, graph, asked, *seen)


@dataclass(frozen=True, eq=False)
class Seen:
    """One node on one prompt, in the unedited or an edited model.

    Attributes:
        attention: as ``Look.attention``; None of what is no head. promoted: as ``Look.promoted``.
        neurons: of an MLP, else None.
    """

    attention: Tensor | None
    promoted: Tensor
    neurons: Neurons | None


def node_of_edited(
    subject: Subject, asked: Asked, source: int, edit: Edit, *, nf4: bool = False
) -> Seen:
    """What a node does on a prompt after an edit, in full precision or in NF4.

    Raises:
        MansuError: the edit does not fit the subject, or an activation is not finite.
    """
    with edit.applied(subject), quantized(subject) if nf4 else nullcontext():
        return node_seen(look(subject, asked), source)


STRONG, RAISED = 5, 4
"""Neurons that are told of a node, and tokens that are told of a neuron."""


def node_seen(seen: Look, source: int) -> Seen:
    """One node of a look, whose weights must still be those that it was taken with."""
    layer, head = divmod(source - 1, seen.graph.n_heads + 1)
    inside, heads = 0 < source < seen.graph.n_sources, seen.graph.n_heads
    return Seen(
        seen.attention(layer, head) if inside and head < heads else None,
        seen.promoted(source),
        seen.neurons_of(layer, STRONG, RAISED) if inside and head == heads else None,
    )


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
