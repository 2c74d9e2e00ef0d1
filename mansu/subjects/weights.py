"""What a weight is: its role, its layer, its orientation."""

from __future__ import annotations

import re

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mansu.subjects.subject import Subject


def transposed_names(subject: Subject) -> frozenset[str]:
    """The weights that 4-bit loading transposes first (GPT-2's Conv1D)."""
    conv1d = {id(m.weight) for m in subject.model.modules() if isinstance(m, Conv1D)}
    return frozenset(name for name, p in subject.parameters.items() if id(p) in conv1d)


def layout(subject: Subject, name: str) -> Tensor:
    """The weight as the quantiser sees it: ``[outputs, inputs]``, row-major."""
    weight = subject.parameters[name].data
    return weight.T.contiguous() if name in transposed_names(subject) else weight


def layer_of(name: str) -> int | None:
    """The layer number in a parameter's name; ``None`` outside the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


_KINDS = {
    "q": ("q_proj", "q", "query"),
    "k": ("k_proj", "k", "key"),
    "v": ("v_proj", "v", "value"),
    "qkv": ("c_attn", "qkv", "query_key_value", "qkv_proj"),
    "o": ("o_proj", "o", "dense", "out_proj", "attn.c_proj"),
    "gate": ("gate_proj", "gate"),
    "up": ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "in"),
    "gate and up": ("gate_up_proj",),
    "down": ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "out"),
    "embedding": ("embed_tokens", "wte", "wpe", "embed_in", "embed_positions"),
    "head": ("lm_head", "embed_out"),
}


def matrix_kind(name: str) -> str:
    """What a parameter is, across model families: q, k, v, o, gate, up, down, embedding, …"""
    *_, parent, module, leaf = ("", "", *name.split("."))
    if leaf == "bias":
        return "bias"
    if "norm" in module or module.startswith("ln"):
        return "norm"
    for kind, names in _KINDS.items():
        if module in names or f"{parent}.{module}" in names:
            return kind
    return module or leaf
