"""The computation graph that attribution and circuits share: which edges exist, and the weights.

Nodes are what writes to the residual stream: the embedding, every attention head, every MLP.
Destinations are what reads it: the query of every head, the key and the value of every key/value
head, every MLP input, the logits. An edge is one node's output inside one destination's input
(Elhage et al. 2021; Wang et al. 2022; Syed et al. 2023).

Node ``0`` is the embedding; node ``1 + l (H + 1) + h`` is head ``h`` of layer ``l`` and
``1 + l (H + 1) + H`` its MLP. Destinations of a layer are its H queries, its G keys, its G values
and its MLP, in this order; the last destination is the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

from mansu.errors import MansuError
from mansu.files import replacing
from mansu.subjects import Subject

KNOWN = (
    "Gemma2ForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
)


@dataclass(frozen=True)
class Graph:
    """Layout of nodes, destinations and edges.

    Attributes:
        n_layers, n_heads, n_kv_heads: L, H, G.
        parallel: the MLP reads the same residual stream as the attention of its layer (GPT-NeoX).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool

    @property
    def per_layer(self) -> int:
        """Destinations a layer: H + 2 G + 1."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @property
    def n_sources(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_destinations(self) -> int:
        return self.n_layers * self.per_layer + 1

    @property
    def logits(self) -> int:
        """Index of the last destination, the logits."""
        return self.n_destinations - 1

    def head(self, layer: int, head: int = 0) -> int:
        """Source index of a head; with the default, where the layer's heads begin."""
        return 1 + layer * (self.n_heads + 1) + head

    def mlp(self, layer: int) -> int:
        """Source index of a layer's MLP."""
        return self.head(layer, self.n_heads)

    def attention_inputs(self, layer: int) -> slice:
        """Destination indices of a layer's queries, keys and values."""
        start = layer * self.per_layer
        return slice(start, start + self.per_layer - 1)

    def mlp_input(self, layer: int) -> int:
        """Destination index of a layer's MLP."""
        return (layer + 1) * self.per_layer - 1

    def before_attention(self, layer: int) -> int:
        """How many sources a layer's attention can read (they are the first ones)."""
        return self.head(layer)

    def before_mlp(self, layer: int) -> int:
        """How many sources a layer's MLP can read."""
        return self.head(layer) if self.parallel else self.mlp(layer)

    @cached_property
    def readable(self) -> Tensor:
        """int64 ``[n_destinations]``: how many sources, the first ones, each one can read."""
        counts = []
        for layer in range(self.n_layers):
            counts += [self.before_attention(layer)] * (self.per_layer - 1)
            counts.append(self.before_mlp(layer))
        return torch.tensor([*counts, self.n_sources])

    @cached_property
    def edges(self) -> Tensor:
        """bool ``[n_sources, n_destinations]``: where an edge exists."""
        return torch.arange(self.n_sources)[:, None] < self.readable

    @property
    def n_edges(self) -> int:
        return int(self.readable.sum())

    @cached_property
    def feeds(self) -> Tensor:
        """bool ``[n_destinations, n_sources]``: the nodes whose output a destination enters.

        A key or value feeds every head of its group; the logits feed no node.
        """
        feeds = torch.zeros(self.n_destinations, self.n_sources, dtype=torch.bool)
        heads = torch.arange(self.n_heads)
        group = heads // (self.n_heads // self.n_kv_heads)
        for layer in range(self.n_layers):
            start = self.attention_inputs(layer).start
            nodes = self.head(layer) + heads
            feeds[start + heads, nodes] = True
            feeds[start + self.n_heads + group, nodes] = True
            feeds[start + self.n_heads + self.n_kv_heads + group, nodes] = True
            feeds[self.mlp_input(layer), self.mlp(layer)] = True
        return feeds

    def prune(self, kept: Tensor) -> Tensor:
        """Drop the edges on no path from the embedding to the logits.

        Dropping them changes no output: what is not reached from the embedding carries its
        corrupt value, and what does not reach the logits is not read.

        Args:
            kept: bool ``[n_sources, n_destinations]``.
        """
        kept = kept & self.edges
        into = self.feeds.float()
        step = kept.float()
        forward = torch.zeros(self.n_sources)
        forward[0] = 1
        backward = torch.zeros(self.n_destinations)
        backward[self.logits] = 1
        while True:  # at most two sweeps a layer deep; each is two small products
            ahead = ((forward @ step @ into + forward) > 0).float()
            back = (((into @ (step @ backward)) + backward) > 0).float()
            if torch.equal(ahead, forward) and torch.equal(back, backward):
                return kept & (forward[:, None] > 0) & (backward > 0)
            forward, backward = ahead, back

    def source_name(self, index: int) -> str:
        """``embed``, ``a3.h2`` (layer 3, head 2) or ``m3``."""
        if index == 0:
            return "embed"
        layer, head = divmod(index - 1, self.n_heads + 1)
        return f"m{layer}" if head == self.n_heads else f"a{layer}.h{head}"

    def destination_name(self, index: int) -> str:
        """``a3.h2<q>``, ``a3.kv1<k>``, ``a3.kv1<v>``, ``m3`` or ``logits``."""
        if index == self.logits:
            return "logits"
        layer, place = divmod(index, self.per_layer)
        if place < self.n_heads:
            return f"a{layer}.h{place}<q>"
        if place == self.per_layer - 1:
            return f"m{layer}"
        kind, head = divmod(place - self.n_heads, self.n_kv_heads)
        return f"a{layer}.kv{head}<{'kv'[kind]}>"

    def meta(self) -> dict[str, Any]:
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "parallel": self.parallel,
        }


def graph_of(subject: Subject) -> Graph:
    """The graph of a subject.

    Raises:
        MansuError: the architecture is none of ``KNOWN``.
    """
    architecture = type(subject.model).__name__
    if architecture not in KNOWN:
        raise MansuError(
            f"Attribution does not know the architecture {architecture} of {subject.name!r}: "
            f"it knows {', '.join(KNOWN)}."
        )
    config = subject.config
    heads = config.num_attention_heads
    return Graph(
        config.num_hidden_layers,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        bool(getattr(config, "use_parallel_residual", False)),
    )


class Block:
    """One layer's weights as the graph needs them, and the names of its hooks.

    Weights are read when asked for, so that an edit in force is seen. H heads, G key/value heads,
    V = H + 2 G readers, d model width, k head width.
    """

    def __init__(self, subject: Subject, layer: int) -> None:
        self.bridge = subject.bridge.blocks[layer]
        self.subject = subject
        self.name = f"blocks.{layer}"
        self.has_post_norms = "ln1_post" in self.bridge._modules
        attention = f"{self.name}.attn"
        self.hook_in = f"{self.name}.ln1.hook_in"
        self.hook_qkv = tuple(f"{attention}.hook_{kind}" for kind in "qkv")
        self.hook_z = f"{attention}.hook_z"
        self.hook_attention = f"{attention}.hook_out"  # before the post-norm
        self.hook_mlp_in = f"{self.name}.ln2.hook_in"
        self.hook_neurons = f"{self.name}.mlp.hook_post"
        post = self.has_post_norms
        self.hook_attention_write = (
            f"{self.name}.ln1_post.hook_out" if post else self.hook_attention
        )
        self.hook_mlp_write = f"{self.name}.{'ln2_post' if post else 'mlp'}.hook_out"
        self.hook_end = f"{self.name}.hook_out"

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook but the last, each once."""
        names = (self.hook_in, *self.hook_qkv, self.hook_z, self.hook_attention, self.hook_mlp_in)
        names += (self.hook_neurons, self.hook_attention_write, self.hook_mlp_write)
        return tuple(dict.fromkeys(names))

    def norm(self, which: str) -> Norm:
        return Norm(getattr(self.bridge, which).original_component)

    def readers(self) -> tuple[Tensor, Tensor]:
        """Weights ``[V, d, k]`` and biases ``[V, k]`` of all queries, keys and values."""
        attention = self.bridge.attn
        weight = torch.cat([attention.W_Q, attention.W_K, attention.W_V])
        biases = [getattr(attention, f"b_{kind}", None) for kind in "QKV"]
        flat = [b.reshape(-1, weight.shape[-1]) for b in biases if b is not None]
        bias = (
            torch.cat(flat) if len(flat) == 3 else weight.new_zeros(len(weight), weight.shape[-1])
        )
        return weight, bias

    def offset(self) -> Tensor:
        """What queries, keys and values are when x̂ is zero, ``[V, k]``."""
        norm, attention = self.norm("ln1"), self.bridge.attn
        shift = torch.zeros_like(norm.scale) if norm.bias is None else norm.bias
        parts = [getattr(attention, kind).original_component(shift) for kind in "qkv"]
        return torch.cat(parts).view(-1, attention.W_Q.shape[-1])

    def output(self) -> Tensor:
        """What a head writes per unit of ``z``: ``[H, k, d]``, times the post-norm's scale."""
        weight = self.bridge.attn.W_O
        return weight * self.norm("ln1_post").scale if self.has_post_norms else weight

    def slices(self, kind: str) -> list[tuple[str, int, int, int]]:
        """Where a head's q, k, v or o slice, or a neuron, lies in the subject's parameters.

        Returns:
            For each weight: its name, the axis, where slice 0 starts on it and a slice's width.
        """
        names = {id(p): name for name, p in self.subject.parameters.items()}
        attention, mlp = self.bridge.attn, self.bridge.mlp

        def found(module: Any, reads: bool) -> tuple[str, int]:
            # Linear keeps [out, in], GPT-2's Conv1D [in, out]; readers are sliced along ``out``.
            transposed = type(module).__name__ == "Conv1D"
            return names[id(module.weight)], int(transposed == reads)

        if kind == "neuron":
            modules = [getattr(mlp, name, None) for name in ("gate", "in")]
            parts = [found(m.original_component, True) for m in modules if m is not None]
            return [(*p, 0, 1) for p in [*parts, found(mlp.out.original_component, False)]]
        width = attention.W_Q.shape[-1]
        if kind == "o":
            return [(*found(attention.o.original_component, False), 0, width)]
        own = getattr(attention, kind).original_component
        if id(own.weight) in names:
            return [(*found(own, True), 0, width)]
        start = "qkv".index(kind) * attention.W_Q.shape[0] * width
        return [(*found(attention.qkv.original_component, True), start, width)]


class Norm:
    """A LayerNorm or RMSNorm: y = scale · x̂ + bias, with x̂ = (x − mean) / r⁻¹, or x · r."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.centred = isinstance(module, torch.nn.LayerNorm)
        weight: Any = module.weight
        self.scale: Tensor = 1 + weight if "Gemma" in type(module).__name__ else weight
        self.bias: Tensor | None = getattr(module, "bias", None)
        self.eps = float(getattr(module, "eps", None) or getattr(module, "variance_epsilon", 1e-5))

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x̂ ``[..., d]`` and r ``[..., 1]``, in float32 at least."""
        x = x if x.dtype == torch.float64 else x.float()
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * r, r


def save_values(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one safetensors file, whole or not at all."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"mansu": json.dumps(dict(meta))})


def load_values(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_values`` wrote.

    Raises:
        MansuError: there is no such file, or it is not one of ours.
    """
    if not path.is_file():
        raise MansuError(f"There is no {path.name} in {path.parent}: run the step that makes it.")
    try:
        with safe_open(str(path), "pt") as file:
            meta = json.loads(file.metadata()["mansu"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise MansuError(f"{path} is damaged or was not written by MANSU: {error}.") from error
