"""Edge attribution: how much each edge of the computation carries a behaviour.

Edge attribution patching (EAP; Syed, Rager and Conmy 2023) with integrated gradients (EAP-IG;
Hanna, Pezzelle and Belinkov 2024). For a metric L (its mean over the pairs) the score of the edge
from node u to destination v is

    score(u → v) = Σ_pairs Σ_positions (z_u^corrupt − z_u^clean) · (1/K) Σ_k ∂L/∂x_v at step k,

the estimated change of L when that edge alone carries its corrupt value.

The residual stream is never split per head. One backward pass a step gives the gradients at all
q, k and v activations; they go back to each head's own residual input in closed form,

    ∂L/∂x_v = r · (C W̃_v g_v − x̂ · (x̂ · W̃_v g_v) / d),

with W̃ the head's weights times the norm's scale, C centring (LayerNorm) or nothing (RMSNorm), and
x̂ · W̃_v g_v = (q_v − bias) · g_v, a product inside the head. So r·g is summed over the steps in head
space, and the product with the weights and with the node differences is done once, not K times.

Attention is causal: before the first token in which two prompts differ, their runs are the same and
no difference is written. Sums go over the *live* tokens only, which are the others but padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mansu.circuits.gradients import (
    CONTRACTION,
    SCORES,
    STEP_BLOCK,
    Gradients,
    Loss,
    Sums,
    contract,
    d_mlp,
    moved_by,
)
from mansu.circuits.graph import Graph, Sourced, graph_of
from mansu.circuits.metric import MEMORY, Metric, metric_values, refuse_equal
from mansu.circuits.record import Record, accumulator, live_tokens, logits_with, record, recorder
from mansu.errors import MansuError
from mansu.files import load_values, reading, save_values, typed
from mansu.progress import OnStep, Step, silent
from mansu.show.table import Shown, Table
from mansu.subjects.blocks import Block
from mansu.subjects.subject import Subject
from mansu.subjects.weights import Heads
from mansu.tasks.tokens import Pairs

Method = Literal["eap-ig-inputs", "eap-ig-activations", "eap"]

HOLES = 1.5  # what malloc keeps beside the tensors: growth was up to 1.37 of their bound (glibc)


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(Shown, Sourced):
    """Scores of every edge, head slice and neuron of a subject on a task.

    Attributes:
        layout: what the indices mean.
        scores: float32 ``[n_sources, n_destinations]``, 0 where ``layout.edges`` has none.
        queries, outputs: float32 ``[layers, heads]``, the same estimate for a head's query and for
            its output z; keys, values: ``[layers, kv heads]``; neurons: ``[layers, d_mlp]``.
        clean, corrupt: the metric, mean over the pairs, on clean and corrupt prompts.
        method, steps, metric, subject: how the scores were made.
        fingerprint: of the subject's weights. n_pairs, pairs: how many, and their digest.
    """

    layout: Graph
    scores: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    neurons: Tensor
    clean: float
    corrupt: float
    method: Method
    steps: int
    metric: Metric
    n_pairs: int
    subject: str
    fingerprint: str
    pairs: str

    TENSORS = SCORES

    def concentration(self, n: int = 100) -> float:
        """Share of Σ |score| that the ``n`` strongest edges hold, 0 to 1."""
        magnitudes = self.scores.abs().flatten()
        return float(magnitudes.topk(min(n, len(magnitudes))).values.sum() / magnitudes.sum())

    def table(self) -> Table:
        """The ten edges of largest |score|."""
        flat = self.scores.flatten()
        order = flat.abs().topk(min(10, len(flat))).indices
        caption = (
            f"{self.method} with {self.steps} steps over {self.n_pairs} pairs on {self.subject}: "
            f"{self.metric.replace('_', ' ')} {self.clean:.2f}, corrupt {self.corrupt:.2f}"
        )
        return self.layout.table(order, flat[order], caption)

    def save(self, folder: str | Path) -> None:
        """Write ``attribution.safetensors`` into ``folder``."""
        meta = {"layout": self.layout.meta(), "clean": self.clean, "corrupt": self.corrupt}
        meta |= {"method": self.method, "steps": self.steps, "metric": self.metric}
        meta |= {"n_pairs": self.n_pairs, "subject": self.subject}
        meta |= {"fingerprint": self.fingerprint, "pairs": self.pairs}
        tensors = {name: getattr(self, name) for name in self.TENSORS}
        save_values(Path(folder) / "attribution.safetensors", tensors, meta)

    @classmethod
    def load(cls, folder: str | Path) -> Attribution:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        path = Path(folder) / "attribution.safetensors"
        with reading(path):
            tensors, meta = load_values(path)
            found = typed(cls(layout=typed(Graph(**meta.pop("layout"))), **tensors, **meta))
            layout, heads = found.layout, (found.layout.n_layers, found.layout.n_heads)
            groups = (layout.n_layers, layout.n_kv_heads)
            if (
                found.scores.shape != (layout.n_sources, layout.n_destinations)
                or {found.queries.shape, found.outputs.shape} != {heads}
                or {found.keys.shape, found.values.shape} != {groups}
                or found.neurons.shape[:1] != (layout.n_layers,)
            ):
                raise ValueError("its scores are of another shape than its layout")
            if min(found.n_pairs, found.steps) < 1:
                raise ValueError("it has no pairs or no steps")
            return found


def attribute(
    subject: Subject,
    pairs: Pairs,
    *,
    method: Method = "eap-ig-inputs",
    steps: int = 5,
    metric: Metric = "logit_difference",
    memory: int = MEMORY,
    recompute: bool = False,
    on_step: OnStep = silent,
    allow_equal: bool = False,
) -> Attribution:
    """Score every edge of the graph on a task.

    Args:
        pairs: clean and corrupt prompts of equal length.
        method: ``eap`` takes the gradient on the clean run. ``eap-ig-inputs`` averages it over
            ``steps`` points, the midpoints of K equal parts of the way from the clean to the
            corrupt embeddings. ``eap-ig-activations`` does so for each node's layer in turn,
            whose output alone is interpolated: (2 L + 1) times the passes. Head slices and neurons
            are then those of the interpolated embeddings.
        steps: K.
        memory: bytes the call may hold beside the weights; pairs go through in chunks that fit.
        recompute: hold the graph of one layer at a time and run each layer again on the way back:
            about a third more time for much less memory. Not for ``eap-ig-activations``.
        on_step: hears of each pass, stage ``attribution``.
        allow_equal: accept a metric that is the same on clean and corrupt prompts, which is what
            an edited model that has forgotten the task gives.

    Raises:
        MansuError: the architecture is unknown; an argument is out of range; the metric is the
            same on clean and corrupt prompts; an activation is not finite (the layer is named);
            one pair alone does not fit into ``memory``.
    """
    graph = graph_of(subject)
    check(pairs, method, steps, metric)
    steps = 1 if method == "eap" else steps
    if recompute and method == "eap-ig-activations":
        raise MansuError("eap-ig-activations cannot recompute layers: use eap-ig-inputs.")
    positions = int(pairs.length.max())
    need = needs(subject, graph, positions, steps, method=method, recompute=recompute)
    chunk = min(len(pairs), need.pairs(memory))
    if chunk < 1:
        raise MansuError(
            f"One pair of {positions} tokens needs about {need.of(1) / 2**20:.0f} MiB beside the "
            f"weights, more than the budget of {memory / 2**20:.0f} MiB: raise the budget, "
            "recompute layers, or give shorter prompts."
        )
    block = max(1, min(CONTRACTION, chunk * need.passing) // need.token)
    chunks = [
        pairs.select(range(start, min(start + chunk, len(pairs))))
        for start in range(0, len(pairs), chunk)
    ]
    targets = 2 * graph.n_layers + 1 if method == "eap-ig-activations" else 1
    passes = 2 if method == "eap" else 2 + targets * steps
    tick = _Counter(len(chunks) * passes, on_step)

    plan = _Plan(method, steps, metric, recompute, len(pairs), block)
    total = Sums.zeros(graph, subject)
    for part in chunks:
        _attribute_chunk(subject, graph, part, plan, total, tick)
    if not allow_equal:
        refuse_equal(total.clean, total.corrupt, metric)
    scores = torch.where(graph.edges, total.scores.cpu() / steps, 0).float()
    if not bool(torch.isfinite(scores).all()):
        bad = graph.destination_name(int((~torch.isfinite(scores)).any(0).nonzero()[-1]))
        raise MansuError(
            f"The gradient at {bad} of {subject.name!r} is NaN or infinite: use a wider dtype."
        )
    return Attribution(
        graph,
        scores,
        *(getattr(total, name).float().cpu() for name in Attribution.TENSORS[1:]),
        clean=total.clean,
        corrupt=total.corrupt,
        method=method,
        steps=steps,
        metric=metric,
        n_pairs=len(pairs),
        subject=subject.name,
        fingerprint=subject.fingerprint,
        pairs=pairs.digest,
    )


def check(pairs: Pairs, method: str, steps: int, metric: str) -> None:
    """Refuse arguments that are out of range.

    Raises:
        MansuError: which one, and what it may be.
    """
    if method not in get_args(Method):
        raise MansuError(f"Method {method!r} is none of {', '.join(get_args(Method))}.")
    if metric not in get_args(Metric):
        raise MansuError(f"Metric {metric!r} is none of {', '.join(get_args(Metric))}.")
    if steps < 1:
        raise MansuError(f"Integrated gradients need at least one step, not {steps}.")
    if len(pairs) == 0:
        raise MansuError("There are no clean and corrupt pairs to attribute: check the task.")


@dataclass(frozen=True)
class Needs:
    """Bytes that attribution holds beside the weights; upper bounds, checked by measurement.

    Attributes:
        fixed: whatever the number of pairs: one layer's weights in the dtype of sums, the scores.
        pair: for one pair all the time: node differences, sums over steps, norm statistics.
        passing: for one pair in a pass and no longer: activations, their gradients, the logits.
        token: for one token in the last product, which runs in blocks within ``passing``.
    """

    fixed: int
    pair: int
    passing: int
    token: int

    def of(self, n: int) -> int:
        """Bytes for ``n`` pairs at once."""
        return self.fixed + n * self.pair + max(n * self.passing, self.token)

    def pairs(self, memory: int) -> int:
        """How many pairs at once need no more than ``memory``."""
        free = memory - self.fixed
        return min(free // (self.pair + self.passing), (free - self.token) // self.pair)


def needs(
    subject: Subject,
    graph: Graph,
    positions: int,
    steps: int,
    *,
    method: Method = "eap-ig-inputs",
    recompute: bool = False,
) -> Needs:
    """The memory of attribution with pairs of ``positions`` tokens.

    The activations that autograd keeps were counted on every family: widths of the model,
    times how many tensors of that width a layer's graph holds, the largest family deciding. The
    allocator's holes are added.
    """
    config = subject.config
    dtype = next(iter(subject.parameters.values())).dtype
    size, wide = dtype.itemsize, accumulator(dtype).itemsize
    layers, d, m = graph.n_layers, config.hidden_size, d_mlp(subject)
    k = Heads.of(config).width
    z, qkv = graph.n_heads * k, (graph.n_heads + 2 * graph.n_kv_heads) * k
    norms = 8 if size >= 4 else 20  # a norm of a narrow dtype keeps float32 copies
    layer_graph = size * (norms * d + 4 * z + qkv + 5 * m + 4 * graph.n_heads * positions)
    one_layer = wide * (4 * qkv + 4 * d + 2 * m)  # temporaries while its gradients are added
    kept = layers * size * (qkv + z + m + d) + 3 * size * d
    if method == "eap-ig-activations":
        kept += layers * size * d
    sums = layers * wide * (qkv + d + min(steps, STEP_BLOCK) * (d + graph.per_layer))
    graphs = layers * layer_graph
    if recompute:  # every layer's input; one layer's graph and its gradients
        graphs = layers * size * d + layer_graph + size * (qkv + z + m + 4 * d)
    head = 6 * wide * config.vocab_size
    return Needs(
        fixed=int(HOLES * wide * d * (4 * qkv + 2 * z))
        + int(HOLES * wide * 4 * graph.n_sources * graph.n_destinations),
        pair=int(HOLES * positions * (kept + sums)),
        passing=int(HOLES * (positions * (graphs + one_layer) + head)),
        token=int(HOLES * wide * d * (graph.n_sources + 3 * graph.per_layer)),
    )


class _Counter:
    def __init__(self, total: int, on_step: OnStep) -> None:
        self.done, self.total, self.on_step = 0, total, on_step

    def __call__(self) -> None:
        self.done += 1
        self.on_step(Step("attribution", self.done, self.total))


@dataclass(frozen=True)
class _Plan:
    """What is done with every chunk of pairs.

    Attributes:
        method, steps, metric, recompute: as in ``attribute``; steps is 1 for ``eap``.
        n_pairs: of all chunks, which metrics are means over.
        block: how many tokens the last product takes at once.
    """

    method: Method
    steps: int
    metric: Metric
    recompute: bool
    n_pairs: int
    block: int

    @property
    def nodewise(self) -> bool:
        return self.method == "eap-ig-activations"

    @property
    def kept(self) -> tuple[str, ...]:
        """Activations that are needed, by their name in ``Record``."""
        kept = ("qkv", "z", "mlp", "neurons")
        return (*kept, "attention") if self.nodewise else kept

    def share(self, step: int) -> float:
        """How far from clean to corrupt a step's gradients are taken."""
        return 0.0 if self.method == "eap" else (step + 0.5) / self.steps

    def loss(self, pairs: Pairs) -> Loss:
        """A chunk's share of the mean metric; for ``kl``, called on the clean logits first."""
        reference: Tensor | None = None

        def loss(logits: Tensor) -> Tensor:
            nonlocal reference
            if self.metric == "kl" and reference is None:
                reference = logits.detach().float().log_softmax(-1)
            return metric_values(self.metric, logits, pairs, reference).sum() / self.n_pairs

        return loss


def _attribute_chunk(
    subject: Subject, graph: Graph, pairs: Pairs, plan: _Plan, total: Sums, tick: _Counter
) -> None:
    """Add one chunk's share of the scores to ``total``."""
    live, loss = live_tokens(pairs), plan.loss(pairs)
    delta = record(subject, graph, pairs, pairs.corrupt, plan.kept, live)
    corrupt = delta.logits
    tick()
    clean = recorder(subject, graph, delta, plan.kept, live, minus=True)
    if plan.method != "eap":  # whose gradients are the clean run's: one pass for both
        with torch.no_grad():
            total.clean += float(loss(logits_with(subject, pairs, pairs.clean, clean)))
        clean = []
        tick()
    for name, difference, sources in _targets(subject, graph, delta, plan.nodewise):
        for first in range(0, plan.steps, STEP_BLOCK):
            slices = total if sources.start == 0 else None
            gradients = Gradients(subject, graph, delta, slices, plan.steps, live)
            add = gradients.add_by_layer if plan.recompute else gradients.add
            for step in range(first, min(first + STEP_BLOCK, plan.steps)):
                point = moved_by(name, difference, plan.share(step), live)
                value = add(pairs, point, loss, clean)
                tick()
                if plan.method == "eap":
                    total.clean += value
            contract(subject, graph, delta, gradients, sources, plan.block, total.scores)
    total.corrupt += float(loss(corrupt))


def _targets(
    subject: Subject, graph: Graph, delta: Record, nodewise: bool
) -> Iterator[tuple[str, Tensor, range]]:
    """Where to interpolate (hook and difference), and the sources that its gradients score."""
    sources = range(1) if nodewise else range(graph.n_sources)
    yield "blocks.0.hook_in", delta.embedding, sources
    for layer in range(graph.n_layers if nodewise else 0):
        block = Block(subject, layer)
        mlp = graph.mlp(layer)
        yield block.hook_attention_write, delta.attention[layer], range(graph.head(layer), mlp)
        yield block.hook_mlp_write, delta.mlp[layer], range(mlp, mlp + 1)
