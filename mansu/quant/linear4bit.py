"""A real 4-bit model, out of bitsandbytes' own layers."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import Module

from mansu.errors import MansuError
from mansu.quant.formats import NF4, Format
from mansu.quant.kernel import bnb, layers
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import layout


def linear4bit_model(subject: Subject, edit: Edit | None = None, format: Format = NF4) -> Module:
    """A real 4-bit model: a copy whose linears are ``bitsandbytes.nn.Linear4bit``.

    It computes in float32 from the codes, as the simulation does; the output head is left alone.
    On processors with AVX512-BF16, bitsandbytes would by itself repack the weights and compute
    in bfloat16 whatever ``compute_dtype`` says; that is switched off here.

    Returns:
        A Hugging Face model, evaluation mode, on the subject's device.

    Raises:
        MansuError: int8 (not 4-bit), or rows that bitsandbytes' CPU kernel misreads.
    """
    if format.kind == "int8":
        raise MansuError("Linear4bit holds nf4 or fp4, not int8: choose a 4-bit format.")
    with ExitStack() as stack:
        stack.enter_context(subject.lock)
        if edit is not None:
            stack.enter_context(edit.applied(subject))
        model = type(subject.model)(copy.deepcopy(subject.model.config))
        model.to(subject.dtype)
        for name, parameter in dict(model.named_parameters()).items():
            parameter.data = subject.parameters[name].data.clone()
        for name in subject.quantized_names:
            path = name.removesuffix(".weight")
            bias = model.get_submodule(path).bias
            weight = layout(subject, name)
            linear: Any = layers().Linear4bit(
                weight.shape[1],
                weight.shape[0],
                bias=bias is not None,
                compute_dtype=torch.float32,
                compress_statistics=format.double_quant,
                quant_type=format.kind,
                device="meta",
            )
            make = layers().Params4bit
            linear.weight = make(
                weight.clone(),
                requires_grad=False,
                blocksize=format.blocksize,
                compress_statistics=format.double_quant,
                quant_type=format.kind,
                module=linear,
            ).to(subject.device)
            if bias is not None:
                linear.bias = bias
            linear.support_avx512bf16_for_cpu = False
            _check_kernel(linear.weight, subject.name, name)
            model.set_submodule(path, linear)
    return model.to(subject.device).eval().requires_grad_(False)


def _check_kernel(weight: Any, subject: str, name: str) -> None:
    """bitsandbytes 0.50's AVX512 kernel starts a new block with each row where 16 divides the row
    but the block does not; as one long row the same codes are read right."""
    flat = copy.copy(weight.quant_state)
    rows, columns = flat.shape
    flat.shape = torch.Size([rows * columns])
    right = bnb().dequantize_4bit(weight.data, flat).view(rows, columns)
    if not torch.equal(bnb().dequantize_4bit(weight.data, weight.quant_state), right):
        raise MansuError(
            f"bitsandbytes misreads {name!r} of {subject!r} on this processor, because its rows of "
            f"{columns} weights are no multiple of the block of {flat.blocksize}: use the "
            "simulation (mansu.quant.quantized), which reads the codes as they were written."
        )
