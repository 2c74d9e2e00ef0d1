"""Real patching: a circuit is run with every edge outside it at its corrupt value.

The input of a destination v is (Wang et al. 2022; Hanna et al. 2024)

    x_v = x_v^corrupt + Σ_{u → v in the circuit} (z_u − z_u^corrupt),

with z_u what u writes in this very run. Faithfulness is the metric so obtained, normalised so that
the corrupt run is 0 and the clean run is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import graph_of
from mansu.circuits.metric import MEMORY, Metric, Progress, metric_values, refuse_equal
from mansu.circuits.record import Record, logits_with, post_scale, record
from mansu.subjects.blocks import Block
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

RESAMPLES = 1000


BATCH = 4  # candidate circuits a pass, where memory allows


class Patched:
    """Runs a subject with every edge outside a circuit patched to its corrupt value.

    The corrupt run is recorded once; candidates then go through as many at a time as ``memory``
    holds. Values are per pair, so that intervals can be made.

    Attributes:
        clean, corrupt: the metric of every pair ``[N]`` in the clean and the corrupt run.
    """

    def __init__(
        self,
        subject: Subject,
        pairs: Pairs,
        metric: Metric = "logit_difference",
        memory: int = MEMORY,
    ) -> None:
        self.metric: Metric = metric
        self.subject, self.memory = subject, memory
        self.graph = graph_of(subject)
        d = subject.config.hidden_size
        self.row = int(pairs.length.max()) * d * 4  # bytes of one node's output, one pair
        stored = self.row * self.graph.n_layers * 8
        chunk = max(1, min(len(pairs), memory // 4 // (stored + self.graph.n_sources * self.row)))
        self.parts: list[tuple[Pairs, Record, Tensor | None]] = []
        clean, corrupt = [], []
        for start in range(0, len(pairs), chunk):
            part = pairs.select(range(start, min(start + chunk, len(pairs))))
            run = record(subject, self.graph, part, part.clean, ())
            reference = run.logits.float().log_softmax(-1) if metric == "kl" else None
            clean.append(metric_values(metric, run.logits, part, reference))
            kept = ("inputs", "mlp_inputs", "qkv", "z", "mlp")
            run = record(subject, self.graph, part, part.corrupt, kept)
            corrupt.append(metric_values(metric, run.logits, part, reference))
            self.parts.append((part, run, reference))
        self.clean, self.corrupt = torch.cat(clean).cpu(), torch.cat(corrupt).cpu()
        refuse_equal(float(self.clean.mean()), float(self.corrupt.mean()), metric)

    def values(self, masks: Tensor) -> Tensor:
        """The metric of every pair under every candidate circuit.

        Args:
            masks: bool ``[candidates, n_sources, n_destinations]``.

        Returns:
            ``[candidates, N]``, float32 (float64 for a float64 model).
        """
        masks = torch.stack([self.graph.prune(mask) for mask in masks])
        live = int(masks.any(2).any(0).sum()) + 4 * self.graph.per_layer
        rows = max(len(part) for part, _, _ in self.parts)
        batch = max(1, min(BATCH, self.memory // 2 // max(1, live * rows * self.row)))
        return torch.cat(
            [
                torch.cat([self._run(some, *part) for part in self.parts], 1)
                for some in masks.split(batch)
            ]
        )

    def faithfulness(self, values: Tensor) -> Tensor:
        """Normalise metrics ``[candidates, N]`` to faithfulness ``[candidates]``."""
        corrupt = self.corrupt.mean()
        return (values.mean(1) - corrupt) / (self.clean.mean() - corrupt)

    def intervals(self, values: Tensor, seed: int = 0) -> Tensor:
        """Bootstrap 95 % intervals over pairs of the faithfulness, ``[candidates, 2]``."""
        n = values.shape[1]
        drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
        weights = torch.zeros(RESAMPLES, n, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(weights)).div_(n)
        corrupt = weights @ self.corrupt.double()
        gap = weights @ self.clean.double() - corrupt
        shares = (values.double() @ weights.T - corrupt) / gap
        return shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 1).T.float()

    @torch.no_grad()
    def _run(
        self, masks: Tensor, pairs: Pairs, corrupt: Record, reference: Tensor | None
    ) -> Tensor:
        graph, subject = self.graph, self.subject
        c, n, p = len(masks), *pairs.clean.shape
        d = corrupt.embedding.shape[-1]
        dtype, device = corrupt.embedding.dtype, corrupt.embedding.device
        sources = masks.any(2).any(0).nonzero()[:, 0]  # the only ones that anyone reads
        place = {int(source): i for i, source in enumerate(sources)}
        weights = masks[:, sources].to(device, dtype)  # [c, live, destinations]
        into = masks.any(1).any(0)  # destinations with an edge in some candidate
        written = torch.zeros(c, len(sources), n * p * d, dtype=dtype, device=device)
        layer_state: dict[str, Tensor] = {}

        def read(stream: Tensor, destinations: Tensor, n_sources: int) -> Tensor:
            """Patched inputs ``[c, destinations, n, p, d]`` of the residual stream."""
            ready = int((sources < n_sources).sum())
            wanted = weights[:, :ready, destinations.to(device)].transpose(1, 2)
            change = wanted @ written[:, :ready].to(device)
            return change.view(c, len(destinations), n, p, d).to(stream.device) + stream

        def write(source: int, change: Tensor) -> None:
            if source in place:
                written[:, place[source]] = change.reshape(c, -1).to(device)

        def patch_qkv(block: Block, layer: int) -> None:
            where = graph.attention_inputs(layer)
            every = corrupt.qkv[layer]
            values = every.expand(c, *every.shape).clone()  # [c, n, p, V, k]
            live = into[where].nonzero()[:, 0]
            if len(live):
                x = read(corrupt.inputs[layer], live + where.start, graph.before_attention(layer))
                weight, bias = block.readers()
                live = live.to(weight.device)
                x = block.norm("ln1").module(x)  # the model's own norm, on every reader's stream
                heads = x.flatten(2, 3) @ weight[live] + bias[live, None]  # [c, V', n p, k]
                values[:, :, :, live] = heads.view(c, len(live), n, p, -1).permute(0, 2, 3, 1, 4)
            q, k, v = values.flatten(0, 1).split([graph.n_heads] + [graph.n_kv_heads] * 2, 2)
            layer_state.update(zip(block.hook_qkv, (q, k, v), strict=True))

        def write_heads(block: Block, layer: int, z: Tensor, attention: Tensor) -> None:
            first = graph.head(layer)
            heads = [h for h in range(graph.n_heads) if first + h in place]
            if not heads:
                return
            z = z * post_scale(block, attention).to(z.dtype)
            change = z.view(c, n, p, graph.n_heads, -1)[..., heads, :]
            change = change - corrupt.z[layer][..., heads, :]
            change = torch.einsum("cnphk,hkd->chnpd", change, block.output()[heads].to(z.dtype))
            for i, head in enumerate(heads):
                write(first + head, change[:, i])

        def patch_embedding(value: Tensor) -> None:
            write(0, value.view(c, n, p, d) - corrupt.embedding)

        def patch_mlp_in(value: Tensor, layer: int) -> Tensor:
            where = graph.mlp_input(layer)
            stream = corrupt.mlp_inputs[layer]
            if not bool(into[where]):
                return stream.expand(c, *stream.shape).reshape(value.shape)
            x = read(stream, torch.tensor([where]), graph.before_mlp(layer))
            return x.reshape(value.shape)

        def patch_final(value: Tensor) -> Tensor:
            x = read(corrupt.final, torch.tensor([graph.logits]), graph.n_sources)
            return x.reshape(value.shape)

        def qkv_hook(block: Block, layer: int, name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                if name == block.hook_qkv[0]:
                    patch_qkv(block, layer)
                return layer_state.pop(name)

            return hook

        def z_hook(value: Tensor, hook: Any) -> None:
            layer_state["z"] = value

        hooks: list[Any] = [("blocks.0.hook_in", lambda value, hook: patch_embedding(value))]
        for layer in range(graph.n_layers):
            block = Block(subject, layer)
            hooks += [(name, qkv_hook(block, layer, name)) for name in block.hook_qkv]
            hooks += [
                (block.hook_z, z_hook),
                (
                    block.hook_attention,
                    lambda value, hook, b=block, i=layer: write_heads(
                        b, i, layer_state.pop("z"), value
                    ),
                ),
                (block.hook_mlp_in, lambda value, hook, i=layer: patch_mlp_in(value, i)),
                (
                    block.hook_mlp_write,
                    lambda value, hook, i=layer: write(
                        graph.mlp(i), value.view(c, n, p, d) - corrupt.mlp[i]
                    ),
                ),
            ]
        hooks.append(("ln_final.hook_in", lambda value, hook: patch_final(value)))
        repeated = pairs.select(torch.arange(n).repeat(c))
        logits = logits_with(subject, repeated, repeated.clean, hooks)
        again = None if reference is None else reference.repeat(c, 1)
        return metric_values(self.metric, logits, repeated, again).view(c, n).cpu()


def activation_patching(
    subject: Subject,
    pairs: Pairs,
    *,
    metric: Metric = "logit_difference",
    edges: Tensor | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Tensor:
    """The exact effect of every edge: what attribution estimates, at one forward pass an edge.

    Args:
        edges: int64 coded edges (source · n_destinations + destination); all where None.

    Returns:
        ``[n_sources, n_destinations]``: mean metric with that edge alone corrupt, minus the clean
        one (Meng et al. 2022, per edge); 0 where not asked for.

    Raises:
        MansuError: as ``Patched``.
    """
    patched = Patched(subject, pairs, metric, memory)
    graph = patched.graph
    codes = graph.edges.flatten().nonzero()[:, 0] if edges is None else edges
    effects = torch.zeros(graph.n_sources * graph.n_destinations, dtype=patched.clean.dtype)
    for start in range(0, len(codes), BATCH):
        some = codes[start : start + BATCH]
        masks = graph.edges.flatten().repeat(len(some), 1)
        masks[torch.arange(len(some)), some] = False
        values = patched.values(masks.view(len(some), *graph.edges.shape))
        effects[some] = (values - patched.clean).mean(1)
        if progress is not None:
            progress(start + len(some), len(codes))
    return effects.view(graph.edges.shape)
