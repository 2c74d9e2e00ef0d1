"""The main job, step by step: attribute → circuit → unlearn → quantize → verdict.

Each step reads what earlier ones saved in the run folder and saves its own result; a step whose
result is there is not done again, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import floor
from pathlib import Path
from typing import Any

from torch import Tensor

from mansu import methods, quant, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.mask import parameter_mask
from mansu.circuits.metric import MEMORY
from mansu.circuits.patching import Patched
from mansu.circuits.search import minimal_circuit
from mansu.circuits.trust import ablate, criteria, stability
from mansu.errors import MansuError
from mansu.evidence import attacks, cad, controls
from mansu.evidence.bounds import bounds
from mansu.evidence.verdict import Thresholds, Verdict, judge
from mansu.files import load_values, save_values, write_json
from mansu.job.runs import Run
from mansu.measure.scores import EVALUATED, Measurement, Scores, measure, measure_task
from mansu.measure.statistics import Interval, bootstrap
from mansu.methods import Problem, Progress
from mansu.progress import OnStep
from mansu.report.sentences import sentence
from mansu.subjects.subject import Subject

DEFAULTS: Mapping[str, Any] = {
    "pairs": 32,
    "steps": 5,
    "tau": 0.85,
    "max_fraction": None,
    "seed": 0,
    "memory": MEMORY >> 20,
}
"""Settings of attribution and circuit: pairs and steps (K) of EAP-IG, the faithfulness τ, the
mask's largest share of all parameters (None: ``default_fraction``), the seed of everything, MiB
that attribution and circuit may hold beside the weights."""


def memory_of(run: Run) -> int:
    """The run's memory budget, bytes; the default in runs made before it was a setting."""
    return int(run.settings.get("memory", DEFAULTS["memory"])) << 20


SUPPRESSED = 0.05  # forget accuracies of the suppressors that CAD is compared with are this apart


STRENGTHS = (0.33, 0.67)
"""Parts of an edit that are measured beside the whole of it."""


SPARSE = 0.01
"""Edits of a smaller share of the parameters are thinned, not scaled, to lower their strength."""


def default_fraction(subject: Subject) -> float:
    """Half a percent of the parameters; a tenth in a toy, where one head is already a percent."""
    return 0.1 if subject.is_toy else 0.005


@contextmanager
def _timed(run: Run, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    run.add_timing(step, time.perf_counter() - start)


def _counted(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(done / max(total, 1), f"{what} ({done} of {total})")


def _part(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part that takes from ``start`` to ``end`` of the whole."""
    return lambda share, message: progress(start + share * (end - start), message)


def _told(progress: Progress) -> OnStep:
    """Records told as a share and a sentence."""
    return lambda step: progress(step.share, sentence(step))


def attribution_pairs(run: Run, subject: Subject) -> tasks.Pairs:
    """The clean–corrupt pairs of the run's forget set."""
    return tasks.pairs(run.task(), subject, n=run.settings["pairs"], seed=run.settings["seed"])


def notes(run: Run, subject: Subject) -> tuple[str, ...]:
    """What of the task cannot be used with this subject, by line, a sentence each."""
    task, seed = run.task(), run.settings["seed"]
    found = [
        n for split in EVALUATED for n in tasks.examples(task, subject, split, seed=seed).notes
    ]
    return tuple(dict.fromkeys([*found, *attribution_pairs(run, subject).notes]))


def _refuse_unknown(subject: Subject, base: Measurement) -> None:
    """A model at chance has nothing to forget: no verdict on it would mean anything."""
    chance = 1 / (1 + tasks.N_DISTRACTORS)
    forget = base.splits["forget"]
    found = bootstrap(forget.correct, clusters=forget.clusters)
    if found.low <= chance:
        raise MansuError(
            f"{subject.name!r} does not know this task: its 4-way accuracy on the forget set is "
            f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}] and chance is {chance:.0%}, so "
            "there is nothing to forget. Give facts that it knows, or ask for them in another "
            "form (multiple choice: mansu task --form cloze --shots 1)."
        )


def attribution_step(run: Run, subject: Subject, progress: Progress) -> None:
    """Measure the unedited model and attribute the forget task to its edges.

    Raises:
        MansuError: the model does not know the forget set: it is at chance.
    """
    if not run.has("base.json"):
        with _timed(run, "measure base"):
            progress(0.0, "measuring the unedited model")
            base = measure_task(subject, run.task(), seed=run.settings["seed"])
            run.save_base(base, nf4=False)
    if not run.has("attribution.safetensors"):
        _refuse_unknown(subject, run.base(nf4=False))
        with _timed(run, "attribution"):
            pairs = attribution_pairs(run, subject)
            result = attribute(
                subject,
                pairs,
                steps=run.settings["steps"],
                memory=memory_of(run),
                progress=_counted(progress, "attribution"),
            )
            result.save(run.path)


def circuit_step(run: Run, subject: Subject, progress: Progress) -> None:
    """Find the minimal circuit and its parameter mask."""
    attribution_step(run, subject, _part(progress, 0.0, 0.3))
    progress = _part(progress, 0.3, 1.0)
    if run.has("mask.safetensors"):
        return
    with _timed(run, "circuit"):
        pairs, attribution = attribution_pairs(run, subject), run.attribution()
        circuit = minimal_circuit(
            subject,
            pairs,
            attribution,
            tau=run.settings["tau"],
            memory=memory_of(run),
            progress=_counted(progress, "circuit"),
        )
        circuit.save(run.path)
        mask = parameter_mask(
            subject,
            circuit,
            attribution,
            max_fraction=run.settings["max_fraction"] or default_fraction(subject),
        )
        mask.save(run.path)


def trust_step(run: Run, subject: Subject, progress: Progress) -> None:
    """Measure how far the circuit can be trusted, into ``trust.json``.

    Stability over bootstrap resamples of the pairs, faithfulness on forget pairs that the circuit
    was not chosen on (none: null), completeness and minimality, and the metric with the mask at
    zero beside random masks of its size.
    """
    if run.has("trust.json"):
        return
    pairs, circuit = attribution_pairs(run, subject), run.circuit()
    with _timed(run, "trust"):
        progress(0.0, "trust: stability over resamples of the pairs")
        stable = stability(
            subject, pairs, len(circuit), steps=run.settings["steps"], memory=memory_of(run)
        )
        progress(0.3, "trust: faithfulness on other pairs")
        every = tasks.pairs(run.task(), subject)
        others = [i for i, row in enumerate(every.rows) if row not in pairs.rows][: len(pairs)]
        held_out = None
        if others:
            patched = Patched(subject, every.select(others), circuit.metric, memory_of(run))
            values = patched.values(circuit.edge_mask[None])
            low, high = patched.intervals(values)[0].tolist()
            held_out = [float(patched.faithfulness(values)), low, high]
        progress(0.4, "trust: completeness and minimality")
        tested = criteria(subject, pairs, circuit, memory=memory_of(run))
        progress(0.9, "trust: the mask at zero")
        effect = ablate(subject, pairs, circuit, run.mask())
        trust = {
            "overlap": [stable.overlap, *stable.interval],
            "always": float((stable.frequency > 0.95).float().mean()),
            "held_out_faithfulness": held_out,
            "held_out_pairs": len(others),
            "incompleteness": tested.incompleteness,
            "minimality": dict(zip(tested.nodes, tested.minimality.tolist(), strict=True)),
            "metric": effect.whole,
            "metric_masked": effect.masked,
            "metric_random_masks": effect.random.tolist(),
        }
        write_json(run.path / "trust.json", trust)


def reset_peak_memory() -> None:
    """Let the process's peak count from here, without what was freed before (Linux and glibc)."""
    with suppress(OSError, AttributeError):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def unlearn_step(
    run: Run,
    subject: Subject,
    method: str,
    progress: Progress,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Run a method and save its edit and history."""
    unlearn = methods.named(method)
    unlearn.configure(settings or {})  # refused before any work
    run.mask()
    if run.has("edits", method, "edit.safetensors"):
        return
    with _timed(run, f"unlearn {method}"):
        start = time.perf_counter()
        reset_peak_memory()
        task, seed = run.task(), run.settings["seed"]
        problem = Problem(
            subject=subject,
            task=task,
            forget=tasks.examples(task, subject, "forget", seed=seed),
            retain=tasks.examples(task, subject, "retain", seed=seed),
            text=tasks.text(task, subject),
            mask=run.mask().tensors(),
            seed=seed,
            on_step=_told(progress),
        )
        outcome = unlearn(problem, **(settings or {}))
        history = {
            "steps": [step.to_json() for step in outcome.history],
            "stopped": outcome.stopped,
            "settings": dict(outcome.settings),
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "moved": outcome.edit.n_moved,
            "fraction": outcome.edit.fraction(subject),
        }
        write_json(run.edit_folder(method) / "history.json", history)
        outcome.edit.save(run.edit_folder(method) / "edit.safetensors")


BOUND_FACTS, BOUND_TEXTS = 48, 16
"""At most so many retain examples, evenly taken, for the bounds: a dense edit costs most."""


def bound_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Theorem 1's bounds on the retain loss and its measured change, into ``bound.json``.

    Where the subject's retain geometry cannot be measured (GPT-2) there is no such file, and the
    progress says why.
    """
    if run.has("edits", method, "bound.json"):
        return
    edit, mask = run.edit(method), run.mask().tensors()
    task, seed = run.task(), run.settings["seed"]
    with _timed(run, f"bound {method}"):
        progress(0.0, "measuring the bounds on the retain loss")
        retain = tasks.examples(task, subject, "retain", seed=seed)
        retain = retain.select(_evenly(len(retain), BOUND_FACTS))
        tokens, length = tasks.text(task, subject)
        some = _evenly(len(tokens), BOUND_TEXTS)
        try:
            found = bounds(subject, edit, retain, (tokens[some], length[some]), mask)
        except MansuError as error:
            progress(1.0, str(error))
            return
        write_json(run.edit_folder(method) / "bound.json", dataclasses.asdict(found))


def _evenly(n: int, most: int) -> list[int]:
    """At most ``most`` of ``range(n)``, evenly spaced."""
    most = min(n, most)
    return [i * n // most for i in range(most)]


def quantize_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Measure the edit in full precision and in NF4, and what NF4 keeps of its updates."""
    edit, task, seed = run.edit(method), run.task(), run.settings["seed"]
    folder = run.edit_folder(method)
    if not run.has("base-nf4.json"):
        with _timed(run, "measure base in NF4"), quant.quantized(subject):
            progress(0.0, "measuring the unedited model in NF4")
            run.save_base(measure_task(subject, task, seed=seed), nf4=True)
    if not run.has("edits", method, "survival.json"):
        with _timed(run, f"quantize {method}"):
            with edit.applied(subject):
                progress(0.2, "measuring the edited model in full precision")
                write_json(folder / "full.json", measure_task(subject, task, seed=seed).to_json())
                progress(0.4, "measuring the edited model in NF4")
                with quant.quantized(subject):
                    now = measure_task(subject, task, seed=seed)
                    write_json(folder / "nf4.json", now.to_json())
            progress(0.6, "comparing each update with its bin")
            quant.report(subject, edit).save(folder / "survival.json")


def formats_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Count which of the edit's moves change their code in each format, into ``formats.json``."""
    if run.has("edits", method, "formats.json"):
        return
    with _timed(run, f"formats {method}"):
        progress(0.0, "comparing each update with the bins of the other formats")
        found = quant.survival_by_format(subject, run.edit(method))
        kept = {
            str(f): dataclasses.asdict(quant.Kept.of(survival)) for f, survival in found.items()
        }
        write_json(run.edit_folder(method) / "formats.json", kept)


def survival_steps(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Everything about what the edit does to the model and what low-bit formats keep of it."""
    quantize_step(run, subject, method, _part(progress, 0.0, 0.5))
    formats_step(run, subject, method, _part(progress, 0.5, 0.7))
    bound_step(run, subject, method, _part(progress, 0.7, 1.0))


def cad_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Measure CAD of the edit, in full precision and NF4, and of its controls.

    What does not depend on the edit stays in the run folder for the next method: the circuit
    ablated (``base-scores.safetensors``) and suppressors by forget accuracy. The suppressor's is
    the edit's, rounded down to a multiple of ``SUPPRESSED``.
    """
    if run.has("edits", method, "cad.json"):
        return
    edit = run.edit(method)
    pairs = attribution_pairs(run, subject)
    stage = iter(range(5))

    def reporting(what: str) -> Callable[[int, int], None]:
        i = next(stage)
        return _counted(_part(progress, i / 5, (i + 1) / 5), f"CAD: attribution of {what}")

    with _timed(run, f"CAD {method}"):
        signals = cad.Signals(
            subject,
            pairs,
            steps=run.settings["steps"],
            progress=reporting("the unedited model"),
        )
        base = signals.base
        with edit.applied(subject):
            edited, signal = signals.both(reporting("the edited model"))
            with quant.quantized(subject):
                edited_nf4, signal_nf4 = signals.both(reporting("the edited model in NF4"))

        path = run.path / "base-scores.safetensors"
        if not path.is_file():
            with controls.ablation(subject, run.mask().tensors()).applied(subject):
                ablated, signal_ablated = signals.both(reporting("the ablated circuit"))
            save_values(path, {"base": base, "ablation": ablated, "signal": signal_ablated}, {})
        stored, _ = load_values(path)

        accuracy = run.measurement(method, nf4=False).splits["forget"].accuracy
        percent = 100 * SUPPRESSED * floor(accuracy / SUPPRESSED + 1e-6)
        path = run.path / f"suppressor-{percent:.0f}.safetensors"
        if not path.is_file():
            forget, retain = (
                tasks.examples(run.task(), subject, split, seed=run.settings["seed"])
                for split in ("forget", "retain")
            )
            suppressor = controls.suppressor(subject, forget, retain, accuracy=percent / 100)
            with suppressor.applied(subject):
                suppressed, hidden = signals.both(reporting("the suppressor"))
            save_values(path, {"scores": suppressed, "signal": hidden}, dict(suppressor.meta))
        suppressed, about = load_values(path)

        circuit = run.circuit().edge_mask

        def on_circuit(scores: Tensor) -> Interval:
            return cad.cad(base[:, circuit], scores[:, circuit])

        rank, top = cad.overlap(base.sum(0), edited.sum(0))
        result = cad.Divergences(
            edited=cad.cad(base, edited),
            edited_nf4=cad.cad(base, edited_nf4),
            noise_floor=cad.noise_floor(base),
            suppressor=cad.cad(base, suppressed["scores"]),
            ablation=cad.cad(base, stored["ablation"]),
            signal=on_circuit(signal),
            signal_nf4=on_circuit(signal_nf4),
            signal_suppressor=on_circuit(suppressed["signal"]),
            signal_ablation=on_circuit(stored["signal"]),
            suppressor_accuracy=about["accuracy"],
            rank_correlation=rank,
            top_overlap=top,
        )
        write_json(run.edit_folder(method) / "cad.json", result.to_json())


def attack_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Run the recovery attacks on an edit, and once a run on the unedited model."""
    edit, task, seed = run.edit(method), run.task(), run.settings["seed"]
    if not run.has("attacks-base.json"):
        rephrased = run.base(nf4=False).splits.get("paraphrase")
        with _timed(run, "attack base"):
            half = _part(progress, 0.0, 0.5)
            found = attacks.attack(
                subject, task, paraphrase=rephrased, seed=seed, on_step=_told(half)
            )
            write_json(run.path / "attacks-base.json", found.to_json())
        progress = _part(progress, 0.5, 1.0)
    if run.has("edits", method, "attacks.json"):
        return
    rephrased = run.measurement(method, nf4=False).splits.get("paraphrase")
    with _timed(run, f"attack {method}"), edit.applied(subject):
        found = attacks.attack(
            subject, task, paraphrase=rephrased, seed=seed, on_step=_told(progress)
        )
        write_json(run.edit_folder(method) / "attacks.json", found.to_json())


def strengths_step(run: Run, subject: Subject, method: str, progress: Progress) -> None:
    """Measure the edit at parts of its strength, into ``strengths.json``.

    A point has the ``strength``, ``forgetting`` (fall of forget accuracy in full precision),
    ``permanence`` (the answer's mean log-probability in full precision minus in NF4, nats),
    ``retain_fall`` (of retain accuracy, the larger of full precision's and NF4's, each against the
    unedited model in the same format), and the forget accuracies.

    An edit of nearly every weight is scaled. A sparse one is thinned instead: its weights sit at
    the centres of NF4 codes, and scaled they would not.
    """
    if run.has("edits", method, "strengths.json"):
        return
    edit, task, seed = run.edit(method), run.task(), run.settings["seed"]
    rows = {split: tasks.examples(task, subject, split, seed=seed) for split in tasks.NEEDED}
    thin = edit.fraction(subject) < SPARSE
    points = []
    with _timed(run, f"strengths {method}"):
        for i, strength in enumerate(STRENGTHS):
            progress(i / len(STRENGTHS), f"measuring {strength:.0%} of the edit")
            part = edit.thinned(strength, seed) if thin else edit.scaled(subject, strength)
            with part.applied(subject):
                full = {split: measure(subject, r) for split, r in rows.items()}
                with quant.quantized(subject):
                    quantised = {split: measure(subject, r) for split, r in rows.items()}
            points.append(_point(run, strength, full, quantised))
        whole = (run.measurement(method, nf4=nf4).splits for nf4 in (False, True))
        points.append(_point(run, 1.0, *whole))
        strengths = {"thinned": thin, "points": points}
        write_json(run.edit_folder(method) / "strengths.json", strengths)


def _point(
    run: Run, strength: float, full: Mapping[str, Scores], quantised: Mapping[str, Scores]
) -> dict[str, float]:
    before, before_nf4 = (run.base(nf4=nf4).splits for nf4 in (False, True))
    nats = [float(m["forget"].log_probability.mean()) for m in (full, quantised)]
    return {
        "strength": strength,
        "forgetting": before["forget"].accuracy - full["forget"].accuracy,
        "permanence": nats[0] - nats[1],
        "retain_fall": max(
            before["retain"].accuracy - full["retain"].accuracy,
            before_nf4["retain"].accuracy - quantised["retain"].accuracy,
        ),
        "forget": full["forget"].accuracy,
        "forget_nf4": quantised["forget"].accuracy,
    }


def verdict_step(run: Run, method: str) -> Verdict:
    """Judge what was measured; what was not is unknown."""
    task = run.manifest["task"]
    verdict = judge(
        base=run.base(nf4=False),
        edited=run.measurement(method, nf4=False),
        base_nf4=run.base(nf4=True) if run.has("base-nf4.json") else None,
        edited_nf4=(
            run.measurement(method, nf4=True) if run.has("edits", method, "nf4.json") else None
        ),
        divergences=run.divergences(method) if run.has("edits", method, "cad.json") else None,
        thresholds=Thresholds(task["margin"], task["tolerance"]),
    )
    write_json(run.edit_folder(method) / "verdict.json", verdict.to_json())
    return verdict


def whole_job(
    run: Run,
    subject: Subject,
    method: str,
    progress: Progress,
    settings: Mapping[str, Any] | None = None,
) -> Verdict:
    """Everything, from the task to the verdict on one method."""

    circuit_step(run, subject, _part(progress, 0.0, 0.2))
    unlearn_step(run, subject, method, _part(progress, 0.2, 0.65), settings)
    survival_steps(run, subject, method, _part(progress, 0.65, 0.75))
    cad_step(run, subject, method, _part(progress, 0.75, 1.0))
    return verdict_step(run, method)
