"""Runs with hooks: what is written and read on clean and corrupt prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph
from mansu.errors import MansuError
from mansu.subjects.blocks import Block
from mansu.subjects.packing import Pack, pack_size, packs
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

Hook = tuple[str, Callable[..., Any]]  # TransformerLens's: name, function of value and hook point


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Pairs as one tree (``mansu.subjects.packing``): the clean and the corrupt run lie alike.

    Before the first token in which its two prompts differ, a pair may share tokens with others;
    from there on its tokens are its own. L of the T tokens are *live*: runs may differ there.

    Attributes:
        pairs: in the order of the pack. pack: of the clean tokens.
        clean, corrupt: int64 ``[T]``.
        live: int64 ``[L]``, places of the live tokens; pair: int64 ``[L]``, whose each is.
    """

    pairs: Pairs
    pack: Pack
    clean: Tensor
    corrupt: Tensor
    live: Tensor
    pair: Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    def ends(self, hidden: Tensor) -> Tensor:
        """Of hidden states ``[c, T, d]`` those at each pair's last token, ``[c, N, d]``."""
        return hidden[:, self.pack.last.to(hidden.device)]


def packed(subject: Subject, pairs: Pairs, size: int | None = None) -> list[PackedPairs]:
    """Pairs as packs of at most about ``size`` tokens (the device's, by default)."""
    both = torch.stack([pairs.clean, pairs.corrupt], -1)
    real = torch.arange(both.shape[1]) < pairs.length[:, None]
    live = (both[..., 0] != both[..., 1]).cumsum(1).bool() & real
    found = []
    for pack in packs(both, pairs.length, size=size or pack_size(subject.device), alone=live):
        clean, corrupt = pack.tokens.unbind(-1)
        here = live[pack.rows][:, : pack.at.shape[1]]
        found.append(
            PackedPairs(
                pairs.select(pack.rows),
                pack,
                clean,
                corrupt,
                live=pack.at[here],
                pair=here.nonzero()[:, 0],
            )
        )
    return found


def logits_with(
    subject: Subject, packed: PackedPairs, tokens: Tensor, hooks: Sequence[Hook]
) -> Tensor:
    """Logits after each pair's last token with TransformerLens hooks in place.

    Args:
        tokens: int64 ``[c, T]``, c runs side by side, each the pack's ``clean`` or ``corrupt``.

    Returns:
        ``[c, N, vocabulary]``.
    """
    with subject.lock, subject.bridge.hooks(fwd_hooks=list(hooks)):
        return subject.head(packed.ends(subject.run(packed.pack, tokens, hooked=True)))


@dataclass
class Record:
    """Activations of one run, or how two runs differ, a list entry a layer.

    T tokens of a pack, or its live ones where only those were asked for.

    Attributes:
        embedding: ``[T, d]``, the residual stream that enters layer 0.
        inputs, mlp_inputs: residual stream that enters the attention and the MLP, ``[T, d]``.
        final: residual stream that enters the final norm.
        qkv: ``[T, V, k]``, all queries, keys and values.
        z: ``[T, H, k]``, times the post-norm's r where there is one; raw_z: without it.
        attention, mlp: what attention and MLP write to the residual stream, ``[T, d]``.
        neurons: ``[T, m]``.
        logits: ``[n, vocabulary]``.
    """

    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: list[Tensor] = field(default_factory=list)
    mlp_inputs: list[Tensor] = field(default_factory=list)
    qkv: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    raw_z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)

    def __neg__(self) -> Record:
        """The same with every sign turned."""
        found = Record()
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            setattr(found, name, [-x for x in value] if isinstance(value, list) else -value)
        return found


def record(
    subject: Subject,
    graph: Graph,
    packed: PackedPairs,
    tokens: Tensor,
    kept: Sequence[str],
    hooks: Sequence[Hook] = (),
) -> Record:
    """Run ``[T]`` tokens without gradients and keep the activations named in ``kept``.

    Args:
        hooks: others, in place before.

    Raises:
        MansuError: an activation is NaN or infinite; the message names the layer.
    """
    run = Record()
    with torch.no_grad():
        mine = _recorder(subject, graph, run, kept, None)
        run.logits = logits_with(subject, packed, tokens[None], [*hooks, *mine])[0]
    return run


def difference(
    subject: Subject,
    graph: Graph,
    packed: PackedPairs,
    kept: Sequence[str],
    hooks: Sequence[Hook] = (),
) -> tuple[Record, Tensor]:
    """What the corrupt run has more than the clean one at live tokens, in one pass for both.

    Args:
        hooks: others, in place before; they see both runs.

    Returns:
        Their difference, without ``final`` and ``logits``; the logits ``[2, N, vocabulary]`` of
        the clean and the corrupt run.

    Raises:
        MansuError: as ``record``.
    """
    run, both = Record(), torch.stack([packed.clean, packed.corrupt])
    with torch.no_grad():
        mine = _recorder(subject, graph, run, kept, packed.live)
        logits = logits_with(subject, packed, both, [*hooks, *mine])
        same = torch.ones(len(packed), dtype=torch.bool)
        same[packed.pair] = False  # one prompt twice: not even a rounding apart
        logits[1, same] = logits[0, same]
        return run, logits


def _recorder(
    subject: Subject, graph: Graph, run: Record, kept: Sequence[str], live: Tensor | None
) -> list[Hook]:
    """Hooks that put a run into ``run``; with ``live`` tokens, how the second run differs there."""
    raw: dict[str, Tensor] = {}

    def at(name: str) -> Tensor:
        return raw[name] if live is None else at_tokens(raw[name], live)

    def put(values: list[Tensor], value: Tensor) -> None:
        values.append(value[0] if live is None else value[1] - value[0])

    def finish_layer(block: Block, layer: int) -> None:
        for part, hook in (
            ("attention", block.hook_attention_write),
            ("MLP", block.hook_mlp_write),
        ):
            if not bool(torch.isfinite(raw[hook]).all()):
                raise MansuError(
                    f"The {part} of layer {layer} of {subject.name!r} writes NaN or infinite "
                    "values: check the weights and the dtype."
                )
        for name, hook in (
            ("inputs", block.hook_in),
            ("mlp_inputs", block.hook_mlp_in),
            ("attention", block.hook_attention_write),
            ("mlp", block.hook_mlp_write),
            ("neurons", block.hook_neurons),
        ):
            if name in kept:
                put(getattr(run, name), at(hook))
        if "qkv" in kept:
            put(run.qkv, torch.cat([at(name) for name in block.hook_qkv], -2))
        if "z" in kept:
            z = at(block.hook_z)
            put(run.z, z * post_scale(block, at(block.hook_attention)).to(z.dtype))
        if "raw_z" in kept:
            if block.has_post_norms:
                put(run.raw_z, at(block.hook_z))
            else:
                run.raw_z.append(run.z[layer])
        if layer == 0:
            first: list[Tensor] = []
            put(first, at(block.hook_in))
            run.embedding = first[0]
        raw.clear()

    def tap(name: str) -> Hook:
        return name, lambda value, hook: raw.__setitem__(name, value.detach())

    def end(block: Block, layer: int) -> Hook:
        return block.hook_end, torch.no_grad()(lambda value, hook: finish_layer(block, layer))

    blocks = [Block(subject, layer) for layer in range(graph.n_layers)]
    hooks: list[Hook] = []
    if live is None:
        final = ("ln_final.hook_in", lambda value, hook: setattr(run, "final", value.detach()[0]))
        hooks.append(final)
    for layer, block in enumerate(blocks):
        hooks += [*(tap(name) for name in block.hooks), end(block, layer)]
    return hooks


def post_scale(block: Block, attention: Tensor) -> Tensor:
    """The post-norm's r ``[..., 1, 1]`` for an attention output ``[..., d]``; 1 without one."""
    if not block.has_post_norms:
        return attention.new_ones(())
    return block.post_norm.normalise(attention)[1][..., None]


def at_tokens(x: Tensor, live: Tensor) -> Tensor:
    """``[c, T, ...]`` at some of its tokens, ``[c, L, ...]``."""
    return x.index_select(1, live.to(x.device))
