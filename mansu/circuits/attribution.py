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

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mansu.circuits.gradients import (
    CONTRACTION,
    SCORES,
    STEP_BLOCK,
    Factors,
    Gradients,
    Points,
    Sums,
    Written,
    contract,
    d_mlp,
    midpoints,
    summed,
)
from mansu.circuits.graph import Graph, Sourced, graph_of
from mansu.circuits.metric import MEMORY, Metric, refuse_equal
from mansu.circuits.record import PackedPairs, Record, accumulator, difference, packed
from mansu.errors import MansuError, MismatchError
from mansu.files import load_values, reading, save_values, typed
from mansu.progress import OnStep, Step, silent
from mansu.show.table import Shown, Table
from mansu.subjects.blocks import Block
from mansu.subjects.packing import pack_size
from mansu.subjects.subject import Subject, locked
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
        raw_outputs: ``outputs`` are of z as it is. Those saved before this was noted are not where
            a norm follows the attention: z was scaled by it, its gradient was not.
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
    raw_outputs: bool = True

    TENSORS = SCORES

    def concentration(self, n: int = 100) -> float:
        """Share of Σ |score| that the ``n`` strongest edges hold, 0 to 1."""
        magnitudes = self.scores.abs().flatten()
        return float(magnitudes.topk(min(n, len(magnitudes))).values.sum() / magnitudes.sum())

    def refuse_scaled(self, subject: Subject) -> None:
        """Refuse ``outputs`` that are no estimates: not ``raw_outputs``, and a norm follows them.

        Raises:
            MismatchError: so it is; a mask or an edit by these scores would be another.
        """
        if not self.raw_outputs and Block(subject, 0).has_post_norms:
            raise MismatchError(
                f"An earlier MANSU scored what the heads of {subject.name!r} put out wrongly, "
                "since a norm follows its attention, and the masks made of these scores are others "
                "than they should be: attribute again, a run in a new folder."
            )

    def table(self) -> Table:
        """The ten edges of largest |score|."""
        flat = self.scores.flatten()
        order = flat.abs().topk(min(10, len(flat))).indices
        caption = (
            f"{self.method} with {self.steps} steps over {self.n_pairs} pairs on {self.subject}: "
            f"{self.metric.replace('_', ' ')} {self.clean:.2f}, corrupt {self.corrupt:.2f}"
        )
        return self.layout.table(order, flat[order], caption)

    def save(self, folder: str | Path, of: Mapping[str, str] | None = None) -> None:
        """Write ``attribution.safetensors`` into ``folder``; ``of``: as ``save_values`` has it."""
        meta = {"layout": self.layout.meta(), "clean": self.clean, "corrupt": self.corrupt}
        meta |= {"method": self.method, "steps": self.steps, "metric": self.metric}
        meta |= {"n_pairs": self.n_pairs, "subject": self.subject}
        meta |= {"fingerprint": self.fingerprint, "pairs": self.pairs}
        meta |= {"raw_outputs": self.raw_outputs}
        tensors = {name: getattr(self, name) for name in self.TENSORS}
        save_values(Path(folder) / "attribution.safetensors", tensors, meta, of)

    @classmethod
    def load(cls, folder: str | Path) -> Attribution:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        path = Path(folder) / "attribution.safetensors"
        with reading(path):
            tensors, meta = load_values(path)
            meta.setdefault("raw_outputs", False)
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


@locked
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
    keep: list[Factors] | None = None,
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
        memory: bytes the call may hold beside the weights; pairs go through in packs that fit.
        recompute: hold the graph of one layer at a time and run each layer again on the way back:
            about a third more time for much less memory. Not for ``eap-ig-activations``.
        on_step: hears of each pass, stage ``attribution``.
        allow_equal: accept a metric that is the same on clean and corrupt prompts, which is what
            an edited model that has forgotten the task gives.
        keep: gets what the scores are products of, for CAD (``Signals``), beside ``memory``;
            nothing where that is folded into the scores as it goes (``eap-ig-activations``, more
            than ``STEP_BLOCK`` steps).

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
    need = needs(subject, graph, steps, method=method, recompute=recompute)
    positions = int(pairs.length.max())
    size = max(positions, min(pack_size(subject.device), need.tokens(memory)))
    if need.of(size) > memory:
        raise MansuError(
            f"One pair of {positions} tokens needs about {need.of(positions) / 2**20:.0f} MiB "
            f"beside the weights, more than the budget of {memory / 2**20:.0f} MiB: raise the "
            "budget, recompute layers, or give shorter prompts."
        )
    parts = packed(subject, pairs, size)
    longest = max(len(part.pack) for part in parts)
    points = min(steps, max(1, pack_size(subject.device) // longest))
    while need.of(longest, points) > memory:
        points -= 1
    shares = torch.zeros(1) if method == "eap" else midpoints(steps)
    block = max(1, min(CONTRACTION, longest * need.passing) // need.product)
    plan = _Plan(method, metric, recompute, shares, points, block)
    tick = _Counter(len(parts) * plan.passes(graph), on_step)
    total = Sums.zeros(graph, subject)
    whole = keep is not None and method != "eap-ig-activations" and steps <= STEP_BLOCK
    for part in parts:
        kept = _attribute_pack(subject, graph, part, plan, total, tick, whole)
        if keep is not None:
            keep += kept
    total.divide(len(pairs))
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
        fixed: whatever the number of tokens: one layer's weights in the dtype of sums, the scores.
        token: for one token all the time: node differences, sums over steps, norm statistics.
        passing: for one token in a pass and no longer: activations, their gradients, logits.
        square: for one token and another that its attention is computed for, in a pass.
        product: for one token in the last product, which runs in blocks within ``passing``.
    """

    fixed: int
    token: int
    passing: int
    square: int
    product: int

    def of(self, n: int, points: int = 1) -> int:
        """Bytes for ``n`` tokens at once, in passes of some points each."""
        passing = points * n * (self.passing + n * self.square)
        return self.fixed + n * self.token + max(passing, self.product)

    def tokens(self, memory: int) -> int:
        """How many tokens at once need no more than ``memory``."""
        free, linear = memory - self.fixed, self.token + self.passing
        if free < self.token + self.product:
            return 0
        root = math.isqrt(linear**2 + 4 * self.square * free)
        return min((root - linear) // (2 * self.square), (free - self.product) // self.token)


def needs(
    subject: Subject,
    graph: Graph,
    steps: int,
    *,
    method: Method = "eap-ig-inputs",
    recompute: bool = False,
) -> Needs:
    """The memory of attribution.

    The activations that autograd keeps were counted on every family: widths of the model, times how
    many tensors of that width a layer's graph holds, the largest family deciding. The allocator's
    holes are added.
    """
    config = subject.config
    dtype = subject.dtype
    size, wide = dtype.itemsize, accumulator(dtype).itemsize
    layers, d, m = graph.n_layers, config.hidden_size, d_mlp(subject)
    k = Heads.of(config).width
    z, qkv = graph.n_heads * k, (graph.n_heads + 2 * graph.n_kv_heads) * k
    norms = 8 if size >= 4 else 20  # a norm of a narrow dtype keeps float32 copies
    layer_graph = size * (norms * d + 4 * z + qkv + 5 * m)
    square = size * 4 * graph.n_heads
    one_layer = wide * (4 * qkv + 4 * d + 2 * m)  # temporaries while its gradients are added
    post_norms = any("post_feedforward" in name for name in subject.parameters)
    kept = layers * size * (qkv + (1 + post_norms) * z + m + d) + 3 * size * d  # z with r, without
    if method == "eap-ig-activations":
        kept += layers * size * d
    sums = layers * wide * (qkv + d + min(steps, STEP_BLOCK) * (d + graph.per_layer))
    graphs = layers * layer_graph
    squares = layers * square
    if recompute:  # every layer's input; one layer's graph and its gradients
        graphs = layers * size * d + layer_graph + size * (qkv + z + m + 4 * d)
        squares = square
    head = 6 * wide * config.vocab_size  # of a pair, which has a token at least
    return Needs(
        fixed=int(HOLES * wide * d * (4 * qkv + 2 * z))
        + int(HOLES * wide * 4 * graph.n_sources * graph.n_destinations),
        token=int(HOLES * (kept + sums)),
        passing=int(HOLES * (graphs + one_layer + head)),
        square=int(HOLES * squares),
        product=int(HOLES * wide * d * (graph.n_sources + 3 * graph.per_layer)),
    )


class _Counter:
    def __init__(self, total: int, on_step: OnStep) -> None:
        self.done, self.total, self.on_step = 0, total, on_step

    def __call__(self) -> None:
        self.done += 1
        self.on_step(Step("attribution", self.done, self.total))


@dataclass(frozen=True)
class _Plan:
    """What is done with every pack of pairs.

    Attributes:
        method, metric, recompute: as in ``attribute``.
        shares: float32 ``[K]``, how far from clean to corrupt gradients are taken.
        points: how many of them make a pass.
        block: how many tokens the last product takes at once.
    """

    method: Method
    metric: Metric
    recompute: bool
    shares: Tensor
    points: int
    block: int

    @property
    def nodewise(self) -> bool:
        return self.method == "eap-ig-activations"

    @property
    def kept(self) -> tuple[str, ...]:
        """Activations that are needed, by their name in ``Record``."""
        kept = ("qkv", "z", "raw_z", "mlp", "neurons")
        return (*kept, "attention") if self.nodewise else kept

    def passes(self, graph: Graph) -> int:
        """Through the model, with a pack."""
        targets = 2 * graph.n_layers + 1 if self.nodewise else 1
        return 1 + targets * sum(
            -(-len(some) // self.points) for some in self.shares.split(STEP_BLOCK)
        )


def _attribute_pack(
    subject: Subject,
    graph: Graph,
    packed: PackedPairs,
    plan: _Plan,
    total: Sums,
    tick: _Counter,
    keep: bool,
) -> list[Factors]:
    """Add one pack's scores, summed over its pairs, to ``total``; may keep what they are of."""
    delta, logits = difference(subject, graph, packed, plan.kept)
    tick()
    reference = logits[0].float().log_softmax(-1) if plan.metric == "kl" else None
    loss = summed(packed.pairs, plan.metric, reference)
    total.clean, total.corrupt = (
        value + float(loss(run[None]))
        for value, run in zip((total.clean, total.corrupt), logits, strict=True)
    )
    found = []
    for name, change, sources in _targets(subject, graph, delta, plan.nodewise):
        for some in plan.shares.split(STEP_BLOCK):
            slices = total if sources.start == 0 else None
            gradients = Gradients(subject, graph, delta, slices, len(plan.shares), packed.live)
            add = gradients.add_by_layer if plan.recompute else gradients.add
            for shares in some.split(plan.points):
                add(packed, Points(name, change, shares, packed.live), loss)
                tick()
            written = Written(subject, delta)
            contract(graph, written, gradients, total.scores, sources=sources, size=plan.block)
            if keep:
                found.append(Factors(packed, delta, gradients))
    delta.qkv, delta.raw_z, delta.neurons, delta.attention = [], [], [], []  # no longer needed
    return found


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
