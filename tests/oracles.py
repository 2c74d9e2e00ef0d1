"""Independent computations that attribution is held against, by the tests and experiments/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.gradients import Gradients, Points
from mansu.circuits.graph import graph_of
from mansu.circuits.metric import metric_values
from mansu.circuits.record import Record, packed
from mansu.measure.geometry import Mask
from mansu.subjects.blocks import Block
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

Hooks = Sequence[tuple[str, Callable[..., Any]]]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def prompts(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    """Clean and corrupt tokens ``[p]`` of each pair, without padding."""
    for clean, corrupt, length in zip(
        pairs.clean, pairs.corrupt, pairs.length.tolist(), strict=True
    ):
        yield clean[:length], corrupt[:length]


def alone(subject: Subject, tokens: Tensor, hooks: Hooks = ()) -> Tensor:
    """Logits ``[vocabulary]`` after one row ``[p]``, which Hugging Face runs as it is: not packed,
    not padded, with its own mask and positions."""
    with subject.bridge.hooks(fwd_hooks=list(hooks)):
        found: Any = subject.model(input_ids=tokens[None].to(subject.device), use_cache=False)
    return found.logits[0, -1]


@torch.no_grad()
def seen(subject: Subject, tokens: Tensor, *names: str) -> dict[str, Tensor]:
    """What hooks see when one row runs ``alone``, ``[p, ...]``."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return name, lambda value, hook: found.__setitem__(name, value[0].clone())

    alone(subject, tokens, [keep(name) for name in names])
    return found


def gradients_of_split_stream(
    subject: Subject, tokens: Tensor, answer: int, foil: int, embedding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """∂L/∂x_v in one row, with one copy of the residual stream for every destination.

    Autograd goes through the model's own norm and projections, a copy at a time: nothing of the
    closed form under test is used.

    Args:
        embedding: ``[p, d]``, what enters layer 0 instead of the row's own embedding.

    Returns:
        ``[n_destinations, p, d]``; the logits ``[vocabulary]``.
    """
    layout = graph_of(subject)
    copies: dict[str, Tensor] = {}
    streams: dict[str, Tensor] = {}
    hooks: list[Any] = []

    def start(value: Tensor, hook: Any) -> Tensor:
        return (value if embedding is None else embedding[None]).detach().requires_grad_()

    def split(name: str, value: Tensor) -> Tensor:
        copies[name] = value.clone()
        copies[name].retain_grad()
        return copies[name]

    def reader(name: str) -> Any:
        return name, lambda value, hook: split(name, value)

    for layer in range(layout.n_layers):
        block = Block(subject, layer)
        attention = block.bridge.attn
        # OLMo-2's attention reads the stream as it is.
        norm = getattr(block.bridge, "ln1", torch.nn.Identity())
        norm = getattr(norm, "original_component", norm)

        def keep(value: Tensor, hook: Any) -> None:
            streams["x"] = value

        def q_hook(
            value: Tensor,
            hook: Any,
            attention: Any = attention,
            norm: Any = norm,
            name: str = block.hook_qkv[0],
        ) -> Tensor:
            heads = layout.per_layer - 1
            copy = split(name, streams["x"][:, :, None].expand(-1, -1, heads, -1))
            groups = copy.split([layout.n_heads, layout.n_kv_heads, layout.n_kv_heads], 2)
            for kind, part in zip("qkv", groups, strict=True):
                linear = getattr(attention, kind).original_component
                full = linear(norm(part)).unflatten(-1, (part.shape[2], -1))  # every head's input
                diagonal = full.diagonal(dim1=2, dim2=3).movedim(-1, 2)  # to its own weights
                streams[kind] = diagonal
            return streams["q"]

        hooks += [(block.hook_in, keep), (block.hook_qkv[0], q_hook), reader(block.hook_mlp_in)]
        hooks += [
            (name, lambda value, hook, kind=kind: streams[kind])
            for kind, name in zip("kv", block.hook_qkv[1:], strict=True)
        ]
    hooks = [("blocks.0.hook_in", start), *hooks, reader("ln_final.hook_in")]
    with torch.enable_grad():
        logits = alone(subject, tokens, hooks)
        (logits[answer] - logits[foil]).backward()

    def gradient(name: str) -> Tensor:
        found = copies[name].grad
        assert found is not None
        return found[0]

    found = []
    for layer in range(layout.n_layers):
        block = Block(subject, layer)
        found.append(gradient(block.hook_qkv[0]).transpose(0, 1))
        found.append(gradient(block.hook_mlp_in)[None])
    return torch.cat([*found, gradient("ln_final.hook_in")[None]]), logits.detach()


def gradient_errors(subject: Subject, pairs: Pairs) -> list[float]:
    """Relative error, by layer, of attribution's gradients at q, k and v to a split stream's.

    At every token of the packs, live or not: that of several pairs has the sum of their gradients.
    """
    layout = graph_of(subject)
    found: list[list[Tensor]] = [[] for _ in range(layout.n_layers)]
    expected: list[Tensor] = []
    for part in packed(subject, pairs):
        everywhere = torch.arange(len(part.pack))
        d = subject.config.hidden_size
        sums = Gradients(subject, layout, Record(), None, 1, everywhere)
        nowhere = torch.zeros(len(everywhere), d)
        sums.add(
            part,
            Points("blocks.0.hook_in", nowhere, torch.zeros(1), everywhere),
            lambda logits, part=part: metric_values(
                "logit_difference", logits[0], part.pairs
            ).sum(),
        )
        for layer in range(layout.n_layers):
            gradient = sums.at_attention(layer, everywhere)
            assert gradient is not None
            found[layer].append(gradient)
        total = torch.zeros(layout.n_destinations, len(everywhere), d)
        answers = zip(part.pairs.answer.tolist(), part.pairs.foil.tolist(), strict=True)
        for i, ((clean, _), (answer, foil)) in enumerate(
            zip(prompts(part.pairs), answers, strict=True)
        ):
            gradient, logits = gradients_of_split_stream(subject, clean, answer, foil)
            # to split the stream changes nothing
            assert torch.allclose(logits, alone(subject, clean), atol=1e-5)
            total[:, part.pack.at[i, : len(clean)]] += gradient
        expected.append(total)
    wanted = torch.cat(expected, 1)
    return [
        relative_error(torch.cat(found[layer], 1), wanted[layout.attention_inputs(layer)])
        for layer in range(layout.n_layers)
    ]


@torch.no_grad()
def written(subject: Subject, tokens: Tensor) -> Tensor:
    """What every node writes to the residual stream when one row runs ``alone``.

    A head's is the model's own output projection of its z, all other heads' at zero.

    Returns:
        ``[n_sources, p, d]``. A bias that an attention adds is no head's.
    """
    layout = graph_of(subject)
    blocks = [Block(subject, layer) for layer in range(layout.n_layers)]
    names = ["blocks.0.hook_in"]
    for block in blocks:
        names += [block.hook_z, block.hook_attention]
        names += [block.hook_attention_write, block.hook_mlp_write]
    value = seen(subject, tokens, *dict.fromkeys(names))
    nodes = [value["blocks.0.hook_in"][None]]
    for block in blocks:
        z, project = value[block.hook_z], block.bridge.attn.o.original_component
        bias = project(torch.zeros_like(z[:, 0]).repeat(1, layout.n_heads))
        each = z * torch.eye(layout.n_heads).to(z)[:, None, :, None]  # [H, p, H, k]
        heads = project(each.flatten(2)) - bias
        if block.has_post_norms:  # which scales, and centres nothing
            heads = heads * (value[block.hook_attention_write] / value[block.hook_attention])
        else:
            whole = value[block.hook_attention_write] - bias
            assert torch.allclose(heads.sum(0), whole, atol=1e-4)
        nodes += [heads, value[block.hook_mlp_write][None]]
    return torch.cat(nodes)


def differences(subject: Subject, pairs: Pairs) -> list[Tensor]:
    """What every node writes on the corrupt prompt of each pair less what it writes on the clean
    one, ``[n_sources, p, d]``."""
    return [
        written(subject, corrupt) - written(subject, clean) for clean, corrupt in prompts(pairs)
    ]


def sensitivities(subject: Subject, pairs: Pairs, steps: int) -> list[Tensor]:
    """The mean gradient of each pair's logit difference at every destination.

    Over the midpoints of ``steps`` parts of the way from its clean to its corrupt embeddings.

    Returns:
        ``[n_destinations, p, d]`` a pair.
    """
    found = []
    answers = zip(pairs.answer.tolist(), pairs.foil.tolist(), strict=True)
    for rows, (answer, foil) in zip(prompts(pairs), answers, strict=True):
        clean, corrupt = (
            seen(subject, row, "blocks.0.hook_in")["blocks.0.hook_in"] for row in rows
        )
        points = [clean + (step + 0.5) / steps * (corrupt - clean) for step in range(steps)]
        gradients = [
            gradients_of_split_stream(subject, rows[0], answer, foil, point)[0] for point in points
        ]
        found.append(torch.stack(gradients).mean(0))
    return found


def products(subject: Subject, writes: Sequence[Tensor], reads: Sequence[Tensor]) -> Tensor:
    """EAP-IG's definition: each pair's ``[n_sources, n_destinations]``, 0 where no edge is."""
    scores = [torch.einsum("spd,epd->se", w, r) for w, r in zip(writes, reads, strict=True)]
    return torch.stack(scores) * graph_of(subject).edges


def branching_pairs() -> Pairs:
    """Pairs that share beginnings of every length, in no order; one is there twice.

    Both prompts of the second are a beginning of the first's. Those of the fifth are the same, so
    it has no effect, and are a beginning of many.
    """
    trunk = (3, 11, 7, 20, 9, 14, 31)
    rows: list[tuple[tuple[int, ...], int]] = [  # tokens, and where the corrupt prompt differs
        (trunk, 2),
        (trunk[:5], 2),
        ((8, 2, 6, 1, 4), 0),
        (trunk, 4),
        (trunk[:3], 3),
        ((*trunk[:4], 5), 4),
        (trunk, 2),
        (trunk[:6], 5),
        ((*trunk[:2], 33, 20, 9, 14), 1),
    ]
    clean = torch.zeros(len(rows), len(trunk), dtype=torch.long)
    length = torch.tensor([len(tokens) for tokens, _ in rows])
    for row, (tokens, _) in zip(clean, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    corrupt = clean.clone()
    for row, (tokens, place) in zip(corrupt, rows, strict=True):
        if place < len(tokens):
            row[place] += 13
    answer = torch.tensor([5, 17, 29, 41, 2, 23, 6, 35, 12])
    return Pairs(clean, corrupt, length, answer, (answer + 5) % 50, tuple(range(len(rows))))


@contextmanager
def near_pairs(subject: Subject, pairs: Pairs, distance: float) -> Iterator[Pairs]:
    """Pairs whose corrupt embeddings differ from the clean ones by a step of size ``distance``.

    Corrupt prompts use tokens from 25 up, whose embeddings are set, until the end of the block,
    beside those of 25 less.
    """
    clean = pairs.clean % 25
    corrupt = clean.clone()
    corrupt[:, 1] += 25
    corrupt[:, 3] += 25
    weight: Tensor = subject.model.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    before = weight.clone()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(25, weight.shape[1], generator=generator, dtype=weight.dtype)
    weight[25:].copy_(weight[:25] + distance * noise)
    try:
        yield replace(
            pairs, clean=clean, corrupt=corrupt, answer=pairs.answer % 25, foil=pairs.foil % 25
        )
    finally:
        weight.copy_(before)


def bound(subject: Subject, edit: Edit, mask: Mask, fisher: Mapping[str, Tensor]) -> float:
    """Theorem 1's quadratic bound on the retain loss, ½ Σ F_i δ_i² over the mask, in nats.

    With the circuit's mask it is the restricted bound; with a mask of every weight the global one,
    which is never smaller.
    """
    total = 0.0
    for name, (where, delta) in edit.delta(subject).items():
        if name in mask:
            moved = torch.zeros(mask[name].numel())
            moved[where.cpu()] = delta.cpu().float()
            total += float((fisher[name] * moved[mask[name].flatten()].square()).sum()) / 2
    return total
