"""The anatomy of a model: what each weight is, where a head's slice of it lies, how it runs.

An entry of ``FAMILIES`` is what a family of models costs: which module of a layer plays which role.
The rest is derived from it: the layer and the kind of a parameter, the rows and columns of a head
or a neuron, which weights are stored transposed, which are fused and run in parts.

A role is one linear map of a layer: the queries ``q``, keys ``k`` and values ``v`` of the
attention and its output ``o``; the ``gate``, ``up`` and ``down`` of the MLP. A unit of a role is
what the graph attributes to: a head, or a neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import linear

from mansu.errors import BadInputError, MansuError

if TYPE_CHECKING:
    from mansu.subjects.subject import Subject

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
WRITERS = ("o", "down")
"""Roles whose units are inputs, columns of ``[outputs, inputs]``; of the others they are rows."""

KINDS: Mapping[tuple[str, ...], str] = {
    **{(role,): role for role in ROLES},
    ("q", "k", "v"): "qkv",
    ("gate", "up"): "gate and up",
}
"""What a weight that plays some roles is called."""

UNITS: Mapping[str, tuple[str, ...]] = {
    **{role: (role,) for role in "qkvo"},
    "neuron": ("gate", "up", "down"),
}
"""Kind of unit → the roles that have it; a neuron is a row of gate and up, a column of down."""

BRIDGED: Mapping[str, str] = {
    **{role: f"attn.{role}" for role in "qkvo"},
    "gate": "mlp.gate",
    "up": "mlp.in",
    "down": "mlp.out",
}
"""Role → where TransformerLens's bridge keeps what runs it, in a block of any family."""

_ATTENTION = {role: f"self_attn.{role}_proj" for role in "qkvo"}
_GATED = {role: f"mlp.{role}_proj" for role in ("gate", "up", "down")}


@dataclass(frozen=True)
class Family:
    """How the models of one architecture keep their weights. The defaults are Llama's.

    Attributes:
        title: what people call it.
        layers: path of the list of layers in the model.
        maps: role → path of its linear map in a layer. Roles with one path are fused there, in the
            order of ``ROLES``.
        by_head: fused rows lie head by head, a head's q, k and v together (GPT-NeoX), and not all
            of q before all of k.
        transposed: weights of linear maps are stored ``[inputs, outputs]`` (GPT-2's Conv1D), which
            4-bit loading transposes first.
        embeddings: paths of what makes vectors of tokens and positions. head: of what makes logits.
        norm_offset: RMSNorms scale by 1 + weight (Gemma).
    """

    title: str
    layers: str = "model.layers"
    maps: Mapping[str, str] = field(default_factory=lambda: _ATTENTION | _GATED)
    by_head: bool = False
    transposed: bool = False
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    head: str = "lm_head"
    norm_offset: bool = False


FAMILIES: Mapping[str, Family] = {
    "Gemma2ForCausalLM": Family("Gemma 2", norm_offset=True),
    "Gemma3ForCausalLM": Family("Gemma 3", norm_offset=True),
    "GPT2LMHeadModel": Family(
        "GPT-2",
        layers="transformer.h",
        maps=dict.fromkeys("qkv", "attn.c_attn")
        | {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        transposed=True,
        embeddings=("transformer.wte", "transformer.wpe"),
    ),
    "GPTNeoXForCausalLM": Family(
        "Pythia (GPT-NeoX)",
        layers="gpt_neox.layers",
        maps=dict.fromkeys("qkv", "attention.query_key_value")
        | {"o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        by_head=True,
        embeddings=("gpt_neox.embed_in",),
    ),
    "LlamaForCausalLM": Family("Llama"),
    "MistralForCausalLM": Family("Mistral"),
    "Olmo2ForCausalLM": Family("OLMo-2"),
    "Phi3ForCausalLM": Family(
        "Phi-3",
        maps=dict.fromkeys("qkv", "self_attn.qkv_proj")
        | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
        | {"o": "self_attn.o_proj", "down": "mlp.down_proj"},
    ),
    "Qwen2ForCausalLM": Family("Qwen2"),
    "Qwen3ForCausalLM": Family("Qwen3"),
}
"""Architecture, as Hugging Face names its class → how it keeps its weights."""


def titles() -> str:
    """The families, for people: ``Gemma 2, … and Qwen3``."""
    *most, last = (family.title for family in FAMILIES.values())
    return f"{', '.join(most)} and {last}"


def family_named(architecture: str, subject: str) -> Family:
    """The family of an architecture; ``subject`` is what the user calls the model.

    Raises:
        BadInputError: it is not known; the sentence lists those that are.
    """
    if architecture not in FAMILIES:
        raise BadInputError(
            f"MANSU does not know the architecture {architecture} of {subject!r}: it knows "
            f"{titles()}."
        )
    return FAMILIES[architecture]


def family_of(subject: Subject) -> Family:
    """The family of a subject.

    Raises:
        BadInputError: as ``family_named``.
    """
    return family_named(type(subject.model).__name__, subject.name)


@dataclass(frozen=True)
class Heads:
    """The attention heads of every layer.

    Attributes:
        n: query heads. kv: key/value heads. width: k, of each.
    """

    n: int
    kv: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Heads:
        """From a Hugging Face config of a text model."""
        n = config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or n
        return cls(n, kv, getattr(config, "head_dim", None) or config.hidden_size // n)


@dataclass(frozen=True)
class Lines:
    """Where the units of a role lie in a weight: unit i holds ``width`` neighbouring lines.

    Attributes:
        name: of the parameter.
        axis: along which the lines are counted, in the parameter as it is stored.
        start: the first line of unit 0. stride: from a unit to the next. width: lines of a unit.
        count: units.
    """

    name: str
    axis: int
    start: int
    stride: int
    width: int
    count: int

    def of(self, units: Tensor) -> Tensor:
        """int64 ``[units × width]``: the lines of some units, in their order."""
        return (self.start + units[:, None] * self.stride + torch.arange(self.width)).flatten()

    def all(self) -> Tensor:
        """int64 ``[count × width]``: the lines of every unit."""
        return self.of(torch.arange(self.count))

    def take(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Every unit's lines along ``axis``, one unit after the other.

        A view where units lie side by side; gradients reach ``tensor`` either way.
        """
        if self.stride == self.width:
            return tensor.narrow(axis, self.start, self.count * self.width)
        units = tensor.unflatten(axis, (self.count, self.stride))
        return units.narrow(axis + 1, self.start, self.width).flatten(axis, axis + 1)


def weight_name(subject: Subject, layer: int, role: str) -> str:
    """The parameter that holds a role's weight, with others' where they are fused."""
    family = family_of(subject)
    return f"{family.layers}.{layer}.{family.maps[role]}.weight"


def lines(subject: Subject, layer: int, role: str) -> Lines:
    """Where the units of a role, heads or neurons, lie in its weight.

    Example:
        >>> lines(subject, 0, "k")  # Phi-3, 4 query and 2 key/value heads of width 6
        Lines(name='model.layers.0.self_attn.qkv_proj.weight', axis=0, start=24, stride=6, …)
    """
    family, heads = family_of(subject), Heads.of(subject.config)
    name = weight_name(subject, layer, role)
    axis = int(role in WRITERS)  # in [outputs, inputs]
    stored = axis ^ family.transposed
    fused = _fused(family, family.maps[role])
    if role in ("gate", "up", "down"):
        count = subject.parameters[name].shape[stored] // len(fused)
        return Lines(name, stored, count * fused.index(role), 1, 1, count)
    counts = {"q": heads.n, "k": heads.kv, "v": heads.kv, "o": heads.n}
    before = fused[: fused.index(role)]
    start, stride = heads.width * sum(counts[r] for r in before), heads.width
    if family.by_head and len(fused) > 1:
        start, stride = heads.width * len(before), heads.width * len(fused)
    return Lines(name, stored, start, stride, heads.width, counts[role])


def slices(subject: Subject, layer: int, unit: str) -> list[Lines]:
    """Where a kind of unit, of ``UNITS``, lies in a layer: a neuron in two or three weights."""
    maps = family_of(subject).maps
    return [lines(subject, layer, role) for role in UNITS[unit] if role in maps]


def layer_of(subject: Subject, name: str) -> int | None:
    """The layer that a parameter belongs to; ``None`` outside the layers."""
    layer, _ = _place(family_of(subject), name)
    return layer


def kind_of(subject: Subject, name: str) -> str:
    """What a parameter is: q, k, v, o, qkv, gate, up, gate and up, down, embedding, head, norm or
    bias."""
    family = family_of(subject)
    _, path = _place(family, name)
    module, _, leaf = path.rpartition(".")
    if module in family.embeddings:
        return "embedding"
    if module == family.head:
        return "head"
    if leaf == "bias":
        return "bias"
    return KINDS.get(_fused(family, module), "norm")


def _place(family: Family, name: str) -> tuple[int | None, str]:
    """Layer and path within it of a parameter; (None, its name) outside the layers."""
    prefix = f"{family.layers}."
    if not name.startswith(prefix):
        return None, name
    layer, _, path = name.removeprefix(prefix).partition(".")
    return int(layer), path


def _fused(family: Family, path: str) -> tuple[str, ...]:
    """The roles that a linear map of a layer plays."""
    return tuple(role for role in ROLES if family.maps.get(role) == path)


def transposed_names(subject: Subject) -> frozenset[str]:
    """The weights that 4-bit loading transposes first (GPT-2's Conv1D)."""
    return frozenset(subject.quantized_names if family_of(subject).transposed else ())


def layout(subject: Subject, name: str) -> Tensor:
    """The weight as the quantiser sees it: ``[outputs, inputs]``, row-major."""
    weight = subject.parameters[name].data
    return weight.T.contiguous() if name in transposed_names(subject) else weight


def running(subject: Subject, layer: int, role: str) -> Module:
    """The module that runs a role in a layer."""
    bridged: Any = subject.bridge.blocks[layer].get_submodule(BRIDGED[role])
    return bridged.original_component


class Part(Module):
    """Some outputs of a fused linear map, taken from its one weight at every call.

    So that whatever becomes of the parameter (an edit, a 4-bit swap, a gradient step) is what runs.

    Attributes:
        weight: ``[outputs, inputs]`` and bias: ``[outputs]`` or None, of this part, as of now.
    """

    def __init__(
        self, weight: Parameter, bias: Parameter | None, lines: Lines, transposed: bool
    ) -> None:
        super().__init__()
        self.fused = (weight, bias)  # in a tuple: they are not this module's to list
        self.lines, self.transposed = lines, transposed

    @property
    def weight(self) -> Tensor:
        weight, _ = self.fused
        return self.lines.take(weight.T if self.transposed else weight)

    @property
    def bias(self) -> Tensor | None:
        _, bias = self.fused
        return None if bias is None else self.lines.take(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def run_fused(subject: Subject) -> None:
    """Let what the bridge runs in parts take them from the fused parameter.

    The bridge cuts fused projections up when it wraps a model: into views of the weight (GPT-2,
    Phi-3), which a swapped parameter leaves behind, or into copies (GPT-NeoX), which no change of
    the parameter reaches.

    Raises:
        MansuError: the bridge runs other weights than the subject's.
    """
    family = family_of(subject)
    for layer in range(subject.config.num_hidden_layers):
        for role, path in family.maps.items():
            if len(_fused(family, path)) > 1:
                where = lines(subject, layer, role)
                weight: Any = subject.parameters[where.name]
                bias: Any = subject.parameters.get(where.name.replace(".weight", ".bias"))
                bridged: Any = subject.bridge.blocks[layer].get_submodule(BRIDGED[role])
                part = Part(weight, bias, where, family.transposed)
                bridged.set_original_component(part.eval())
    own = {id(p) for p in subject.parameters.values()}
    others = [name for name, p in subject.model.named_parameters() if id(p) not in own]
    if others:
        raise MansuError(
            f"TransformerLens runs copies of weights of {type(subject.model).__name__} "
            f"({others[0]}), which MANSU cannot edit in place: use another version of it."
        )
