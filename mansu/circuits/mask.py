"""The parameters behind a circuit: head slices and neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mansu.files import load_values, reading, save_values, typed

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Mask:
    """The parameters behind a circuit: whole rows and columns of weight matrices.

    Attributes:
        rows, columns: parameter name → int64 indices along axis 0 and 1, sorted; an entry is in
            the mask when its row or its column is.
        shapes: parameter name → its shape.
        total: parameters of the model.
        mass: share of the circuit's attribution (|score| of head slices and neurons) covered.
        n_slices, n_neurons: head slices (of q, k, v, o) and MLP neurons chosen.
    """

    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    total: int
    mass: float
    n_slices: int
    n_neurons: int

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that have an entry in the mask."""
        return tuple(self.shapes)

    def dense(self, name: str) -> Tensor:
        """bool, the parameter's shape."""
        mask = torch.zeros(self.shapes[name], dtype=torch.bool)
        mask[self.rows.get(name, torch.empty(0, dtype=torch.long))] = True
        mask[:, self.columns.get(name, torch.empty(0, dtype=torch.long))] = True
        return mask

    def tensors(self) -> dict[str, Tensor]:
        """Parameter name → bool tensor of its shape."""
        return {name: self.dense(name) for name in self.names}

    @cached_property
    def size(self) -> int:
        """Parameters in the mask."""
        total = 0
        for name, (height, width) in self.shapes.items():
            r, c = len(self.rows.get(name, ())), len(self.columns.get(name, ()))
            total += r * width + c * height - r * c
        return total

    @property
    def fraction(self) -> float:
        """``size`` as a fraction of all parameters."""
        return self.size / self.total

    def save(self, folder: str | Path, of: Mapping[str, str] | None = None) -> None:
        """Write ``mask.safetensors`` into ``folder``; ``of``: as ``save_values`` has it."""
        tensors = {f"rows:{name}": index for name, index in self.rows.items()}
        tensors |= {f"columns:{name}": index for name, index in self.columns.items()}
        meta = {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}
        meta |= {name: getattr(self, name) for name in ("total", "mass", "n_slices", "n_neurons")}
        save_values(Path(folder) / "mask.safetensors", tensors, meta, of)

    @classmethod
    def load(cls, folder: str | Path) -> Mask:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        path = Path(folder) / "mask.safetensors"
        with reading(path):
            tensors, meta = load_values(path)
            shapes = {name: tuple(shape) for name, shape in meta.pop("shapes").items()}
            kinds = {
                kind: {
                    k.split(":", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}:")
                }
                for kind in ("rows", "columns")
            }
            found = typed(cls(shapes=shapes, **kinds, **meta))
            for axis, kind in enumerate(("rows", "columns")):
                for name, index in kinds[kind].items():
                    size = shapes[name][axis]
                    if index.ndim != 1 or index.dtype != torch.long:
                        raise ValueError(f"{kind} of {name} are no indices")
                    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                        raise ValueError(f"{kind} of {name} lie outside its shape")
            if found.total < 1:
                raise ValueError(f"total is {found.total}")
            return found
