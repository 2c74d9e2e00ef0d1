"""Tests that need a CUDA device, what of one can be had without, a subject on another device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject


def needs_cuda(test: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a test, which is skipped where there is no device."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))


def moved(subject: Subject, device: str) -> Subject:
    """The same model on a device, a subject of its own."""
    model = copy.deepcopy(subject.plain).to(device)
    vars(model).pop("hf_device_map", None)  # it says where ``load`` put it
    return wrap(subject.name, model, subject.tokenizer, subject.provenance)


# https://docs.pytorch.org/docs/stable/amp.html: "CUDA Ops that can autocast to float32".
_NAMES = """
__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cosh
cosine_embedding_loss cdist cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1
group_norm hinge_embedding_loss kl_div l1_loss layer_norm log log10 log_softmax log1p log2
margin_ranking_loss mse_loss multilabel_margin_loss multi_margin_loss nll_loss norm normalize pdist
poisson_nll_loss pow prod reciprocal rsqrt sinh smooth_l1_loss soft_margin_loss softmax softmin
softplus sum renorm tan triplet_margin_loss
"""
TO_FLOAT32 = frozenset(_NAMES.split())


class CudaAutocast(TorchFunctionMode):
    """The processor's autocast inside the block gives float32 where that of CUDA does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = args, kwargs or {}
        if getattr(func, "__name__", "") in TO_FLOAT32 and torch.is_autocast_enabled("cpu"):
            given = tree_map(_float32, given)
        return func(*given[0], **given[1])


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
