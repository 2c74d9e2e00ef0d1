"""GGUF's block formats, from the bytes that the library ``gguf`` itself makes.

llama.cpp cuts each row into blocks of 32, stores a scale of each in fp16 (Q4_1 an offset, too) and
the weights as whole numbers. It runs them with activations in 8 bits, which nothing here imitates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.formats import GGUF_BLOCK, Format
from mansu.subjects.subject import Subject

HEAD = Format("Q8_0", GGUF_BLOCK)
"""How llama.cpp stores the output head, or embeddings that are it, beside matrices in fewer bits,
where its rows are no whole number of 256; there in Q6_K, which the library cannot make, and Q8_0,
which has more bits, stands for it."""


def packed(weight: Tensor, format: Format) -> np.ndarray:
    """A matrix as a GGUF file holds it.

    Args:
        weight: ``[rows, columns]``, or any shape of whole blocks.

    Returns:
        uint8 ``[rows, bytes a row]``.

    Raises:
        BadInputError: a row is no whole number of blocks.
    """
    from gguf import GGMLQuantizationType, quants

    columns = weight.shape[-1]
    if columns % GGUF_BLOCK:
        raise BadInputError(
            f"{format} stores rows of whole blocks of {GGUF_BLOCK}, and this model has rows of "
            f"{columns}: llama.cpp cannot quantise it, nor can MANSU in its formats."
        )
    values = weight.detach().float().cpu().contiguous().numpy()
    with np.errstate(over="ignore"):  # of a block of almost nothing
        return quants.quantize(values, GGMLQuantizationType[format.kind])


def unpacked(
    data: np.ndarray, format: Format, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the bytes of ``packed`` say.

    Returns:
        codes: uint8 ``[weights]``, indices into ``format.levels``. scale: float32 ``[blocks]``.
        offset: float32 ``[blocks]``; None where the format has none.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    q = format.kind
    blocks = data.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[q]][1])

    def half(start: int) -> Tensor:
        found = np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)
        return torch.from_numpy(found.astype(np.float32)[:, 0]).to(device)

    if q == "Q8_0":
        codes: Any = blocks[:, 2:] ^ 0x80  # two's complement, from −128 up
    else:
        low = blocks[:, -16:]
        codes = np.concatenate([low & 15, low >> 4], 1)
        if q.startswith("Q5"):
            fifth = blocks[:, -20:-16]
            codes = codes | np.unpackbits(fifth, axis=1, bitorder="little") << 4
    flat = torch.from_numpy(np.ascontiguousarray(codes).reshape(-1)).to(device)
    return flat, half(0), half(2) if q.endswith("_1") else None


def stored(subject: Subject, format: Format) -> dict[str, Format]:
    """How each parameter that a format quantises is stored, by name.

    bitsandbytes quantises the linear maps alone; llama.cpp also embeddings, and the output head
    (``HEAD``). Both leave norms and biases as they are.
    """
    found = dict.fromkeys(subject.quantized_names, format)
    if not format.is_gguf:
        return found
    model: Any = subject.model
    names = {id(p): name for name, p in subject.parameters.items()}
    for module, how in (
        (model.get_input_embeddings(), format),
        (model.get_output_embeddings(), HEAD),
    ):
        name = names.get(id(module.weight))
        if name is not None:
            found[name] = how
    return found
