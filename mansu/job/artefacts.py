"""Every kind of file that a run holds: its name, how it is written and read, what makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mansu import tasks
from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.circuits.diff import Scores
from mansu.circuits.marks import Marks
from mansu.circuits.mask import Mask
from mansu.circuits.trust import Trust
from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.by_format import InFormat
from mansu.evidence.cad import Divergences, Scored
from mansu.evidence.relearning import Relearned
from mansu.evidence.review import Review
from mansu.evidence.strengths import Strengths
from mansu.evidence.verdict import Verdict
from mansu.files import (
    made_of,
    measured_on,
    read_json,
    refuse_changed,
    summed,
    typed,
    write_json,
)
from mansu.measure.scores import Measurement
from mansu.progress import Step
from mansu.quant.survival import Kept, NF4Report
from mansu.subjects.edit import Edit


@dataclass(frozen=True)
class Codec:
    """How a value is written to a path and read from it, each with what was measured.

    Attributes:
        write: (path, value, what was measured, by name). read: the value, and what was measured.
        shared: whoever reads the same file may be given the same value: it is immutable.
    """

    write: Callable[[Path, Any, Mapping[str, str]], None]
    read: Callable[[Path], tuple[Any, Mapping[str, str]]]
    shared: bool = False


def _same(value: Any) -> Any:
    return value


def _json(
    to_json: Callable[[Any], Any] = _same,
    from_json: Callable[[Any], Any] = _same,
    shared: bool = False,
) -> Codec:
    """A JSON object; what was measured stands among its keys, as "digest of …", and so does the
    digest that its values are held to."""

    def read(path: Path) -> tuple[Any, Mapping[str, str]]:
        found = _object(read_json(path))
        refuse_changed(found, {})
        of = {name: found.pop(name) for name in list(found) if name.startswith("digest of ")}
        return from_json(found), of

    def write(path: Path, value: Any, of: Mapping[str, str]) -> None:
        write_json(path, summed({**to_json(value), **of}))

    return Codec(write, read, shared)


def _value(cls: Any) -> Codec:
    """JSON of a class that has ``to_json`` and ``from_json``."""
    return _json(lambda value: value.to_json(), lambda value: typed(cls.from_json(value)), True)


def _named(cls: Any) -> Codec:
    """A class that gives its file a name of its own in a folder."""
    return Codec(
        lambda path, value, of: value.save(path.parent, of),
        lambda path: (cls.load(path.parent), measured_on(path)),
    )


def _whole(cls: Any) -> Codec:
    """A class that writes and reads a path."""
    return Codec(
        lambda path, value, of: value.save(path, of),
        lambda path: (cls.load(path), measured_on(path)),
    )


@dataclass(frozen=True)
class Artefact:
    """A kind of file that a run holds.

    Attributes:
        file: its name; ``{}`` stands for which of several.
        title: what it is, for people.
        made_by: the command that makes it.
        of_edit: there is one an edit, under ``edits/<name>/``.
    """

    file: str
    codec: Codec
    title: str
    made_by: str
    of_edit: bool = False


def _measured(value: Any) -> Measurement:
    found = typed(Measurement.from_json(value))
    for split in tasks.NEEDED:  # a run has rows of each
        _ = found.splits[split]
    return found


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no object")
    return value


def _timings(value: Any) -> dict[str, float]:
    return made_of(dict[str, float], value)


@dataclass(frozen=True)
class _History:
    """What ``history.json`` holds (``pipeline.unlearning``), for its types."""

    steps: list[Step]
    stopped: str
    settings: dict[str, Any]
    given: dict[str, Any]
    seconds: float
    peak_memory: float
    moved: int
    fraction: float


def _history(value: Any) -> dict[str, Any]:
    made_of(_History, value)
    return value


_MEASUREMENT = _json(lambda value: value.to_json(), _measured, True)
_FORMATS = _json(
    lambda kept: {name: asdict(each) for name, each in kept.items()},
    lambda value: {name: made_of(Kept, each) for name, each in value.items()},
)
_BY_FORMAT = _json(
    lambda found: {name: each.to_json() for name, each in found.items()},
    lambda value: {name: typed(InFormat.from_json(each)) for name, each in value.items()},
    True,
)
_BOUNDS = _json(asdict, lambda value: made_of(Bounds, value), True)

ARTEFACTS: Mapping[str, Artefact] = {
    "base": Artefact(
        "base.json", _MEASUREMENT, "measurement of the unedited model", "attribute --folder"
    ),
    "base_nf4": Artefact(
        "base-nf4.json",
        _MEASUREMENT,
        "measurement of the unedited model in NF4",
        "quantize",
    ),
    "attribution": Artefact(
        "attribution.safetensors", _named(Attribution), "attribution", "attribute --folder"
    ),
    "circuit": Artefact("circuit.safetensors", _named(Circuit), "circuit", "circuit"),
    "mask": Artefact("mask.safetensors", _named(Mask), "parameter mask", "circuit"),
    "trust": Artefact("trust.json", _value(Trust), "measurement of trust", "trust"),
    "marks": Artefact("marks.json", _value(Marks), "pins and notes on the circuit", "app"),
    "ablation": Artefact("ablation.safetensors", _whole(Scored), "ablated circuit", "verdict"),
    "suppressor": Artefact("suppressor-{}.safetensors", _whole(Scored), "suppressor", "verdict"),
    "reference": Artefact(
        "relearned-reference.json", _value(Relearned), "relearning of the reference", "verdict"
    ),
    "base_attacks": Artefact(
        "attacks-base.json", _value(Attacks), "attacks on the unedited model", "attack"
    ),
    "search": Artefact("search.json", _json(_same, _object), "search of settings", "sweep"),
    "scores": Artefact(
        "scores/{}.json", _json(_same, _object), "scores of a public set", "score --run"
    ),
    "edit_scores": Artefact(
        "scores/{}.json", _json(_same, _object), "scores of a public set", "score --run", True
    ),
    "timings": Artefact("timings.json", _json(_same, _timings), "timings", "run --folder"),
    "edit": Artefact("edit.safetensors", _whole(Edit), "edit", "unlearn", True),
    "history": Artefact("history.json", _json(_same, _history), "history", "unlearn", True),
    "full": Artefact("full.json", _MEASUREMENT, "measurement", "quantize", True),
    "nf4": Artefact("nf4.json", _MEASUREMENT, "measurement in NF4", "quantize", True),
    "survival": Artefact("survival.json", _value(NF4Report), "NF4 report", "quantize", True),
    "formats": Artefact("formats.json", _FORMATS, "survival by format", "quantize", True),
    "by_format": Artefact("by-format.json", _BY_FORMAT, "measurement by format", "formats", True),
    "bounds": Artefact("bound.json", _BOUNDS, "bounds on the retain loss", "quantize", True),
    "cad": Artefact("cad.json", _value(Divergences), "CAD", "verdict", True),
    "edges": Artefact("edges.safetensors", _whole(Scores), "edge scores", "verdict", True),
    "relearned": Artefact("relearned.json", _value(Relearned), "relearning", "verdict", True),
    "verdict": Artefact("verdict.json", _value(Verdict), "verdict", "verdict", True),
    "review": Artefact("review.json", _value(Review), "review", "dossier", True),
    "attacks": Artefact("attacks.json", _value(Attacks), "recovery attacks", "attack", True),
    "strengths": Artefact(
        "strengths.json", _value(Strengths), "measurement by strength", "strengths", True
    ),
}
