"""What enters the linear maps of a model, and the gradients at what leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mansu.subjects.subject import Subject


@contextmanager
def watched(
    subject: Subject,
    names: Iterable[str],
    see: Callable[[str, Tensor], None] | None = None,
    see_gradient: Callable[[str, Tensor, Tensor], None] | None = None,
) -> Iterator[None]:
    """Watch some linear maps inside the block, at the cost of no weight's gradient.

    With ``see_gradient`` autograd's graph begins at the first of these maps that is run: layers
    before it are not differentiated.

    Args:
        names: of their weights.
        see: called with a name and the map's inputs ``[c, T, in]``, once a run.
        see_gradient: called with a name, the inputs and the gradients ``[c, T, out]``, once a
            backward pass.

    Use: ``with watched(subject, names, see_gradient=add): loss().backward()``.
    """
    handles = []

    def watch(name: str) -> None:
        def forward(module: Module, inputs: Any, output: Tensor) -> Tensor | None:
            entered = inputs[0].detach()
            if see is not None:
                see(name, entered)
            told = see_gradient
            if told is None or not torch.is_grad_enabled():
                return None
            if not output.requires_grad:  # the weights need no gradient: start a graph here
                output = output.detach().requires_grad_(True)
            output.register_hook(lambda gradient: told(name, entered, gradient.detach()))
            return output

        module = subject.plain.get_submodule(name.removesuffix(".weight"))
        handles.append(module.register_forward_hook(forward))

    with subject.lock:
        try:
            for name in names:
                watch(name)
            yield
        finally:
            for handle in handles:
                handle.remove()
