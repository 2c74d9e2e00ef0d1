"""HQQ: 4 bits whose scale and zero are fitted to each group, by its authors' own library.

Of what makes fitted or calibrated int4 it alone runs on a processor beside this project's torch and
transformers (``docs/formats.md``). It needs no data, so nothing of a task can leak into it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.formats import Format

MISSING = "HQQ needs the package hqq, which is not installed: run `pip install 'mansu[hqq]'`."


def installed() -> bool:
    """Whether the library is there."""
    return find_spec("hqq") is not None


def fitted(weight: Tensor, format: Format) -> Tensor:
    """A matrix after a trip through HQQ's codes, in its dtype.

    The fit stops by the error of the whole matrix: a change in one group may change the others.

    Args:
        weight: ``[rows, columns]``, in whole groups of ``format.blocksize``.

    Raises:
        BadInputError: the library is missing, the weight is not finite, or a row is no whole number
            of groups.
    """
    if not installed():
        raise BadInputError(MISSING)
    if weight.shape[-1] % format.blocksize:
        raise BadInputError(
            f"{format} needs rows of whole groups of {format.blocksize}, and this model has rows "
            f"of {weight.shape[-1]}."
        )
    format.check(weight)
    quantizer = _quantizer()
    codes, about = quantizer.quantize(
        weight.detach(),
        nbits=4,
        group_size=format.blocksize,
        axis=1,
        bitpack=False,
        device=str(weight.device),
    )
    return quantizer.dequantize(codes, {**about, "compute_dtype": torch.float32}).to(weight.dtype)


def _quantizer() -> Any:
    from hqq.core.quantize import Quantizer  # pyright: ignore[reportMissingImports]

    return Quantizer
