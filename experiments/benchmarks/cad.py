"""AUROC of CAD and its rivals between erased and suppressed models.

::

    python -m experiments.benchmarks.cad runs/chemical-symbols runs/capitals …

Models are labelled by how they were made, not by what is measured on them. *Erased*: the circuit's
mask at several sizes set to zero, or its entries shuffled within each matrix. *Suppressed*:
closed-form edits of one MLP (the last layer's, the one before, the middle one) that cancel the
answers' logits (``mansu.evidence.controls.Suppression``), one for each erased model, at its forget
accuracy.
MANSU's edits, where the run has one, are said to erase, which is what CAD is to judge: a second
table counts them among the erased.
Each run needs its circuit (``mansu circuit``). Tasks already in the results file are kept, but for
what was measured on other facts than a task has today.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.figures import commit
from mansu import subjects, tasks
from mansu.circuits.parameters import parameter_mask
from mansu.evidence import cad, controls
from mansu.files import read_json, write_json
from mansu.job.runs import Run
from mansu.job.settings import default_fraction
from mansu.measure.scores import measure
from mansu.show.table import Table
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

RESULTS = Path(__file__).parents[1] / "results" / "cad-auroc.json"
SIZES = (0.5, 1.0, 4.0)  # of masks, times ``default_fraction``
STRENGTHS = (0.5, 1.0)  # of MANSU's edit


def shuffled(subject: Subject, mask: Mapping[str, Tensor], seed: int = 0) -> Edit:
    """The mask's entries permuted within each matrix: their size stays, their content goes."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, chosen in mask.items():
        where = chosen.flatten().nonzero().flatten()
        order = torch.randperm(len(where), generator=generator)
        changes[name] = (where, subject.parameters[name].detach().flatten()[where[order]])
    return Edit(changes, "shuffled")


def erased(run: Run, subject: Subject) -> dict[str, Edit]:
    circuit, attribution = run.circuit(), run.attribution()
    unit = default_fraction(subject)
    masks = [
        parameter_mask(subject, circuit, attribution, share=1.0, max_fraction=size * unit)
        for size in SIZES
    ]
    family = {}
    for mask in {mask.size: mask for mask in masks}.values():  # a circuit may be smaller
        family[f"zero {mask.fraction:.2%}"] = controls.ablation(subject, mask.tensors())
        family[f"shuffled {mask.fraction:.2%}"] = shuffled(subject, mask.tensors())
    return family


def measured(run: Run, n_pairs: int, steps: int) -> dict[str, Any]:
    """Distances of every model of both families from the unedited one."""
    start = time.perf_counter()
    subject, task, seed = subjects.load(run.subject), run.task(), run.settings.seed
    pairs = tasks.pairs(task, subject, n=n_pairs, seed=seed)
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in ("forget", "retain"))
    circuit = run.circuit().edge_mask
    signals = cad.Signals(subject, pairs, steps=steps)
    before = signals.base.sum(0)
    models: list[dict[str, Any]] = []

    def add(name: str, label: str, edit: Edit, accuracy: float | None = None) -> None:
        with edit.applied(subject):
            accuracy = measure(subject, forget).accuracy if accuracy is None else accuracy
        scored = signals.of(edit)
        plain, signal = scored.plain.sum(0), scored.signal.sum(0)
        found = cad.distances(before, plain, circuit)
        kept = cad.distances(before, signal, circuit)
        values = {f"plain {k}": v for k, v in found.items()}
        values |= {f"signal {k}": v for k, v in kept.items()}
        models.append({"name": name, "label": label, "accuracy": accuracy, "distances": values})
        print(
            f"{time.perf_counter() - start:6.0f} s  {run.name}: {label} by {name}, forget accuracy "
            f"{accuracy:.1%}, CAD {found['JS']:.3f}, signal CAD {kept['JS on the circuit']:.3f}",
            flush=True,
        )

    for name, edit in erased(run, subject).items():
        add(name, "erased", edit)
    last = subject.config.num_hidden_layers - 1
    targets = [model["accuracy"] for model in models]
    layers = (last, last - 1, last // 2)
    for i, layer in enumerate(layers):
        suppression = controls.Suppression(subject, forget, retain, layer=layer)
        for target in targets[i :: len(layers)]:
            edit = suppression.reaching(target)
            if not controls.hides(edit.meta["accuracy"], target):
                continue  # no control: it changes less than nearly every edit
            name = f"layer {layer}, strength {edit.meta['strength']:.3g}"
            add(name, "suppressed", edit, edit.meta["accuracy"])
    if "mansu" in run.edits():
        for strength in STRENGTHS:
            add(f"strength {strength:g}", "mansu", run.edit("mansu").scaled(subject, strength))
    seconds = round(time.perf_counter() - start, 1)
    return {
        "task": task.name,
        "digest": task.digest,
        "commit": commit(),
        "subject": run.subject,
        "pairs": len(pairs),
        "steps": steps,
        "seconds": seconds,
        "models": models,
    }


def separation(
    models: Sequence[Mapping[str, Any]], name: str, positive: Sequence[str]
) -> dict[str, Any]:
    """AUROC with its interval over models, and the gap: the lowest positive minus the highest
    suppressed, over the range of both."""
    groups = [
        np.array([m["distances"][name] for m in models if m["label"] in labels])
        for labels in (positive, ["suppressed"])
    ]
    span = np.ptp(np.concatenate(groups))
    gap = (groups[0].min() - groups[1].max()) / span if span else 0.0
    found = cad.auroc(*groups)
    return {"auroc": found.value, "interval": [found.low, found.high], "gap": float(gap)}


def separations(
    tasks: Mapping[str, Mapping[str, Any]], positive: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Distance → task → ``separation``, the largest mean AUROC first; all tasks pooled too."""
    columns = {name: task["models"] for name, task in tasks.items()}
    columns["all tasks"] = [m for models in columns.values() for m in models]
    found = {
        name: {task: separation(models, name, positive) for task, models in columns.items()}
        for name in columns["all tasks"][0]["distances"]
    }
    order = sorted(
        found, key=lambda n: [-sum(f[k] for f in found[n].values()) for k in ("auroc", "gap")]
    )
    return {name: found[name] for name in order}


def report(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [
            name,
            *(
                f"{f['auroc']:.2f} [{f['interval'][0]:.2f}, {f['interval'][1]:.2f}] "
                f"({f['gap']:+.2f})"
                for f in by_task.values()
            ),
        ]
        for name, by_task in found.items()
    ]
    return Table(["AUROC [95 %] (gap)", *next(iter(found.values()))], rows).markdown()


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was measured earlier what is of the facts that a shipped task has today."""
    today = {name: tasks.load(name).digest for name in tasks.shipped()}
    return {key: one for key, one in found.items() if today.get(one["task"]) == one["digest"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = kept(read_json(arguments.out)["tasks"]) if arguments.out.is_file() else {}
    runs: list[Run | None] = [Run.open(path) for path in arguments.runs]
    for run in runs or [None]:
        if run is not None:
            result = measured(run, arguments.pairs, arguments.steps)
            found[f"{result['task']} ({result['subject']})"] = result
        table_of = {
            "erased": separations(found, ["erased"]),
            "erased or mansu": separations(found, ["erased", "mansu"]),
        }
        write_json(arguments.out, {"tasks": found, "separation": table_of})
    for name, rows in table_of.items():
        print(f"\n{name} against suppressed\n\n{report(rows)}")


if __name__ == "__main__":
    main()
