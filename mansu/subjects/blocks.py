"""One layer as the graph needs it: its hooks, its weights by head, its norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mansu.subjects.subject import Subject


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
