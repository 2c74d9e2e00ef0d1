"""A model's weights in bfloat16, made once: autocast would make them anew for each pack of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mansu.subjects.subject import Subject


class Narrow:
    """The quantised weights of a subject as it now is, in bfloat16.

    Under autocast products are those of the weights themselves, bit for bit: put them in their
    place with ``mansu.quant.swap.swapped``.

    Attributes:
        weights: by name.
    """

    def __init__(self, subject: Subject) -> None:
        self.weights = {
            name: subject.parameters[name].data.bfloat16() for name in subject.quantized_names
        }

    def set(self, name: str, where: Tensor, values: Tensor) -> None:
        """Follow a weight that moved: ``values`` at ``where`` of it, flattened."""
        self.weights[name].view(-1)[where] = values.to(torch.bfloat16)
