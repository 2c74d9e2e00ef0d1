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
Loss = Callable[[Tensor], Tensor]
Hook = tuple[str, Callable[..., Any]]  # TransformerLens's: name, function of value and hook point

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
    passes = 2 if method == "eap" else 2 + targets * steps
    tick = _Counter(len(chunks) * passes, progress)

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


def logits_with(subject: Subject, pairs: Pairs, tokens: Tensor, hooks: Sequence[Hook]) -> Tensor:
    """Logits after the last token ``[N, vocabulary]`` with TransformerLens hooks in place."""
    with subject.bridge.hooks(fwd_hooks=list(hooks)):
        return subject.next_token_logits(tokens, pairs.length)


@dataclass
class Record:
    """Activations of one run, or how two runs differ, a list entry a layer.

    ``[n, p]`` is one axis of live tokens where only those were asked for.

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
    subject: Subject,
    graph: Graph,
    pairs: Pairs,
    tokens: Tensor,
    kept: Sequence[str],
    live: Tensor | None = None,
) -> Record:
    """Run without gradients and keep the activations named in ``kept``, at ``live`` tokens or all.

    Raises:
        MansuError: an activation is NaN or infinite; the message names the layer.
    """
    run = Record()
    with torch.no_grad():
        run.logits = logits_with(subject, pairs, tokens, _recorder(subject, graph, run, kept, live))
    return run


def _recorder(
    subject: Subject,
    graph: Graph,
    run: Record,
    kept: Sequence[str],
    live: Tensor | None,
    minus: bool = False,
) -> list[Hook]:
    """Hooks that put a run's activations into ``run``, or, with ``minus``, subtract them from it.

    The second so that no two runs are ever held, only the one and how the other differs.
    """
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
        for name, hook in (
            ("inputs", block.hook_in),
            ("mlp_inputs", block.hook_mlp_in),
            ("attention", block.hook_attention_write),
            ("mlp", block.hook_mlp_write),
            ("neurons", block.hook_neurons),
        ):
            if name in kept:
                keep(getattr(run, name), layer, _at(raw[hook], live))
        if "qkv" in kept:
            qkv = torch.cat([_at(raw[name], live) for name in block.hook_qkv], -2)
            keep(run.qkv, layer, qkv)
        if "z" in kept:
            scale = post_scale(block, _at(raw[block.hook_attention], live))
            z = _at(raw[block.hook_z], live)
            keep(run.z, layer, z * scale.to(z.dtype))
        if layer == 0 and minus:
            run.embedding.sub_(_at(raw[block.hook_in], live))
        elif layer == 0:
            run.embedding = _at(raw[block.hook_in], live)
        raw.clear()

    def keep(values: list[Tensor], layer: int, value: Tensor) -> None:
        if minus:
            values[layer].sub_(value)
        else:
            values.append(value)

    def tap(name: str) -> Hook:
        return name, lambda value, hook: raw.__setitem__(name, value.detach())

    def end(block: Block, layer: int) -> Hook:
        return block.hook_end, torch.no_grad()(lambda value, hook: finish_layer(block, layer))

    blocks = [Block(subject, layer) for layer in range(graph.n_layers)]
    final = ("ln_final.hook_in", lambda value, hook: setattr(run, "final", value.detach()))
    hooks: list[Hook] = [final]
    for layer, block in enumerate(blocks):
        hooks += [*(tap(name) for name in block.hooks), end(block, layer)]
    return hooks


def post_scale(block: Block, attention: Tensor) -> Tensor:
    """The post-norm's r ``[..., 1, 1]`` for an attention output ``[..., d]``; 1 without one."""
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
    live = live_tokens(pairs)
    reference: Tensor | None = None

    def loss(logits: Tensor) -> Tensor:
        nonlocal reference
        if metric == "kl" and reference is None:  # the clean run comes first
            reference = logits.detach().float().log_softmax(-1)
        return metric_values(metric, logits, pairs, reference).sum() / n_pairs

    delta = record(subject, graph, pairs, pairs.corrupt, kept, live)
    corrupt = delta.logits
    tick()
    clean = _recorder(subject, graph, delta, kept, live, minus=True)
    if method != "eap":  # whose gradients are the clean run's: one pass for both
        with torch.no_grad():
            total.clean += float(loss(logits_with(subject, pairs, pairs.clean, clean)))
        clean = []
        tick()

    # Where to interpolate, and the sources whose edges those gradients score.
    targets = [("blocks.0.hook_in", delta.embedding, range(graph.n_sources))]
    if nodewise:
        targets[0] = (*targets[0][:2], range(1))
        for i in range(graph.n_layers):
            layer = Block(subject, i)
            heads = range(graph.head(i), graph.mlp(i))
            mlp = range(graph.mlp(i), graph.mlp(i) + 1)
            targets.append((layer.hook_attention_write, delta.attention[i], heads))
            targets.append((layer.hook_mlp_write, delta.mlp[i], mlp))

    for name, difference, sources in targets:
        for first in range(0, steps, STEP_BLOCK):
            slices = total if sources.start == 0 else None
            gradients = _Gradients(subject, graph, delta, slices, steps, live)
            add = gradients.add_by_layer if recompute else gradients.add
            for step in range(first, min(first + STEP_BLOCK, steps)):
                share = 0.0 if method == "eap" else (step + 0.5) / steps
                value = add(pairs, _moved(name, difference, share, live), loss, clean)
                tick()
                if method == "eap":
                    total.clean += value
            _contract(subject, graph, delta, gradients, sources, block, total.scores)
    total.corrupt += float(loss(corrupt))


class _Gradients:
    """Sums of gradients over a few steps, a list entry a layer (None: nothing reached it).

    T live tokens.

    Attributes:
        reads: Σ r·g of queries, keys and values, ``[T, V, k]``.
        pulls: r · (x̂ · W̃ g) / d of each step, ``[T, V]``; normalised: its x̂, ``[T, d]``.
        mlp: gradient at the residual stream that the MLP reads, ``[T, d]``; final: at the logits'.
    """

    def __init__(
        self,
        subject: Subject,
        graph: Graph,
        delta: Record,
        slices: _Sums | None,
        steps: int,
        live: Tensor,
    ) -> None:
        layers = graph.n_layers
        self.subject, self.graph, self.delta, self.slices = subject, graph, delta, slices
        self.steps, self.live = steps, live
        self.blocks = [Block(subject, layer) for layer in range(layers)]
        self.offsets = [block.offset() for block in self.blocks]
        self.reads: list[Tensor | None] = [None] * layers
        self.mlp: list[Tensor | None] = [None] * layers
        self.pulls: list[list[Tensor]] = [[] for _ in range(layers)]
        self.normalised: list[list[Tensor]] = [[] for _ in range(layers)]
        self.final: Tensor | None = None

    def add(self, pairs: Pairs, point: Hook, loss: Loss, also: Sequence[Hook] = ()) -> float:
        """One forward and one backward pass from ``point`` on, with other hooks; gives the loss."""
        taps: dict[str, Tensor] = {}
        hooks: list[Hook] = [point, *also, _tap(taps, "ln_final.hook_in")]
        for block in self.blocks:
            names = [block.hook_in, *block.hook_qkv, block.hook_z, block.hook_mlp_in]
            hooks += [_tap(taps, name) for name in [*names, block.hook_neurons]]
        with torch.enable_grad():
            value = loss(logits_with(self.subject, pairs, pairs.clean, hooks))
        inputs = [taps.pop(block.hook_in).detach() for block in self.blocks]
        wanted = {name: tensor for name, tensor in taps.items() if tensor.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        gradient = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
        with torch.no_grad():
            for layer, x in enumerate(inputs):
                self._add_layer(layer, x, taps, gradient)
            self.final = _plus(self.final, self._live(gradient["ln_final.hook_in"]))
        return float(value.detach())

    def add_by_layer(
        self, pairs: Pairs, point: Hook, loss: Loss, also: Sequence[Hook] = ()
    ) -> float:
        """As ``add`` with ``point`` at the embedding, with one layer's graph at a time."""
        bridge = self.subject.bridge
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        taps: dict[str, Tensor] = {}

        def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handles = [
            block.bridge.register_forward_pre_hook(remember, with_kwargs=True)
            for block in self.blocks
        ]
        hooks = [point, *also, _tap(taps, "ln_final.hook_in")]
        try:
            with torch.no_grad():
                logits_with(self.subject, pairs, pairs.clean, hooks)
        finally:
            for handle in handles:
                handle.remove()
        final = taps.pop("ln_final.hook_in").detach().requires_grad_()
        with torch.enable_grad():
            rows = torch.arange(len(pairs), device=final.device)
            last = bridge.ln_final(final[rows, pairs.length.to(final.device) - 1])
            value = loss(self.subject.head(last))
        (upstream,) = torch.autograd.grad(value, final)
        self.final = _plus(self.final, self._live(upstream))
        for layer in reversed(range(self.graph.n_layers)):
            block, (args, kwargs) = self.blocks[layer], calls[layer]
            x = (point[1](args[0], None) if layer == 0 else args[0]).detach().requires_grad_()
            names = [*block.hook_qkv, block.hook_z, block.hook_mlp_in, block.hook_neurons]
            taps.clear()
            with bridge.hooks(fwd_hooks=[_tap(taps, n) for n in names]), torch.enable_grad():
                out = block.bridge(x, *args[1:], **kwargs)
            out = out[0] if isinstance(out, tuple) else out
            *found, downstream = torch.autograd.grad(
                out, [*(taps[n] for n in names), x], upstream.to(out.device)
            )
            with torch.no_grad():
                gradient = dict(zip(names, found, strict=True))
                self._add_layer(layer, x.detach(), taps, gradient)
            upstream = downstream
        return float(value.detach())

    def _live(self, x: Tensor) -> Tensor:
        """``[n, p, ...]`` to ``[T, ...]``, in the dtype of sums."""
        return _at(x, self.live).to(_accumulator(x.dtype))

    def _add_layer(
        self,
        layer: int,
        x: Tensor,
        value: dict[str, Tensor],
        gradient: dict[str, Tensor],
    ) -> None:
        block = self.blocks[layer]
        if block.hook_mlp_in in gradient:
            self.mlp[layer] = _plus(self.mlp[layer], self._live(gradient[block.hook_mlp_in]))
        if any(name in gradient for name in block.hook_qkv):
            parts = [
                gradient[name] if name in gradient else torch.zeros_like(value[name])
                for name in block.hook_qkv
            ]
            g = torch.cat([self._live(part) for part in parts], 1)
            out = torch.cat([self._live(value[name].detach()) for name in block.hook_qkv], 1)
            normalised, r = block.norm("ln1").normalise(self._live(x))
            self.reads[layer] = _plus(self.reads[layer], g * r[..., None])
            self.normalised[layer].append(normalised)
            inner = ((out - self.offsets[layer]) * g).sum(-1)
            self.pulls[layer].append(inner * r / x.shape[-1])
            if self.slices is not None:
                score = (self.delta.qkv[layer].to(g.dtype) * g).sum((0, 2)) / self.steps
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
                    score = delta[layer] * self._live(gradient[name])
                    score = score.sum((0, 2) if score.ndim == 3 else 0) / self.steps
                    total[layer] += score.to(total.device)

    def at_attention(self, layer: int, tokens: slice) -> Tensor | None:
        """Gradient at the residual stream that each query, key and value reads, ``[V, t, d]``."""
        reads = self.reads[layer]
        if reads is None:
            return None
        block = self.blocks[layer]
        norm = block.norm("ln1")
        weight = block.readers()[0].mul_(norm.scale[:, None]).to(reads.dtype)  # [V, d, k]
        if norm.centred:
            weight -= weight.mean(1, keepdim=True)
        gradient = reads[tokens].transpose(0, 1) @ weight.mT  # [V, t, d]
        pulls = torch.stack([p[tokens] for p in self.pulls[layer]], -1)  # [t, V, steps]
        normalised = torch.stack([x[tokens] for x in self.normalised[layer]], 1)  # [t, steps, d]
        gradient.transpose(0, 1).baddbmm_(pulls, normalised, alpha=-1)
        return gradient


def live_tokens(pairs: Pairs) -> Tensor:
    """Where clean and corrupt runs may differ, int64 indices into ``[pairs × positions]``.

    Neither the shared beginning of two prompts nor padding.
    """
    real = torch.arange(pairs.clean.shape[1]) < pairs.length[:, None]
    differs = (pairs.clean != pairs.corrupt).cumsum(1).bool()
    return (differs & real).flatten().nonzero()[:, 0]


def _at(x: Tensor, live: Tensor | None) -> Tensor:
    """``[n, p, ...]`` at the live tokens, ``[T, ...]``; as it is without."""
    return x if live is None else x.flatten(0, 1).index_select(0, live.to(x.device))


def _moved(name: str, difference: Tensor, share: float, live: Tensor) -> Hook:
    """A hook that adds a share of a difference ``[T, ...]`` and makes of it a leaf of autograd."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        tokens = value.detach().flatten(0, 1)
        change = share * difference.to(value.device)
        return tokens.index_add(0, live.to(value.device), change).view_as(value).requires_grad_()

    return name, hook


def _tap(taps: dict[str, Tensor], name: str) -> Hook:
    """A hook that puts the value into ``taps``."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        # A new view, so that its gradient is that of this reader alone, not of the stream.
        taps[name] = value.view_as(value)
        return taps[name]

    return name, hook


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


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
    n_tokens, d = delta.embedding.shape
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

        put(0, delta.embedding[None, tokens])
        # What reads the stream between two layers' heads: an MLP, then all of an attention.
        reads = torch.zeros(graph.per_layer, t, d, dtype=dtype, device=device)
        for layer in range(graph.n_layers):
            attention = gradients.at_attention(layer, tokens)
            reads[1:] = 0 if attention is None else attention
            places = graph.attention_inputs(layer)
            first = min(layer, 1)  # no MLP before layer 0
            score(graph.head(layer), slice(places.start - first, places.stop), reads[1 - first :])
            output = Block(subject, layer).output().to(dtype)
            put(graph.head(layer), delta.z[layer][tokens].to(dtype).transpose(0, 1) @ output)
            put(graph.mlp(layer), delta.mlp[layer][None, tokens])
            mlp = gradients.mlp[layer]
            reads[0] = 0 if mlp is None else mlp[tokens]
        assert gradients.final is not None
        reads[1] = gradients.final[tokens]
        score(graph.n_sources, slice(graph.logits - 1, graph.logits + 1), reads[:2])


def differences(subject: Subject, pairs: Pairs) -> Tensor:
    """What every node writes on corrupt minus clean prompts, ``[n_sources, T, d]``.

    T are the ``live_tokens``. All pairs go through at once.
    """
    delta, _ = _difference(subject, graph_of(subject), pairs)
    return _writes(subject, delta)


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
    graph, live = graph_of(subject), live_tokens(pairs)
    delta, clean = _difference(subject, graph, pairs)
    reference = clean.float().log_softmax(-1) if metric == "kl" else None
    gradients = _Gradients(subject, graph, delta, None, steps, live)
    for step in range(steps):
        gradients.add(
            pairs,
            _moved("blocks.0.hook_in", delta.embedding, (step + 0.5) / steps, live),
            lambda logits: metric_values(metric, logits, pairs, reference).sum(),
        )
    assert gradients.final is not None
    everywhere = slice(0, len(gradients.final))
    empty = torch.zeros_like(gradients.final)[None]
    reads = []
    for layer in range(graph.n_layers):
        attention = gradients.at_attention(layer, everywhere)
        reads.append(empty.expand(graph.per_layer - 1, -1, -1) if attention is None else attention)
        mlp = gradients.mlp[layer]
        reads.append(empty if mlp is None else mlp[None])
    sensitivities = torch.cat([*reads, gradients.final[None]]) / steps
    return _writes(subject, delta), sensitivities


def _difference(subject: Subject, graph: Graph, pairs: Pairs) -> tuple[Record, Tensor]:
    """What nodes write on corrupt minus clean prompts at live tokens, and the clean logits."""
    kept, live = ("z", "mlp"), live_tokens(pairs)
    delta = record(subject, graph, pairs, pairs.corrupt, kept, live)
    hooks = _recorder(subject, graph, delta, kept, live, minus=True)
    with torch.no_grad():
        return delta, logits_with(subject, pairs, pairs.clean, hooks)


def _writes(subject: Subject, delta: Record) -> Tensor:
    dtype = _accumulator(delta.embedding.dtype)
    writes = [delta.embedding[None].to(dtype)]
    for layer, (z, mlp) in enumerate(zip(delta.z, delta.mlp, strict=True)):
        z = z.to(dtype).transpose(0, 1)
        writes += [z @ Block(subject, layer).output().to(dtype), mlp[None].to(dtype)]
    return torch.cat(writes)
