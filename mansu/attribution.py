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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.graph import Block, Graph, graph_of, load_values, save_values
from mansu.subjects import Subject
from mansu.tasks import Pairs

Method = Literal["eap-ig-inputs", "eap-ig-activations", "eap"]
Metric = Literal["logit_difference", "log_probability", "kl"]
Progress = Callable[[int, int], None]

MEMORY = 4 << 30  # default budget, bytes
STEP_BLOCK = 8  # steps whose norm statistics are kept before they are folded into the scores
HOLES = 1.5  # what malloc keeps beside the tensors: growth was up to 1.37 of their bound (glibc)
CONTRACTION = 512 << 20  # bytes that the final product holds at once, at most


@dataclass(frozen=True)
class Attribution:
    """Scores of every edge, head slice and neuron of a subject on a task.

    Attributes:
        layout: what the indices mean.
        scores: float32 ``[n_sources, n_destinations]``, 0 where ``layout.edges`` has none.
        queries, outputs: float32 ``[layers, heads]``, the same estimate for a head's query and for
            its output z; keys, values: ``[layers, kv heads]``; neurons: ``[layers, d_mlp]``.
        clean, corrupt: the metric, mean over the pairs, on clean and corrupt prompts.
        method, steps, metric, n_pairs, subject: how the scores were made.
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

    TENSORS = ("scores", "queries", "keys", "values", "outputs", "neurons")

    def save(self, folder: str | Path) -> None:
        """Write ``attribution.safetensors`` into ``folder``."""
        meta = {"layout": self.layout.meta(), "clean": self.clean, "corrupt": self.corrupt}
        meta |= {"method": self.method, "steps": self.steps, "metric": self.metric}
        meta |= {"n_pairs": self.n_pairs, "subject": self.subject}
        tensors = {name: getattr(self, name) for name in self.TENSORS}
        save_values(Path(folder) / "attribution.safetensors", tensors, meta)

    @classmethod
    def load(cls, folder: str | Path) -> Attribution:
        """Read what ``save`` wrote.

        Raises:
            MansuError: it is missing or damaged.
        """
        tensors, meta = load_values(Path(folder) / "attribution.safetensors")
        return cls(layout=Graph(**meta.pop("layout")), **tensors, **meta)


def metric_values(
    metric: Metric, logits: Tensor, pairs: Pairs, clean_log_probabilities: Tensor | None = None
) -> Tensor:
    """The metric of every pair.

    Args:
        logits: ``[N, vocabulary]`` after the last token.
        clean_log_probabilities: ``[N, vocabulary]`` of the clean run, for ``kl``.

    Returns:
        ``[N]``: logit(answer) − logit(foil); log p(answer); or KL(p_clean ‖ p), in nats.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    answer = pairs.answer.to(logits.device)[:, None]
    if metric == "logit_difference":
        foil = pairs.foil.to(logits.device)[:, None]
        return (logits.gather(1, answer) - logits.gather(1, foil))[:, 0]
    log_probabilities = logits.log_softmax(-1)
    if metric == "log_probability":
        return log_probabilities.gather(1, answer)[:, 0]
    assert clean_log_probabilities is not None
    reference = clean_log_probabilities.to(logits.device)
    return (reference.exp() * (reference - log_probabilities)).sum(-1)


def attribute(
    subject: Subject,
    pairs: Pairs,
    *,
    method: Method = "eap-ig-inputs",
    steps: int = 5,
    metric: Metric = "logit_difference",
    memory: int = MEMORY,
    recompute: bool = False,
    progress: Progress | None = None,
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
        progress: called with passes done and passes in all.
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
    tick = _Counter(len(chunks) * (2 + targets * steps), progress)

    total = _Sums.zeros(graph, subject)
    for part in chunks:
        _attribute_chunk(
            subject,
            graph,
            part,
            method,
            steps,
            metric,
            recompute,
            len(pairs),
            block,
            total,
            tick,
        )
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


def refuse_equal(clean: float, corrupt: float, metric: str) -> None:
    """Refuse a task on which there is no difference to explain.

    Raises:
        MansuError: with both numbers.
    """
    if abs(clean - corrupt) <= 1e-6 * max(abs(clean), abs(corrupt), 1e-6):
        raise MansuError(
            f"The metric {metric} is {clean:.6g} on the clean prompts and {corrupt:.6g} on the "
            "corrupt ones: there is no difference to attribute. Give corrupt prompts with another "
            "answer."
        )


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

    The activations that autograd keeps were counted on the five families: widths of the model,
    times how many tensors of that width a layer's graph holds, the largest family deciding. The
    allocator's holes are added.
    """
    config = subject.config
    dtype = next(iter(subject.parameters.values())).dtype
    size, wide = dtype.itemsize, _accumulator(dtype).itemsize
    layers, d, m = graph.n_layers, config.hidden_size, _d_mlp(subject)
    k = getattr(config, "head_dim", None) or d // graph.n_heads
    z, qkv = graph.n_heads * k, (graph.n_heads + 2 * graph.n_kv_heads) * k
    norms = 8 if size >= 4 else 20  # a norm of a narrow dtype keeps float32 copies
    layer_graph = size * (norms * d + 4 * z + qkv + 5 * m + 4 * graph.n_heads * positions)
    one_layer = wide * (4 * qkv + 4 * d + 2 * m)  # temporaries while its gradients are added
    kept = layers * size * (qkv + z + m + d) + 3 * size * d
    if method == "eap-ig-activations":
        kept += layers * size * 3 * d
    sums = layers * wide * (qkv + d + min(steps, STEP_BLOCK) * (d + graph.per_layer))
    graphs = layers * layer_graph
    if recompute:  # every layer's input; one layer's graph and its gradients
        graphs = layers * size * d + layer_graph + size * (qkv + z + m + 4 * d)
    head = 6 * wide * config.vocab_size
    # While the corrupt run is recorded, the clean one's activations are there too, and no sums yet.
    passing = max(positions * (graphs + one_layer), positions * (kept - sums + layer_graph))
    return Needs(
        fixed=int(HOLES * wide * d * (4 * qkv + 2 * z))
        + int(HOLES * wide * 4 * graph.n_sources * graph.n_destinations),
        pair=int(HOLES * positions * (kept + sums)),
        passing=int(HOLES * (passing + head)),
        token=int(HOLES * wide * d * (graph.n_sources + 3 * graph.per_layer)),
    )


def _d_mlp(subject: Subject) -> int:
    config = subject.config
    return getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass
class _Sums:
    """What is summed over chunks and steps."""

    scores: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    neurons: Tensor
    clean: float = 0.0
    corrupt: float = 0.0

    @classmethod
    def zeros(cls, graph: Graph, subject: Subject) -> _Sums:
        layers, device = graph.n_layers, subject.device
        dtype = _accumulator(next(iter(subject.parameters.values())).dtype)
        shapes = [
            (graph.n_sources, graph.n_destinations),
            (layers, graph.n_heads),
            (layers, graph.n_kv_heads),
            (layers, graph.n_kv_heads),
            (layers, graph.n_heads),
            (layers, _d_mlp(subject)),
        ]
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        return cls(**dict(zip(Attribution.TENSORS, zeros, strict=True)))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits_with(subject: Subject, pairs: Pairs, tokens: Tensor, hooks: Sequence[Any]) -> Tensor:
    """Logits after the last token ``[N, vocabulary]`` with TransformerLens hooks in place."""
    with subject.bridge.hooks(fwd_hooks=list(hooks)):
        return subject.next_token_logits(tokens, pairs.length)


@dataclass
class Record:
    """Activations of one run without gradients, a list entry a layer (t = pairs × positions).

    Attributes:
        embedding: ``[n, p, d]``, the residual stream that enters layer 0.
        inputs, mlp_inputs: residual stream that enters the attention and the MLP, ``[n, p, d]``.
        final: residual stream that enters the final norm.
        qkv: ``[n, p, V, k]``, all queries, keys and values.
        z: ``[n, p, H, k]``, times the post-norm's r where there is one.
        attention, mlp: what attention and MLP write to the residual stream, ``[n, p, d]``.
        neurons: ``[n, p, m]``.
        logits: ``[n, vocabulary]``.
    """

    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: list[Tensor] = field(default_factory=list)
    mlp_inputs: list[Tensor] = field(default_factory=list)
    qkv: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)


def record(
    subject: Subject, graph: Graph, pairs: Pairs, tokens: Tensor, kept: Sequence[str]
) -> Record:
    """Run without gradients and keep the activations named in ``kept``.

    Raises:
        MansuError: an activation is NaN or infinite; the message names the layer.
    """
    run = Record()
    raw: dict[str, Tensor] = {}

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
        if "qkv" in kept:
            run.qkv.append(torch.cat([raw[name] for name in block.hook_qkv], 2))
        if "z" in kept:
            z = raw[block.hook_z]
            run.z.append(z * post_scale(block, raw[block.hook_attention]).to(z.dtype))
        for name, hook in (
            ("inputs", block.hook_in),
            ("mlp_inputs", block.hook_mlp_in),
            ("attention", block.hook_attention_write),
            ("mlp", block.hook_mlp_write),
            ("neurons", block.hook_neurons),
        ):
            if name in kept:
                getattr(run, name).append(raw[hook])
        if layer == 0:
            run.embedding = raw[block.hook_in]
        raw.clear()

    def tap(name: str) -> tuple[str, Callable[..., None]]:
        return name, lambda value, hook: raw.__setitem__(name, value)

    hooks: list[Any] = [tap("ln_final.hook_in")]
    for layer in range(graph.n_layers):
        block = Block(subject, layer)
        hooks += [tap(name) for name in block.hooks]
        hooks.append((block.hook_end, lambda value, hook, b=block, i=layer: finish_layer(b, i)))
    with torch.no_grad():
        run.logits = logits_with(subject, pairs, tokens, hooks)
    run.final = raw["ln_final.hook_in"]
    return run


def post_scale(block: Block, attention: Tensor) -> Tensor:
    """The post-norm's r ``[n, p, 1, 1]`` for an attention output ``[n, p, d]``; 1 without one."""
    if not block.has_post_norms:
        return attention.new_ones(())
    return block.norm("ln1_post").normalise(attention)[1][..., None]


def _attribute_chunk(
    subject: Subject,
    graph: Graph,
    pairs: Pairs,
    method: Method,
    steps: int,
    metric: Metric,
    recompute: bool,
    n_pairs: int,
    block: int,
    total: _Sums,
    tick: _Counter,
) -> None:
    """Add one chunk's share of the scores, of mean metrics over ``n_pairs`` pairs, to ``total``.

    ``block`` is how many tokens the last product takes at once.
    """
    nodewise = method == "eap-ig-activations"
    kept = ["qkv", "z", "mlp", "neurons"] + (["attention"] if nodewise else [])
    clean = record(subject, graph, pairs, pairs.clean, kept)
    tick()
    corrupt = record(subject, graph, pairs, pairs.corrupt, kept)
    tick()
    reference = clean.logits.float().log_softmax(-1) if metric == "kl" else None

    def loss(logits: Tensor) -> Tensor:
        return metric_values(metric, logits, pairs, reference).sum() / n_pairs

    total.clean += float(loss(clean.logits))
    total.corrupt += float(loss(corrupt.logits))

    delta = Record(embedding=corrupt.embedding - clean.embedding)
    for name in kept:
        here, there = getattr(clean, name), getattr(corrupt, name)
        getattr(delta, name).extend(
            other.sub_(mine) for mine, other in zip(here, there, strict=True)
        )
        if not nodewise:
            here.clear()

    # Where to interpolate, and the sources whose edges those gradients score.
    targets = [("blocks.0.hook_in", clean.embedding, delta.embedding, range(graph.n_sources))]
    if nodewise:
        targets[0] = (*targets[0][:3], range(1))
        for i in range(graph.n_layers):
            layer = Block(subject, i)
            heads = range(graph.head(i), graph.mlp(i))
            mlp = range(graph.mlp(i), graph.mlp(i) + 1)
            name = layer.hook_attention_write
            targets.append((name, clean.attention[i], delta.attention[i], heads))
            targets.append((layer.hook_mlp_write, clean.mlp[i], delta.mlp[i], mlp))

    for name, start, difference, sources in targets:
        for first in range(0, steps, STEP_BLOCK):
            gradients = _Gradients(graph, delta, total if sources.start == 0 else None, steps)
            for step in range(first, min(first + STEP_BLOCK, steps)):
                share = 0.0 if method == "eap" else (step + 0.5) / steps
                point = (start + share * difference).requires_grad_()
                if recompute:
                    gradients.add_by_layer(subject, pairs, point, loss)
                else:
                    gradients.add(subject, pairs, (name, point), loss)
                tick()
            _contract(subject, graph, delta, gradients, sources, block, total.scores)


class _Gradients:
    """Sums of gradients over a few steps, a list entry a layer (None: nothing reached it).

    T = pairs × positions tokens.

    Attributes:
        reads: Σ r·g of queries, keys and values, ``[T, V, k]``.
        pulls: r · (x̂ · W̃ g) / d of each step, ``[T, V]``; normalised: its x̂, ``[T, d]``.
        mlp: gradient at the residual stream that the MLP reads, ``[T, d]``; final: at the logits'.
    """

    def __init__(self, graph: Graph, delta: Record, slices: _Sums | None, steps: int) -> None:
        layers = graph.n_layers
        self.graph, self.delta, self.slices, self.steps = graph, delta, slices, steps
        self.reads: list[Tensor | None] = [None] * layers
        self.mlp: list[Tensor | None] = [None] * layers
        self.pulls: list[list[Tensor]] = [[] for _ in range(layers)]
        self.normalised: list[list[Tensor]] = [[] for _ in range(layers)]
        self.final: Tensor | None = None

    def add(
        self,
        subject: Subject,
        pairs: Pairs,
        inject: tuple[str, Tensor],
        loss: Callable[[Tensor], Tensor],
    ) -> None:
        """One forward and one backward pass with ``inject`` in place."""
        taps: dict[str, Tensor] = {}
        blocks = [Block(subject, layer) for layer in range(self.graph.n_layers)]
        hooks: list[Any] = [(inject[0], lambda value, hook: inject[1])]
        hooks.append(_tap(taps, "ln_final.hook_in"))
        for block in blocks:
            names = [block.hook_in, *block.hook_qkv, block.hook_z, block.hook_mlp_in]
            hooks += [_tap(taps, name) for name in [*names, block.hook_neurons]]
        with torch.enable_grad():
            value = loss(logits_with(subject, pairs, pairs.clean, hooks))
        inputs = {block.hook_in: taps.pop(block.hook_in).detach() for block in blocks}
        wanted = {name: tensor for name, tensor in taps.items() if tensor.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        gradient = {
            name: g.detach() for name, g in zip(wanted, found, strict=True) if g is not None
        }
        with torch.no_grad():
            for layer, block in enumerate(blocks):
                self._add_layer(layer, block, inputs[block.hook_in], taps, gradient)
            self.final = _plus(self.final, _flat(gradient["ln_final.hook_in"]))

    def add_by_layer(
        self, subject: Subject, pairs: Pairs, point: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> None:
        """As ``add`` with ``point`` for the embedding, with one layer's graph at a time."""
        blocks = [Block(subject, layer) for layer in range(self.graph.n_layers)]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        taps: dict[str, Tensor] = {}

        def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handles = [
            block.bridge.register_forward_pre_hook(remember, with_kwargs=True) for block in blocks
        ]
        start = ("blocks.0.hook_in", lambda value, hook: point)
        try:
            with torch.no_grad():
                logits_with(subject, pairs, pairs.clean, [start, _tap(taps, "ln_final.hook_in")])
        finally:
            for handle in handles:
                handle.remove()
        final = taps.pop("ln_final.hook_in").detach().requires_grad_()
        with torch.enable_grad():
            rows = torch.arange(len(pairs), device=final.device)
            last = subject.bridge.ln_final(final[rows, pairs.length.to(final.device) - 1])
            value = loss(subject.head(last))
        (upstream,) = torch.autograd.grad(value, final)
        self.final = _plus(self.final, _flat(upstream))
        for layer in reversed(range(self.graph.n_layers)):
            block, (args, kwargs) = blocks[layer], calls[layer]
            x = (point if layer == 0 else args[0]).detach().requires_grad_()
            names = [*block.hook_qkv, block.hook_z, block.hook_mlp_in, block.hook_neurons]
            taps.clear()
            hooks = [_tap(taps, name) for name in names]
            with subject.bridge.hooks(fwd_hooks=hooks), torch.enable_grad():
                out = block.bridge(x, *args[1:], **kwargs)
            out = out[0] if isinstance(out, tuple) else out
            *found, downstream = torch.autograd.grad(
                out, [*(taps[n] for n in names), x], upstream.to(out.device)
            )
            with torch.no_grad():
                gradient = dict(zip(names, found, strict=True))
                self._add_layer(layer, block, x.detach(), taps, gradient)
            upstream = downstream

    def _add_layer(
        self,
        layer: int,
        block: Block,
        x: Tensor,
        value: dict[str, Tensor],
        gradient: dict[str, Tensor],
    ) -> None:
        q, k, v = block.hook_qkv
        if block.hook_mlp_in in gradient:
            self.mlp[layer] = _plus(self.mlp[layer], _flat(gradient[block.hook_mlp_in]))
        if q in gradient or v in gradient:
            missing = {name: torch.zeros_like(value[name]) for name in (q, k, v)}
            g = _flat(torch.cat([gradient.get(name, missing[name]) for name in (q, k, v)], 2))
            out = _flat(torch.cat([value[name].detach() for name in (q, k, v)], 2))
            normalised, r = block.norm("ln1").normalise(_flat(x))
            self.reads[layer] = _plus(self.reads[layer], g * r[..., None])
            self.normalised[layer].append(normalised)
            inner = ((out - block.offset()) * g).sum(-1)
            self.pulls[layer].append(inner * r / x.shape[-1])
            if self.slices is not None:
                score = (_flat(self.delta.qkv[layer]) * g).sum((0, 2)) / self.steps
                h, kv = self.graph.n_heads, self.graph.n_kv_heads
                for total, part in zip(
                    (self.slices.queries, self.slices.keys, self.slices.values),
                    score.split([h, kv, kv]),
                    strict=True,
                ):
                    total[layer] += part.to(total.device)
        if self.slices is not None:
            for total, name, delta in (
                (self.slices.outputs, block.hook_z, self.delta.z),
                (self.slices.neurons, block.hook_neurons, self.delta.neurons),
            ):
                if name in gradient:
                    score = _flat(delta[layer]) * _flat(gradient[name])
                    score = score.sum((0, 2) if score.ndim == 3 else 0) / self.steps
                    total[layer] += score.to(total.device)

    def at_attention(self, subject: Subject, layer: int, tokens: slice) -> Tensor | None:
        """Gradient at the residual stream that each query, key and value reads, ``[V, t, d]``."""
        reads = self.reads[layer]
        if reads is None:
            return None
        block = Block(subject, layer)
        norm = block.norm("ln1")
        weight = (block.readers()[0] * norm.scale[:, None]).to(reads.dtype)  # [V, d, k]
        weight = weight - weight.mean(1, keepdim=True) if norm.centred else weight
        gradient = reads[tokens].transpose(0, 1) @ weight.mT  # [V, t, d]
        pulls = torch.stack([p[tokens] for p in self.pulls[layer]], -1)  # [t, V, steps]
        normalised = torch.stack([x[tokens] for x in self.normalised[layer]], 1)  # [t, steps, d]
        return gradient.sub_((pulls @ normalised).transpose(0, 1))


def _tap(taps: dict[str, Tensor], name: str) -> tuple[str, Callable[..., Tensor]]:
    """A hook that puts the value into ``taps``."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        # A new view, so that its gradient is that of this reader alone, not of the stream.
        taps[name] = value.view_as(value)
        return taps[name]

    return name, hook


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def _flat(x: Tensor) -> Tensor:
    """``[n, p, ...]`` to ``[T, ...]``, in the dtype of sums."""
    return x.flatten(0, 1).to(_accumulator(x.dtype))


def _contract(
    subject: Subject,
    graph: Graph,
    delta: Record,
    gradients: _Gradients,
    sources: range,
    size: int,
    scores: Tensor,
) -> None:
    """Add Σ (difference written by each source) · (gradient at each destination) to ``scores``.

    ``size`` tokens go through at once.
    """
    device, dtype = scores.device, scores.dtype
    d = delta.embedding.shape[-1]
    n_tokens = delta.embedding.shape[0] * delta.embedding.shape[1]
    for tokens in (slice(t, min(t + size, n_tokens)) for t in range(0, n_tokens, size)):
        t = tokens.stop - tokens.start
        writes = torch.empty(len(sources), t, d, dtype=dtype, device=device)

        def put(first: int, values: Tensor, writes: Tensor = writes) -> None:
            if first in sources:
                place = first - sources.start
                writes[place : place + len(values)] = values.to(device)

        def score(n: int, destinations: slice, g: Tensor, writes: Tensor = writes) -> None:
            n = min(n, sources.stop) - sources.start
            if n > 0:
                product = writes[:n].flatten(1) @ g.flatten(1).T
                scores[sources.start : sources.start + n, destinations] += product

        put(0, _flat(delta.embedding)[None, tokens])
        waiting: list[Tensor] = []  # the MLP before: scored with the attention after, in one go
        start = 0
        for layer in range(graph.n_layers):
            attention = gradients.at_attention(subject, layer, tokens)
            if attention is None:
                attention = torch.zeros(graph.per_layer - 1, t, d, dtype=dtype, device=device)
            waiting.append(attention.to(device))
            stop = graph.attention_inputs(layer).stop
            score(graph.head(layer), slice(start, stop), torch.cat(waiting))
            start = stop
            output = Block(subject, layer).output().to(dtype)
            put(graph.head(layer), _flat(delta.z[layer])[tokens].transpose(0, 1) @ output)
            put(graph.mlp(layer), _flat(delta.mlp[layer])[None, tokens])
            mlp = gradients.mlp[layer]
            zero = torch.zeros(t, d, dtype=dtype, device=device)
            waiting = [(zero if mlp is None else mlp[tokens].to(device))[None]]
        assert gradients.final is not None
        waiting.append(gradients.final[None, tokens].to(device))
        score(graph.n_sources, slice(start, start + 2), torch.cat(waiting))


def differences(subject: Subject, pairs: Pairs) -> Tensor:
    """What every node writes on corrupt minus clean prompts, ``[n_sources, T, d]``.

    T = pairs × positions. All pairs go through at once.
    """
    graph = graph_of(subject)
    return _differences(subject, graph, *_ends(subject, graph, pairs))


def factors(
    subject: Subject, pairs: Pairs, *, steps: int = 5, metric: Metric = "logit_difference"
) -> tuple[Tensor, Tensor]:
    """The two factors of EAP-IG's scores, before their product sums over pairs and positions.

    All pairs go through at once.

    Returns:
        ``differences``, ``[n_sources, T, d]``; and the mean gradient of the summed metric at every
        destination, ``[n_destinations, T, d]``. Their product summed over T and d is what
        ``attribute`` gives, times the number of pairs.
    """
    graph = graph_of(subject)
    clean, corrupt = _ends(subject, graph, pairs)
    reference = clean.logits.float().log_softmax(-1) if metric == "kl" else None
    gradients = _Gradients(graph, clean, None, steps)
    for step in range(steps):
        share = (step + 0.5) / steps
        point = clean.embedding.lerp(corrupt.embedding, share).requires_grad_()
        gradients.add(
            subject,
            pairs,
            ("blocks.0.hook_in", point),
            lambda logits: metric_values(metric, logits, pairs, reference).sum(),
        )
    assert gradients.final is not None
    everywhere = slice(0, len(gradients.final))
    empty = torch.zeros_like(gradients.final)[None]
    reads = []
    for layer in range(graph.n_layers):
        attention = gradients.at_attention(subject, layer, everywhere)
        reads.append(empty.expand(graph.per_layer - 1, -1, -1) if attention is None else attention)
        mlp = gradients.mlp[layer]
        reads.append(empty if mlp is None else mlp[None])
    sensitivities = torch.cat([*reads, gradients.final[None]]) / steps
    return _differences(subject, graph, clean, corrupt), sensitivities


def _ends(subject: Subject, graph: Graph, pairs: Pairs) -> tuple[Record, Record]:
    """The runs on clean and on corrupt prompts."""
    kept = ["z", "mlp"]
    clean = record(subject, graph, pairs, pairs.clean, kept)
    return clean, record(subject, graph, pairs, pairs.corrupt, kept)


def _differences(subject: Subject, graph: Graph, clean: Record, corrupt: Record) -> Tensor:
    writes = [_flat(corrupt.embedding - clean.embedding)[None]]
    for layer in range(graph.n_layers):
        z = _flat(corrupt.z[layer] - clean.z[layer]).transpose(0, 1)
        writes.append(z @ Block(subject, layer).output().to(z.dtype))
        writes.append(_flat(corrupt.mlp[layer] - clean.mlp[layer])[None])
    return torch.cat(writes)
