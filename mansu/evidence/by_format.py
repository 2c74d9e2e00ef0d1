"""What comes back in formats other than NF4: those of laptops and servers, each measured alike.

The verdict is about NF4; its gap property names the worst of these beside it
(``mansu.evidence.verdict.judge``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mansu import quant
from mansu.files import made_of
from mansu.measure.scores import Measurement, measure_sets
from mansu.progress import OnStep, Step, silent
from mansu.quant import fitted
from mansu.quant.survival import Kept
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples


@dataclass(frozen=True)
class InFormat:
    """An edited model in one format.

    Attributes:
        measured: the forget rows and the rephrasings.
        kept: how many moved weights of the linear maps change their code; None of HQQ, whose codes
            are not read.
    """

    measured: Measurement
    kept: Kept | None

    def to_json(self) -> dict[str, Any]:
        kept = None if self.kept is None else asdict(self.kept)
        return {"measured": self.measured.to_json(), "kept": kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InFormat:
        """Read what ``to_json`` made; raises as ``Measurement.from_json`` does."""
        measured = Measurement.from_json(value["measured"])
        _ = measured.splits["forget"]
        kept = value["kept"]
        return cls(measured, None if kept is None else made_of(Kept, kept))


def others() -> tuple[quant.Format, ...]:
    """Every format but the verdict's own; HQQ where its package is installed."""
    fitting = (quant.HQQ,) if fitted.installed() else ()
    return (*(f for f in quant.FORMATS if f != quant.NF4), *quant.GGUF, *fitting)


def by_format(
    subject: Subject,
    edit: Edit,
    rows: Mapping[str, Examples],
    formats: Sequence[quant.Format],
    on_step: OnStep = silent,
) -> dict[str, InFormat]:
    """Measure an edited model in each format.

    Args:
        rows: forget rows, and rephrasings where there are some, by split.

    Returns:
        By the format's name.

    Raises:
        BadInputError: a format cannot store this model, or its library is not installed.
        MansuError: the edit does not fit the subject.
    """
    counted = [format for format in formats if format != quant.HQQ]
    kept = quant.kept_by_format(subject, edit, counted)
    found = {}
    with edit.applied(subject):
        for i, format in enumerate(formats):
            on_step(Step("by_format", i, len(formats), part=f"the edited model in {format}"))
            with quant.quantized(subject, format=format):
                scores = measure_sets(subject, list(rows.values()))
            measured = Measurement(dict(zip(rows, scores, strict=True)), None)
            found[str(format)] = InFormat(measured, kept.get(format))
    return found
