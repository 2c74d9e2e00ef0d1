"""The paper's claims (arXiv 2605.15138), held against what is measured here.

``python -m experiments.reproduce --subject tiny`` does it in a minute or two.

Every method and every ablation runs on several tasks and two subjects, each task in a run folder
that goes on where it stopped. The folders give the figures, the figures the claims, and both the
tables of the README: nothing in them is written by hand.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.search import search
from mansu import methods, subjects, tasks
from mansu.errors import BadInputError, MansuError
from mansu.evidence.strengths import Point, Strengths
from mansu.evidence.verdict import ABOUT, Name, kept_groups
from mansu.files import read_json, replacing, write_json
from mansu.job import pipeline
from mansu.job.pipeline import perform
from mansu.job.runs import PACKAGES, Run
from mansu.job.session import Session
from mansu.measure.scores import Measurement, Scores
from mansu.measure.statistics import bootstrap
from mansu.progress import OnStep, Step, silent
from mansu.report.markdown import table
from mansu.report.sentences import sentence

RATIOS = (47.0, 828.0)
"""The paper's median bin width ÷ update of gradient unlearning."""


RECOVERY = 0.05
"""The paper's largest recovery of forget accuracy after NF4."""


FEW = 0.01
"""Share of codes that change, up to which nearly every weight keeps its own."""


CIRCUIT = 0.01
"""The paper's circuit is a fraction of a percent of the parameters; at 1 % it would not be."""


REPRODUCED, NOT_REPRODUCED, UNTESTED = "reproduced", "not reproduced", "cannot be tested here"


NO_EDIT = "no edit"


CONTRAST = ("mansu", "graddiff", "npo")
"""Attacked on the further tasks, too: MANSU and the two strongest baselines."""


IN_DETAIL = ("mansu", "graddiff")
"""Those whose updates are also held against other formats, and against Theorem 1's bounds."""


Figures = Mapping[str, Any]
"""What one method did on one task: see ``figures``."""


@dataclass(frozen=True)
class Experiment:
    """One subject and one task.

    Attributes:
        attacked: the methods that are also attacked, and measured at parts of their strength.
        methods: what runs on it, MANSU first: the random control makes as many moves.
        rates: multiples of each baseline's published learning rate that the search tries first;
            none where the methods' own defaults already are the search's result.
    """

    subject: str
    task: str
    attacked: tuple[str, ...] = methods.NAMES
    methods: tuple[str, ...] = methods.ALL
    rates: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}-{self.subject}"


EXPERIMENTS = (
    Experiment(subjects.TINY, "tiny-colours", rates=(50.0, 100.0, 200.0)),
    Experiment(subjects.DEFAULT, "chemical-symbols"),
    Experiment(subjects.DEFAULT, "capitals", attacked=CONTRAST),
    Experiment(subjects.DEFAULT, "languages", attacked=CONTRAST),
)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what we find.

    Attributes:
        claim: what the paper says. ours: our figures, a sentence, with intervals where there are.
        status: ``reproduced``, ``not reproduced`` or ``cannot be tested here``.
    """

    claim: str
    ours: str
    status: str


def measure(
    folder: Path,
    experiments: Sequence[Experiment],
    on_step: OnStep = silent,
    only: Sequence[str] = methods.ALL,
) -> list[Run]:
    """Do what is not yet done of every experiment, one run folder each in ``folder``.

    Args:
        only: of each experiment's methods, those to run.
    """
    runs = []
    for experiment in experiments:
        path = folder / experiment.name
        subject = subjects.load(experiment.subject)
        if Run.is_at(path):
            run = Run.open(path)
        else:
            task = tasks.load(experiment.task)
            run = Run.create(subject, task, path=path, asked=experiment.methods)
        for name in experiment.methods:
            if name not in only:
                continue
            # A session a method, so that what one leaves is not in the next one's peak of memory.
            session = Session(run, subject)
            perform(session, pipeline.CIRCUIT, on_step=on_step)
            stages = [pipeline.unlearning(name, _settings(experiment, session, name, on_step))]
            if name in IN_DETAIL:
                stages += pipeline.MEASURE
            stages += [pipeline.BASE_NF4, pipeline.QUANTIZE, *pipeline.JUDGE]
            if name in experiment.attacked:
                stages += [*pipeline.RECOVERY, pipeline.STRENGTHS]
            perform(session, stages, name, on_step)
        runs.append(run)
    return runs


def _settings(
    experiment: Experiment, session: Session, name: str, on_step: OnStep
) -> dict[str, Any]:
    run = session.run
    if name == "random_moves":
        return {"moves": run.edit("mansu").n_moved}
    if name in methods.ABLATIONS or name == "mansu" or not experiment.rates:
        return {}
    if not run.has("search", part=name):
        rates = experiment.rates
        found = search(session.subject, session.task, name, rates=rates, on_step=on_step)
        run.save({"search": found}, part=name)
    best = run.read("search", part=name)["best"]
    return {"learning_rate": best["learning_rate"], "steps": best["steps"]}


def _accuracy(scores: Scores) -> list[float]:
    return bootstrap(scores.correct, clusters=scores.clusters).to_json()


def _accuracies(measured: Measurement) -> dict[str, list[float]]:
    """Accuracy with its interval: the forget set, paraphrases, and every group to be kept."""
    found = {k: _accuracy(s) for k, s in measured.splits.items() if k in ("forget", "paraphrase")}
    return found | {f"keep {k}": _accuracy(s) for k, s in kept_groups(measured).items()}


def _attacked(run: Run, method: str | None) -> dict[str, list[float]]:
    """Accuracy with its interval under each attack; of the unedited model without a method."""
    attacks = run.attacks(method)
    return {name: attacks.accuracy(name).to_json() for name in attacks.scores}


def figures(run: Run, method: str) -> Figures:
    """Everything that the tables and claims need of one method (or ``no edit``) in one run."""
    if method == NO_EDIT:
        return {
            "full": _accuracies(run.base(nf4=False)),
            "nf4": _accuracies(run.base(nf4=True)),
            "attacks": _attacked(run, None) if run.has("base_attacks") else None,
        }
    history, survival = run.history(method), run.survival(method).quantized
    verdict, divergences = run.verdict(method), run.divergences(method)
    properties = {p.name: p for p in verdict.properties}
    forgetting, retention = verdict.forgetting, verdict.retention
    gap, erasure = verdict.gap, verdict.erasure
    return {
        "full": _accuracies(run.measurement(method, nf4=False)),
        "nf4": _accuracies(run.measurement(method, nf4=True)),
        "status": {name: p.status for name, p in properties.items()},
        "certain": {name: p.certain for name, p in properties.items()},
        "margin": {name: p.margin for name, p in properties.items()},
        "fall": None if forgetting.value is None else forgetting.value.to_json(),
        "retain fall": None if retention.value is None else retention.value.to_json(),
        "retain fall in nats": max(
            (d["fall in nats"] for d in retention.details.values()), default=None
        ),
        "gap": None if gap.value is None else gap.value.to_json(),
        "gap in nats": gap.details.get("gap in nats"),
        "erasure": None if erasure.value is None else erasure.value.to_json(),
        "control": erasure.threshold,
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
        "strengths": (run.strengths(method).to_json() if run.has("strengths", method) else None),
    }


def results(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of every run with the manifest that repeats them, as JSON values."""
    return {
        "manifest": {
            "command": "python -m experiments.reproduce",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: version(name) for name in PACKAGES},
        },
        "runs": [
            {
                "name": run.name,
                "subject": run.subject,
                "task": dict(run.about),
                "settings": asdict(run.settings),
                "circuit": _circuit(run),
                "methods": {
                    name: figures(run, name)
                    for name in (NO_EDIT, *sorted(run.judged(), key=methods.ALL.index))
                },
            }
            for run in runs
        ],
    }


def _circuit(run: Run) -> dict[str, Any]:
    circuit = run.circuit()
    return {
        "edges": len(circuit),
        "of": circuit.layout.n_edges,
        "faithfulness": circuit.faithfulness,
        "interval": circuit.interval,
        "mask": run.mask().fraction,
    }


def _commit() -> str | None:
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


def claims(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> tuple[Claim, ...]:
    """The paper's claims, each held against the figures (``results``).

    Claims about numbers are judged on the default subject, claims about what holds by
    construction on every subject.

    Args:
        auroc: the record of ``experiments/benchmarks/cad.py``, if there is one.
    """
    runs = found["runs"]
    real = [run for run in runs if run["subject"] != subjects.TINY]
    return (
        *_gradient_claims(real),
        *_mansu_claims(runs, real),
        _formats(runs),
        _bound(real),
        _separation(auroc),
        _relearning(real),
        Claim(
            "It holds on 8 B models, on WMDP and MUSE as published",
            "needs the model hub and a GPU; the loaders and scores are there (`mansu score`)",
            UNTESTED,
        ),
    )


def _of(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    for run in runs:
        for name in names:
            if name in run["methods"]:
                yield f"{name} on {run['task']['name']}", run["methods"][name]


def _judged(holds: bool | None) -> str:
    if holds is None:
        return UNTESTED
    return REPRODUCED if holds else NOT_REPRODUCED


def _forgot(figures: Figures) -> bool:
    return figures["status"]["forgetting"] == "passed"


def _above_zero(interval: Sequence[float] | None) -> bool:
    return interval is not None and interval[1] > 0


def _gradient_claims(runs: Sequence[Mapping[str, Any]]) -> Iterator[Claim]:
    """What the paper says of the methods that move every weight a little."""
    gradient = [n for n in methods.NAMES if n != "mansu"]
    rows = [(k, f) for k, f in _of(runs, gradient) if f["width over update"] is not None]
    ratios = [f["width over update"] for _, f in rows]
    inside = [r for r in ratios if RATIOS[0] <= r <= RATIOS[1]]
    yield Claim(
        f"The median update is {RATIOS[0]:.0f} to {RATIOS[1]:.0f} times smaller than its NF4 bin",
        f"{min(ratios):.0f} to {max(ratios):.0f} times over {len(ratios)} edits, {len(inside)} of "
        "them within the paper's range"
        if ratios
        else "no edit",
        _judged(2 * len(inside) > len(ratios) if ratios else None),
    )
    shares = [f["codes changed"] for _, f in rows]
    few = [share for share in shares if share <= FEW]
    yield Claim(
        "So nearly every weight keeps its NF4 code",
        f"{min(shares):.2%} to {max(shares):.2%} of the moved weights change code, at most "
        f"{FEW:.0%} in {len(few)} of {len(shares)} edits"
        if shares
        else "no edit",
        _judged(2 * len(few) > len(shares) if shares else None),
    )
    forgot = [(k, f) for k, f in rows if _forgot(f)]
    back = [(k, f) for k, f in forgot if _above_zero(f["gap"])]
    most = max(forgot, key=lambda row: row[1]["gap"][0], default=None)
    yield Claim(
        f"What was forgotten comes back after NF4: accuracy recovers by up to {RECOVERY:+.2f}",
        f"largest recovery {_interval(most[1]['gap'])} ({most[0]}); above zero with its whole "
        f"interval in {len(back)} of {len(forgot)} edits that forgot"
        if most
        else "no edit forgot",
        _judged(bool(back) if forgot else None),
    )
    nats = [(k, f) for k, f in forgot if _above_zero(f["gap in nats"])]
    most = max(forgot, key=lambda row: row[1]["gap in nats"][0], default=None)
    yield Claim(
        "The same in the answer's log-probability, which is finer than accuracy",
        f"largest recovery {_interval(most[1]['gap in nats'])} nats ({most[0]}); above zero with "
        f"its whole interval in {len(nats)} of {len(forgot)}"
        if most
        else "no edit forgot",
        _judged(2 * len(nats) > len(forgot) if forgot else None),
    )
    both = [k for k, f in forgot if f["status"]["gap"] == "passed" and k not in dict(nats)]
    yield Claim(
        "The sparsity–permanence tradeoff: no baseline both forgets and stays forgotten",
        f"{len(both)} of {len(rows)} edits forget with no recovery in accuracy or log-probability"
        + (f" ({', '.join(both)})" if both else ""),
        _judged(not both if rows else None),
    )


def _mansu_claims(
    runs: Sequence[Mapping[str, Any]], real: Sequence[Mapping[str, Any]]
) -> Iterator[Claim]:
    rows = list(_of(runs, ["mansu"]))
    four = [k for k, f in rows if set(f["status"].values()) == {"passed"}]
    missed = [
        f"{k}: {ABOUT[name].title} {state}"
        for k, f in rows
        for name, state in f["status"].items()
        if state != "passed"
    ]
    yield Claim(
        "MANSU has all four properties at once",
        f"on {len(four)} of {len(rows)} tasks" + (f" ({'; '.join(missed)})" if missed else ""),
        _judged(len(four) == len(rows) if rows else None),
    )
    shares = [f["codes changed"] for _, f in rows if f["codes changed"] is not None]
    yield Claim(
        "Every parameter that MANSU moves ends in another NF4 code",
        f"{min(shares):.2%} at least" if shares else "nothing moved",
        _judged(min(shares) == 1 if shares else None),
    )
    masks = [run["circuit"]["mask"] for run in real]
    yield Claim(
        "The forget circuit is a fraction of a percent of the parameters",
        f"{min(masks):.3%} to {max(masks):.3%} at faithfulness "
        f"{min(run['circuit']['faithfulness'] for run in real):.2f} or more"
        if masks
        else "no circuit",
        _judged(max(masks) < CIRCUIT if masks else None),
    )
    yield _ablation(
        runs, "mansu_no_floor", "Without the floor the update does not outlive NF4", "gap"
    )
    yield _ablation(
        runs,
        "mansu_no_circuit",
        "Without the circuit the behaviour is not erased",
        "erasure",
        "forgetting",
    )
    yield _ablation(
        runs, "mansu_no_projection", "Without the projection the retain set suffers", "retention"
    )
    yield _ablation(
        runs, "mansu_no_fisher", "Without the Fisher bound the retain set suffers", "retention"
    )
    yield _rephrasings(runs)


def _ablation(runs: Sequence[Mapping[str, Any]], name: str, what: str, *properties: Name) -> Claim:
    """A part is needed where one of its properties passes with it and does not without it."""
    needed, told = [], []
    for run in runs:
        if name not in run["methods"] or "mansu" not in run["methods"]:
            continue
        with_it, without = run["methods"]["mansu"], run["methods"][name]
        needed.append(
            any(
                with_it["status"][p] == "passed" and without["status"][p] != "passed"
                for p in properties
            )
        )
        for p in properties:
            margins = (with_it["margin"][p], without["margin"][p])
            told.append(
                f"{run['task']['name']}: {ABOUT[p].title} "
                + " → ".join("unknown" if m is None else f"{m:+.3f}" for m in margins)
            )
    holds = 2 * sum(needed) > len(needed) if needed else None
    return Claim(what, "margin with → without; " + "; ".join(told), _judged(holds))


def _rephrasings(runs: Sequence[Mapping[str, Any]]) -> Claim:
    """Accuracy on rephrasings that nothing trains on: the circuit's mask against a random one."""
    told, lower = [], []
    for run in runs:
        if not {"mansu", "mansu_no_circuit"} <= run["methods"].keys():
            continue
        found = [run["methods"][m]["full"] for m in ("mansu", "mansu_no_circuit")]
        if any("paraphrase" not in f for f in found):
            continue
        ours, random = (f["paraphrase"] for f in found)
        lower.append(ours[2] < random[1])
        told.append(f"{run['task']['name']}: {_share(ours)} with, {_share(random)} without")
    return Claim(
        "Without the circuit forgetting does not reach rephrasings",
        "accuracy in %; " + "; ".join(told) if told else "not measured",
        _judged(2 * sum(lower) > len(lower) if lower else None),
    )


def _formats(runs: Sequence[Mapping[str, Any]]) -> Claim:
    found = [f["formats"] for _, f in _of(runs, ["mansu"]) if f["formats"] is not None]
    names = list(found[0]) if found else []
    least = {name: min(shares[name] for shares in found) for name in names}
    told = ", ".join(f"{name} {share:.2%}" for name, share in least.items())
    return Claim(
        "MANSU's moves also change their codes in the other low-bit formats",
        f"the least share over {len(found)} tasks: {told}" if found else "not measured",
        _judged(all(share == 1 for share in least.values()) if found else None),
    )


def _bound(runs: Sequence[Mapping[str, Any]]) -> Claim:
    found = [(k, f["bound"]) for k, f in _of(runs, ["mansu"]) if f["bound"] is not None]
    told = "; ".join(
        f"{k}: {b['restricted']:.3f} over the circuit, {b['everywhere']:.3f} over all weights, "
        f"{b['measured']:+.3f} measured"
        for k, b in found
    )
    holds = all(b["measured"] <= b["restricted"] <= b["everywhere"] for _, b in found)
    return Claim(
        "The diagonal-Fisher bound over the circuit holds for the retain loss (Theorem 1)",
        f"nats; {told}" if found else "not measured",
        _judged(holds if found else None),
    )


def _relearning(runs: Sequence[Mapping[str, Any]]) -> Claim:
    """Held-out facts after relearning: MANSU's against those of the baselines that forgot."""
    told, better = [], []
    baselines = [n for n in methods.NAMES if n != "mansu"]
    for run in runs:
        ours = run["methods"].get("mansu")
        others = [f for _, f in _of([run], baselines) if f["attacks"] and _forgot(f)]
        if ours is None or not ours["attacks"] or not others:
            continue
        theirs = [f["attacks"]["relearning"][0] for f in others]
        here = ours["attacks"]["relearning"][0]
        better.append(here < min(theirs))
        told.append(
            f"{run['task']['name']}: {here:.0%} after MANSU, {min(theirs):.0%} to "
            f"{max(theirs):.0%} after the {len(theirs)} baselines that forgot"
        )
    return Claim(
        "What MANSU erased is harder to relearn than what a baseline hid",
        "accuracy on facts not trained on; " + "; ".join(told) if told else "not measured",
        _judged(all(better) if better else None),
    )


def separation(folder: Path) -> Mapping[str, Any] | None:
    """The record of ``experiments/benchmarks/cad.py`` in this folder, if there is one."""
    path = folder / "cad-auroc.json"
    return read_json(path) if path.exists() else None


def _separation(auroc: Mapping[str, Any] | None) -> Claim:
    what = "CAD tells an erased circuit from a suppressed behaviour"
    if auroc is None:
        return Claim(what, "run `python experiments/benchmarks/cad.py RUN…` first", UNTESTED)
    erased = auroc["separation"]["erased"]
    names = list(auroc["tasks"])
    told = [
        f"{label}: AUROC " + ", ".join(f"{erased[name][t]['auroc']:.2f} ({t})" for t in names)
        for label, name in (("plain CAD", "plain JS"), ("signal CAD", "signal JS on the circuit"))
    ]
    holds = all(erased["signal JS on the circuit"][t]["auroc"] > 0.9 for t in names)
    return Claim(what, "; ".join(told), _judged(holds))


def _interval(interval: Sequence[float], digits: int = 2) -> str:
    value, low, high = interval
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _points(shares: Sequence[float] | None) -> str:
    return "–" if shares is None else _interval([100 * x for x in shares], 1)


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims as Markdown."""
    return table(
        ["Claim", "Measured here", ""],
        [[c.claim, c.ours, f"**{c.status}**"] for c in claims],
    )


MARKS = {"passed": "✓", "failed": "✗", "unknown": "?"}


def properties_table(run: Mapping[str, Any]) -> str:
    """One task: accuracies and the four properties of every method, as Markdown.

    Accuracies are in percent, full precision / NF4. The worst kept fall is that of the answers'
    mean log-probability, over the groups to be kept and both formats. The four marks are those of
    the verdict, in its order, with ~ where the interval crosses the threshold.
    """
    kept = [k for k in run["methods"][NO_EDIT]["full"] if k.startswith("keep ")]
    groups = ["forget", "paraphrase", *kept]
    groups = [g for g in groups if g in run["methods"][NO_EDIT]["full"]]
    rows = []
    for name, f in run["methods"].items():
        cells = [f"{100 * f['full'][g][0]:.1f} / {100 * f['nf4'][g][0]:.1f}" for g in groups]
        if name == NO_EDIT:
            rows.append([name, *cells, *[""] * 7])
            continue
        marks = [
            MARKS[state] + ("" if f["certain"][p] or state == "unknown" else "~")
            for p, state in f["status"].items()
        ]
        ratio, changed = f["width over update"], f["codes changed"]
        rows.append(
            [
                name,
                *cells,
                _points(f["gap"]),
                "–" if f["gap in nats"] is None else _interval(f["gap in nats"]),
                "–" if f["retain fall in nats"] is None else _interval(f["retain fall in nats"]),
                " ".join(marks),
                f"{100 * f['fraction']:.3g}",
                "–" if ratio is None else f"{ratio:.3g}",
                "–" if changed is None else f"{100 * changed:.3g}",
            ]
        )
    header = ["", *(g.removeprefix("keep ") for g in groups), "PTQ gap, points", "PTQ gap, nats"]
    header += ["worst kept fall, nats", "verdict", "moved, %", "bin ÷ update", "codes changed, %"]
    return table(header, rows)


def intervals_table(run: Mapping[str, Any]) -> str:
    """One task: what the verdict holds against its thresholds, with intervals, as Markdown."""
    header = [
        "",
        f"fall of forget accuracy, points (≥ {100 * run['task']['margin']:.0f})",
        f"worst fall of what is kept, points (≤ {100 * run['task']['tolerance']:.0f})",
        "PTQ gap, points (≤ 0)",
        "signal CAD (≥ the suppressor's), or CAD where it is noise (≥ the noise floor)",
    ]
    rows = []
    for name, f in run["methods"].items():
        if name == NO_EDIT:
            continue
        cells = [_points(f[key]) for key in ("fall", "retain fall", "gap")]
        erasure = f["erasure"]
        cells.append("–" if erasure is None else f"{_interval(erasure, 3)} (≥ {f['control']:.3f})")
        marks = [MARKS[state] for state in f["status"].values()]
        rows.append([name, *(f"{c} {m}" for c, m in zip(cells, marks, strict=True))])
    return table(header, rows)


def tradeoff(run: Mapping[str, Any]) -> dict[str, tuple[Point, ...]]:
    """Method → its points of forgetting against permanence, the weakest first."""
    edits = {name: f.get("strengths") for name, f in run["methods"].items()}
    return {name: Strengths.from_json(found).points for name, found in edits.items() if found}


def attacks_table(run: Mapping[str, Any]) -> str:
    """Forget accuracy in % under every recovery attack, with its interval, as Markdown."""
    attacked = {name: f["attacks"] for name, f in run["methods"].items() if f["attacks"]}
    header = list(dict.fromkeys(attack for found in attacked.values() for attack in found))
    rows = [
        [name, *(_share(found[attack]) if attack in found else "–" for attack in header)]
        for name, found in attacked.items()
    ]
    return table(["", *header], rows)


def _share(interval: Sequence[float]) -> str:
    value, low, high = (100 * x for x in interval)
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def costs_table(run: Mapping[str, Any]) -> str:
    """Wall seconds and peak resident memory of every method itself, same process, as Markdown."""
    rows = []
    for name, f in run["methods"].items():
        if name != NO_EDIT:
            memory = "–" if f["peak memory"] is None else f"{f['peak memory']:.2f}"
            rows.append([name, f"{f['seconds']:.0f}", memory, f["stopped"]])
    return table(["", "seconds", "peak memory, GiB", "stopped"], rows)


def report(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> str:
    """Everything as Markdown: the claims, and per task the methods, attacks and costs."""
    manifest = found["manifest"]
    packages = ", ".join(f"{k} {v}" for k, v in manifest["packages"].items())
    parts = [
        "# What was measured",
        f"Made by `{manifest['command']}` at commit {manifest['commit']} on {manifest['created']} "
        f"(Python {manifest['python']}, {packages}).",
        "## The claims",
        claims_table(claims(found, auroc)),
    ]
    for run in found["runs"]:
        parts += [
            _task(run),
            "The four properties with their intervals:",
            intervals_table(run),
            "Recovery attacks: forget accuracy in %, on questions that the attacker did not have:",
            attacks_table(run),
            "Wall time and peak memory of the method itself:",
            costs_table(run),
        ]
    return "\n\n".join(parts) + "\n"


def summary(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> str:
    """What the README shows: the claims, and the methods on the default subject's first task."""
    run = next(r for r in found["runs"] if r["subject"] == subjects.DEFAULT)
    return "\n\n".join([claims_table(claims(found, auroc)), _task(run)]) + "\n"


def _task(run: Mapping[str, Any]) -> str:
    circuit = run["circuit"]
    low, high = circuit["interval"]
    return (
        f"### {run['task']['title']} on {run['subject']}\n\n"
        "4-way accuracy in %, full precision / NF4; worst kept fall: of the answers' mean "
        "log-probability, over what is to be kept; ✓, ✗ and ? are the verdict on forgetting, "
        "retention, PTQ gap and erasure, with ~ where the interval crosses the threshold.\n\n"
        f"{properties_table(run)}\n\n"
        f"Circuit: {circuit['edges']:,} of {circuit['of']:,} edges, faithfulness "
        f"{circuit['faithfulness']:.3f} [{low:.3f}, {high:.3f}]; mask {circuit['mask']:.3%} of "
        "the parameters."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: do what is not done yet, and write the figures and the report."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce",
        description="Hold the paper's claims against every method on several tasks.",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/reproduce"),
        help="where the runs are; what is done there is not done again (%(default)s)",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("experiments/results"),
        help="where reproduce.json and reproduce.md are written (%(default)s)",
    )
    parser.add_argument(
        "--subject", help="only the experiments on this subject, e.g. tiny (a minute)"
    )
    parser.add_argument("--task", action="append", help="only the experiments on these tasks")
    parser.add_argument(
        "--method",
        action="append",
        help="only these methods; by default every method, control and ablation",
    )
    options = parser.parse_args(arguments)
    try:
        _reproduce(options)
    except MansuError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _reproduce(options: argparse.Namespace) -> None:
    experiments = [
        e
        for e in EXPERIMENTS
        if options.subject in (None, e.subject) and e.task in (options.task or [e.task])
    ]
    if not experiments:
        known = ", ".join(f"{e.task} on {e.subject}" for e in EXPERIMENTS)
        raise BadInputError(f"No experiment is on that subject and task: there are {known}.")
    names = options.method or methods.ALL
    for name in names:
        methods.named(name)

    def on_step(step: Step) -> None:
        print(sentence(step), file=sys.stderr, flush=True)

    found = results(measure(options.folder, experiments, on_step, names))
    write_json(options.to / "reproduce.json", found)
    text = report(found, separation(options.to))
    with replacing(options.to / "reproduce.md") as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
