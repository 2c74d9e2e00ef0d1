"""One layer as the graph needs it: its hooks, its weights by head, its norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mansu.subjects.subject import Subject
from mansu.subjects.weights import Heads, family_of, running


class Block:
    """One layer's weights as the graph needs them, and the names of its hooks.

    Weights are read when asked for, so that an edit in force is seen. H heads, G key/value heads,
    V = H + 2 G readers, d model width, k head width. Queries and keys are those of the linear maps,
    before the norms that some families put on them (each head's in Qwen3 and Gemma 3, all heads'
    together in OLMo-2) and before rotation.
    """

    def __init__(self, subject: Subject, layer: int) -> None:
        self.bridge = subject.bridge.blocks[layer]
        self.subject, self.layer = subject, layer
        self.name = f"blocks.{layer}"
        self.heads = Heads.of(subject.config)
        self.has_post_norms = "ln1_post" in self.bridge._modules
        attention = f"{self.name}.attn"
        # Without a norm before them (OLMo-2) attention and MLP read the stream itself.
        self.hook_in, self.hook_mlp_in = (
            f"{self.name}.{norm if norm in self.bridge._modules else reader}.hook_in"
            for norm, reader in (("ln1", "attn"), ("ln2", "mlp"))
        )
        self.hook_qkv = tuple(f"{attention}.hook_{kind}" for kind in "qkv")
        self.hook_z = f"{attention}.hook_z"
        self.hook_attention = f"{attention}.hook_out"  # before the post-norm
        self.hook_neurons = f"{self.name}.mlp.hook_post"
        self.hook_mlp = f"{self.name}.mlp.hook_out"  # before the post-norm
        post = self.has_post_norms
        self.hook_attention_write = (
            f"{self.name}.ln1_post.hook_out" if post else self.hook_attention
        )
        self.hook_mlp_write = f"{self.name}.ln2_post.hook_out" if post else self.hook_mlp
        self.hook_end = f"{self.name}.hook_out"

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook but the last, each once."""
        names = (self.hook_in, *self.hook_qkv, self.hook_z, self.hook_attention, self.hook_mlp_in)
        names += (self.hook_neurons, self.hook_attention_write, self.hook_mlp_write)
        return tuple(dict.fromkeys(names))

    @property
    def norm(self) -> Norm | None:
        """The norm before the attention; None where there is none (OLMo-2)."""
        return self._norm("ln1") if "ln1" in self.bridge._modules else None

    @property
    def post_norm(self) -> Norm:
        """The norm after the attention, of a block that ``has_post_norms``."""
        return self._norm("ln1_post")

    @property
    def mlp_post_norm(self) -> Norm:
        """The norm after the MLP, of a block that ``has_post_norms``."""
        return self._norm("ln2_post")

    def _norm(self, which: str) -> Norm:
        module = getattr(self.bridge, which).original_component
        return Norm(module, offset=family_of(self.subject).norm_offset)

    def _running(self, role: str) -> Any:
        return running(self.subject, self.layer, role)

    def readers(self) -> tuple[Tensor, Tensor]:
        """Weights ``[V, d, k]`` and biases ``[V, k]`` of all queries, keys and values."""
        width, modules = self.heads.width, [self._running(kind) for kind in "qkv"]
        weight = torch.cat([m.weight.unflatten(0, (-1, width)).mT for m in modules])
        biases = [m.bias for m in modules]
        if any(b is None for b in biases):
            return weight, weight.new_zeros(len(weight), width)
        return weight, torch.cat(biases).view(-1, width)

    def offset(self) -> Tensor:
        """What queries, keys and values are when x̂ is zero, ``[V, k]``."""
        norm, modules = self.norm, [self._running(kind) for kind in "qkv"]
        if norm is None or norm.bias is None:
            shift = modules[0].weight.new_zeros(modules[0].weight.shape[1])
        else:
            shift = norm.bias
        return torch.cat([m(shift) for m in modules]).view(-1, self.heads.width)

    def output(self) -> Tensor:
        """What a head writes per unit of ``z``: ``[H, k, d]``, times the post-norm's scale."""
        stored = self._running("o").weight
        weight = stored if family_of(self.subject).transposed else stored.T
        weight = weight.unflatten(0, (-1, self.heads.width))
        return weight * self.post_norm.scale if self.has_post_norms else weight

    def down(self) -> Tensor:
        """What an MLP neuron writes per unit of its activation: ``[m, d]``, times the post-norm's
        scale."""
        stored = self._running("down").weight
        weight = stored if family_of(self.subject).transposed else stored.T
        return weight * self.mlp_post_norm.scale if self.has_post_norms else weight


class Norm:
    """A LayerNorm or RMSNorm: y = scale · x̂ + bias, with x̂ = (x − mean) / r⁻¹, or x · r.

    Args:
        module: Hugging Face's. offset: it scales by 1 + weight (Gemma).
    """

    def __init__(self, module: Module, *, offset: bool = False) -> None:
        self.module = module
        self.centred = isinstance(module, torch.nn.LayerNorm)
        weight: Any = module.weight
        self.scale: Tensor = 1 + weight if offset else weight
        self.bias: Tensor | None = getattr(module, "bias", None)
        self.eps = float(getattr(module, "eps", None) or getattr(module, "variance_epsilon", 1e-5))

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x̂ ``[..., d]`` and r ``[..., 1]``, in float32 at least."""
        x = x if x.dtype == torch.float64 else x.float()
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * r, r


def final_norm(subject: Subject) -> Norm:
    """The norm before the output head."""
    module = subject.bridge.ln_final.original_component
    return Norm(module, offset=family_of(subject).norm_offset)


@torch.no_grad()
def readout(subject: Subject, vocabulary: Tensor) -> Tensor:
    """What tells words' logits apart in the final residual stream, float32 ``[V, d]``.

    Rows of the output head, by the final norm's scale, less their mean.

    Args:
        vocabulary: int64 ``[V]``, token ids.
    """
    head = subject.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
    rows = (head[vocabulary.to(head.device)] * final_norm(subject).scale).float()
    return rows - rows.mean(0)
