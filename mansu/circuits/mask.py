"""The parameters behind a circuit: head slices and neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mansu.files import load_values, reading, save_values, typed

_OF_CANDIDATES = "candidates:"


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
        candidates: heads and neurons of a wider circuit, these among them, of which MANSU picks
            the weights that it moves; None: of the mask alone.
    """

    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    total: int
    mass: float
    n_slices: int
    n_neurons: int
    candidates: Mask | None = None

    @property
    def movable(self) -> Mask:
        """What MANSU may move: the candidates, or the mask where it has none."""
        return self if self.candidates is None else self.candidates

    def candidate_tensors(self) -> dict[str, Tensor] | None:
        """``tensors`` of the candidates, where it has some."""
        return None if self.candidates is None else self.candidates.tensors()

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
        tensors, meta = self._values()
        if self.candidates is not None:
            more, meta["candidates"] = self.candidates._values()
            tensors |= {f"{_OF_CANDIDATES}{name}": index for name, index in more.items()}
        save_values(Path(folder) / "mask.safetensors", tensors, meta, of)

    def _values(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"rows:{name}": index for name, index in self.rows.items()}
        tensors |= {f"columns:{name}": index for name, index in self.columns.items()}
        meta: dict[str, Any] = {"shapes": {n: list(shape) for n, shape in self.shapes.items()}}
        meta |= {name: getattr(self, name) for name in ("total", "mass", "n_slices", "n_neurons")}
        return tensors, meta

    @classmethod
    def load(cls, folder: str | Path) -> Mask:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        path = Path(folder) / "mask.safetensors"
        with reading(path):
            tensors, meta = load_values(path)
            more = meta.pop("candidates", None)
            own = {n: index for n, index in tensors.items() if not n.startswith(_OF_CANDIDATES)}
            found = cls._of(own, meta)
            if more is None:
                return found
            rest = {n.removeprefix(_OF_CANDIDATES): tensors[n] for n in tensors if n not in own}
            return replace(found, candidates=cls._of(rest, more))

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Mask:
        """What ``_values`` gave.

        Raises:
            ValueError: it is not that.
        """
        shapes = {name: (shape[0], shape[1]) for name, shape in meta["shapes"].items()}
        rest = {name: value for name, value in meta.items() if name != "shapes"}
        kinds = {
            kind: {k.split(":", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}:")}
            for kind in ("rows", "columns")
        }
        found = typed(cls(shapes=shapes, **kinds, **rest))
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
