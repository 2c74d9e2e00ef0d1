"""Tests that need a CUDA device, and a subject on another device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

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
