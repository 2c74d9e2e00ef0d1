"""A model's weights in bfloat16, made once: autocast would make them anew for each pack of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mansu.interrupts import put_back
from mansu.subjects.subject import Subject


class Narrow:
    """The quantised weights of a subject as it now is, in bfloat16.

    Under autocast products are those of the weights themselves, bit for bit.

    Attributes:
        weights: by name.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.weights = {
            name: subject.parameters[name].data.bfloat16() for name in subject.quantized_names
        }

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The subject has them inside the block, which no other may see: hold ``subject.lock``.

        A backward pass belongs into the block of its forward pass.
        """
        before: dict[str, Tensor] = {}

        def undo() -> None:
            for name, weight in before.items():
                self.subject.parameters[name].data = weight

        try:
            for name, weight in self.weights.items():
                before[name] = self.subject.parameters[name].data
                self.subject.parameters[name].data = weight
            yield
        finally:
            put_back(undo)

    def set(self, name: str, where: Tensor, values: Tensor) -> None:
        """Follow a weight that moved: ``values`` at ``where`` of it, flattened."""
        self.weights[name].view(-1)[where] = values.to(torch.bfloat16)
