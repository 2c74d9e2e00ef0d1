"""The figures of a run: what the claims and tables need of it, as JSON values."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mansu import subjects
from mansu.circuits.parameters import HELD, parameter_mask
from mansu.errors import BadInputError
from mansu.evidence.verdict import Check, Name, Property, kept_groups
from mansu.job.machine import PACKAGES
from mansu.job.runs import Run
from mansu.measure.scores import Measurement
from mansu.methods import ALL
from mansu.show.numbers import Unit

NO_EDIT = "no edit"

MADE = ("command", "commit", "created")
"""What figures that were added to a later report say of the one that they are from."""

OTHER = (
    "The earlier figures of {} are of another circuit or measure the unedited model otherwise: "
    "other versions or another processor made them. Run all of its methods, or leave out --add."
)

Figures = Mapping[str, Any]
"""What one method did on one task: see ``figures``."""


def _accuracies(measured: Measurement) -> dict[str, list[float]]:
    """Accuracy with its interval: the forget set, paraphrases, and every group to be kept."""
    found = {k: s for k, s in measured.splits.items() if k in ("forget", "paraphrase")}
    found |= {f"keep {k}": s for k, s in kept_groups(measured).items()}
    return {name: scores.interval.to_json() for name, scores in found.items()}


def _attacked(run: Run, method: str | None) -> dict[str, list[float]]:
    """Accuracy with its interval under each attack; of the unedited model without a method."""
    attacks = run.attacks(method)
    return {name: attacks.accuracy(name).to_json() for name in attacks.scores}


def _worst(found: Property, unit: Unit) -> list[float] | None:
    """The value with the smallest margin of what a property asks in this unit."""
    checks = [check for check in found.checks if check.unit == unit]
    return min(checks, key=lambda check: check.margin).value.to_json() if checks else None


def checks_of(figures: Figures, name: Name) -> list[Check]:
    """What a property of a method's recorded verdict asked; none of what was not measured."""
    return [Check.from_json(check) for check in figures.get("checks", {}).get(name, ())]


def figures(run: Run, method: str) -> Figures:
    """Everything that the tables and claims need of one edit (or ``no edit``) in one run."""
    if method == NO_EDIT:
        return {
            "full": _accuracies(run.base(nf4=False)),
            "nf4": _accuracies(run.base(nf4=True)),
            "attacks": _attacked(run, None) if run.has("base_attacks") else None,
        }
    history, survival = run.history(method), run.survival(method).quantized
    verdict, divergences = run.verdict(method), run.divergences(method)
    return {
        "full": _accuracies(run.measurement(method, nf4=False)),
        "nf4": _accuracies(run.measurement(method, nf4=True)),
        "status": {p.name: p.status for p in verdict.properties},
        "certain": {p.name: p.status in ("passed", "failed") for p in verdict.properties},
        "margin": {p.name: p.worst.margin if p.worst else None for p in verdict.properties},
        "checks": {p.name: [c.to_json() for c in p.checks] for p in verdict.properties},
        "gap": _worst(verdict.gap, "share"),
        "gap in nats": _worst(verdict.gap, "nats"),
        "cad": divergences.to_json(),
        "moved": history["moved"],
        "fraction": history["fraction"],
        "width over update": survival.width_over_update,
        "codes changed": survival.share,
        "seconds": history["seconds"],
        "peak memory": history.get("peak_memory"),
        "settings": history["settings"],
        "stopped": history["stopped"],
        "attacks": _attacked(run, method) if run.has("attacks", method) else None,
        "bound": asdict(run.bounds(method)) if run.has("bounds", method) else None,
        "formats": (
            {name: kept.share for name, kept in run.formats(method).items()}
            if run.has("formats", method)
            else None
        ),
        "strengths": run.strengths(method).to_json() if run.has("strengths", method) else None,
    }


@dataclass(frozen=True)
class Measured:
    """What was measured on one subject and task, over several run folders.

    Attributes:
        name: of both. circuit: the run of the circuit and the unedited model.
        edits: by method, the run of its edit and the edit's name there.
    """

    name: str
    circuit: Run
    edits: Mapping[str, tuple[Run, str]]


def results(measured: Sequence[Measured], command: str) -> dict[str, Any]:
    """The figures of every experiment with the manifest that repeats them, as JSON values."""
    return {
        "manifest": {
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: version(name) for name in PACKAGES},
        },
        "runs": [
            {
                "name": each.name,
                "subject": each.circuit.subject,
                "task": dict(each.circuit.about),
                "settings": asdict(each.circuit.settings),
                "circuit": _circuit(each.circuit),
                "methods": {
                    NO_EDIT: figures(each.circuit, NO_EDIT),
                    **{method: figures(*edit) for method, edit in each.edits.items()},
                },
            }
            for each in measured
        ],
    }


def added(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A report with the figures of an earlier one that it lacks, which say how they were made.

    Args:
        found, earlier: of ``results``; ``earlier`` may itself have been added to.

    Raises:
        BadInputError: the two do not say the same of an unedited model, which two machines, other
            versions or another task make, and the earlier one has methods that the later one
            lacks: what is measured from two such models cannot stand in one table.
    """
    made = {key: earlier["manifest"][key] for key in MADE}
    now, runs, order = {run["name"]: run for run in found["runs"]}, [], [NO_EDIT, *ALL]
    for old in earlier["runs"]:
        new = now.pop(old["name"], None)
        if new is not None and _unedited(new) != _unedited(old):
            if not old["methods"].keys() <= new["methods"].keys():
                raise BadInputError(OTHER.format(old["name"]))
            runs.append(new)  # nothing of the old one is left
            continue
        methods = {name: {"made": made, **figures} for name, figures in old["methods"].items()}
        methods |= new["methods"] if new else {}
        unedited = [run["methods"][NO_EDIT] for run in (new, old) if run]
        methods[NO_EDIT] = next((each for each in unedited if each["attacks"]), unedited[0])
        circuit = (new or old)["circuit"]
        runs.append(
            {
                **old,
                "circuit": circuit,
                "methods": {name: methods[name] for name in order if name in methods},
            }
        )
    return {"manifest": found["manifest"], "runs": [*runs, *now.values()]}


def _unedited(run: Mapping[str, Any]) -> list[Any]:
    """What of an experiment hangs on the unedited model alone."""
    unedited, circuit = run["methods"][NO_EDIT], run["circuit"]
    faithfulness = round(circuit["faithfulness"], 4)  # another processor's sums end otherwise
    which = circuit["edges"], circuit["mask"], faithfulness
    # Not their intervals, which are wider since those of few facts are.
    full, nf4 = ({name: value[0] for name, value in unedited[k].items()} for k in ("full", "nf4"))
    return [run["task"], run["settings"], which, full, nf4]


def _circuit(run: Run) -> dict[str, Any]:
    """The circuit, its mask, and how large that would be if it held ``HELD`` of the circuit."""
    circuit, mask = run.circuit(), run.mask()
    whole = parameter_mask(
        subjects.load(run.subject), circuit, run.attribution(), share=HELD, max_fraction=1.0
    )
    return {
        "edges": len(circuit),
        "of": circuit.layout.n_edges,
        "faithfulness": circuit.faithfulness,
        "interval": circuit.interval,
        "mask": mask.fraction,
        "mass": mask.mass,
        "whole mask": whole.fraction,
    }


def commit() -> str | None:
    """The commit of the code that runs, with ``+`` where files differ from it."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
