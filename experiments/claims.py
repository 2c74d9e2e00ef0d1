"""The paper's claims (arXiv 2605.15138), each held against the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.figures import Figures, checks_of
from mansu import methods, subjects
from mansu.circuits.parameters import HELD
from mansu.evidence.verdict import ABOUT, RELEARNED, Check, Name, worst_of
from mansu.files import read_json
from mansu.show.numbers import Unit, amount, between, measured, percent, written
from mansu.statistics import Interval

RATIOS = (47.0, 828.0)
"""The paper's median bin width ÷ update of gradient unlearning."""

RECOVERY = 0.05
"""The paper's largest recovery of forget accuracy after NF4."""

FEW = 0.01
"""Share of codes that change, up to which nearly every weight keeps its own."""

CIRCUIT = 0.01
"""The paper's circuit is a fraction of a percent of the parameters; at 1 % it would not be."""

AUROC = 0.9
"""What an AUROC must be above on every task, with its whole interval, to tell two apart."""

PLAIN, SIGNAL = "plain JS", "signal JS on the circuit"
"""Plain CAD, the paper's, and signal CAD (``mansu.evidence.cad``), as the record has them."""

SEPARATION = "`python -m experiments.benchmarks.cad RUN…`"
NO_TASK = "not measured on the tasks of these figures"

TOY = "the tiny subject is a toy, one of whose heads is a percent of it, and is left out"
"""Why a claim about a real model's numbers is not judged where only the tiny one was run."""

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED, UNTESTED = "undecided", "cannot be tested here"

BASELINES = tuple(name for name in methods.NAMES if name != "mansu")

Runs = Sequence[Mapping[str, Any]]
"""The runs of ``figures.results``."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what we find.

    Attributes:
        claim: what the paper says. number: the one figure that decides it, short.
        ours: our figures, a sentence, with intervals where there are.
        status: ``reproduced``, ``not reproduced``, ``undecided`` (what was measured says neither)
            or ``cannot be tested here``.
    """

    claim: str
    number: str
    ours: str
    status: str


def claims(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> tuple[Claim, ...]:
    """The paper's claims, each held against the figures (``figures.results``).

    Claims about the numbers of a model (bins, mask, bound, relearning) are judged on real subjects,
    the four properties, the ablations and what holds by construction on every subject.

    Args:
        auroc: the record of ``experiments/benchmarks/cad.py``, if there is one; what it says of
            other facts than ``found`` is of is refused, in the claim.
    """
    runs = found["runs"]
    real = [run for run in runs if run["subject"] != subjects.TINY]
    return (
        *_gradient_claims(real),
        *_mansu_claims(runs, real),
        _formats(runs),
        _bound(real),
        _separation(real, auroc),
        _relearning(real),
        Claim(
            "It holds on 8 B models, on WMDP and MUSE as published",
            "–",
            "needs the model hub and a GPU; the loaders and scores are there (`mansu score`)",
            UNTESTED,
        ),
    )


def separation(folder: Path) -> Mapping[str, Any] | None:
    """The record of ``experiments/benchmarks/cad.py`` in this folder, if there is one."""
    path = folder / "cad-auroc.json"
    return read_json(path) if path.exists() else None


def _of(runs: Runs, names: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    for run in runs:
        for name in names:
            if name in run["methods"]:
                yield f"{name} on {run['task']['name']}", run["methods"][name]


def _judged(holds: bool | None) -> str:
    if holds is None:
        return UNTESTED
    return REPRODUCED if holds else NOT_REPRODUCED


def _counted(
    claim: str, yes: Sequence[bool | None], of: str, ours: str, holds: bool | None
) -> Claim:
    """A claim that is decided by how many of some things hold; untested where there are none."""
    if not yes:
        return Claim(claim, "–", ours, UNTESTED)
    status = UNDECIDED if holds is None else _judged(holds)
    return Claim(claim, f"{sum(map(bool, yes))} of {len(yes)} {of}", ours, status)


def _most(yes: Sequence[bool | None]) -> bool | None:
    """Whether more than half hold; None where those decide it that are undecided (None)."""
    sure, possible = (2 * n > len(yes) for n in (yes.count(True), len(yes) - yes.count(False)))
    return True if sure else None if possible else False


def _forgot(figures: Figures) -> bool:
    return figures["status"]["forgetting"] == "passed"


def _above_zero(interval: Sequence[float] | None) -> bool:
    return interval is not None and Interval.from_json(interval).above(0)


def _recovers(figures: Figures) -> bool:
    """Whether NF4 brings some back with its whole interval, in accuracy or in log-probability."""
    return _above_zero(figures["gap"]) or _above_zero(figures["gap in nats"])


def _stays(figures: Figures, *states: str) -> bool:
    """Whether it forgets and stays forgotten, as far as the verdict's states go."""
    asked = (figures["status"][name] for name in ("forgetting", "gap"))
    return all(status in states for status in asked) and not _recovers(figures)


def _gradient_claims(runs: Runs) -> Iterator[Claim]:
    """What the paper says of the methods that move every weight a little."""
    rows = [(k, f) for k, f in _of(runs, BASELINES) if f["width over update"] is not None]
    ratios = [f["width over update"] for _, f in rows]
    inside = [RATIOS[0] <= r <= RATIOS[1] for r in ratios]
    yield _counted(
        f"The median update is {RATIOS[0]:.0f} to {RATIOS[1]:.0f} times smaller than its NF4 bin",
        inside,
        "edits",
        f"{min(ratios):.0f} to {max(ratios):.0f} times over {len(ratios)} edits, {sum(inside)} of "
        "them within the paper's range (more than half is asked)"
        if ratios
        else "no edit",
        _most(inside),
    )
    shares = [f["codes changed"] for _, f in rows]
    few = [share <= FEW for share in shares]
    yield _counted(
        "So nearly every weight keeps its NF4 code",
        few,
        "edits",
        f"{percent(min(shares), 2)} to {percent(max(shares), 2)} of the moved weights change code, "
        f"at most {percent(FEW, 0)} in {sum(few)} of {len(few)} edits (more than half is asked)"
        if shares
        else "no edit",
        _most(few),
    )
    forgot = [(k, f) for k, f in rows if _forgot(f)]
    back = [_above_zero(f["gap"]) for _, f in forgot]
    yield _recovery(
        "What was forgotten comes back after NF4: accuracy recovers by up to "
        f"{written(RECOVERY, '+.2f')}",
        [(k, f["gap"]) for k, f in forgot],
        "share",
        "one",
        any(back),
    )
    nats = [_above_zero(f["gap in nats"]) for _, f in forgot]
    yield _recovery(
        "The same in the answer's log-probability, which is finer than accuracy",
        [(k, f["gap in nats"]) for k, f in forgot],
        "nats",
        "more than half",
        _most(nats),
    )
    # A wreck forgets everything for good: it says nothing of a tradeoff between the two.
    wrecked = {k for k, f in rows if f["status"]["retention"] == "failed"}
    stays = [k for k, f in rows if _stays(f, "passed")]
    # One of which it is undecided, and which no recovery is seen of, may be one of them.
    may = [k for k, f in rows if k not in stays and _stays(f, "passed", "undecided")]
    named, maybe = ([k for k in some if k not in wrecked] for some in (stays, may))
    wrecks = [k for k in (*stays, *may) if k in wrecked]
    yield _counted(
        "The sparsity–permanence tradeoff: no baseline both forgets and stays forgotten",
        [k in named for k, _ in rows],
        "edits",
        f"{len(named)} of {len(rows)} edits forget with no recovery in accuracy or log-probability "
        f"and are not decided to fail what is kept{_list(named)}"
        + (f"; of {len(maybe)} more it is undecided{_list(maybe)}" if maybe else "")
        + (f"; {len(wrecks)} whose kept facts fail do or may{_list(wrecks)}" if wrecks else ""),
        False if named else None if wrecks or maybe else True,
    )


def _list(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _recovery(
    claim: str,
    gaps: Sequence[tuple[str, Sequence[float]]],
    unit: Unit,
    asked: str,
    holds: bool | None,
) -> Claim:
    """What NF4 brings back, over the edits that forgot: name and gap with its interval each."""
    if not gaps:
        return Claim(claim, "–", "no edit forgot", UNTESTED)
    name, most = max(gaps, key=lambda row: row[1][0])
    back = sum(_above_zero(gap) for _, gap in gaps)
    return Claim(
        claim,
        f"{amount(most[0], unit)} at most",
        f"largest recovery {measured(Interval.from_json(most), unit)} ({name}); above zero with "
        f"its whole interval in {back} of {len(gaps)} edits that forgot ({asked} is asked)",
        UNDECIDED if holds is None else _judged(holds),
    )


def _mansu_claims(runs: Runs, real: Runs) -> Iterator[Claim]:
    rows = list(_of(runs, ["mansu"]))
    four = [set(f["status"].values()) == {"passed"} for _, f in rows]
    missed = [
        f"{k}: {ABOUT[name]} {state}"
        for k, f in rows
        for name, state in f["status"].items()
        if state != "passed"
    ]
    yield _counted(
        "MANSU has all four properties at once",
        four,
        "tasks",
        f"on {sum(four)} of {len(rows)} tasks" + (f" ({'; '.join(missed)})" if missed else ""),
        all(four),
    )
    shares = [f["codes changed"] for _, f in rows if f["codes changed"] is not None]
    least = f"{percent(min(shares), 2)} at least" if shares else "nothing moved"
    yield Claim(
        "Every parameter that MANSU moves ends in another NF4 code",
        least,
        least,
        _judged(min(shares) == 1 if shares else None),
    )
    yield _mask(runs, real)
    parts: tuple[tuple[str, str, Sequence[Name]], ...] = (
        ("mansu_no_floor", "Without the floor the update does not outlive NF4", ["gap"]),
        (
            "mansu_no_circuit",
            "Without the circuit the behaviour is not erased",
            ["erasure", "forgetting"],
        ),
        ("mansu_no_projection", "Without the projection the retain set suffers", ["retention"]),
        ("mansu_no_fisher", "Without the Fisher bound the retain set suffers", ["retention"]),
    )
    for name, what, properties in parts:
        yield _ablation(runs, name, what, properties)
    yield _rephrasings(runs)


def _mask(runs: Runs, real: Runs) -> Claim:
    """A mask is cut at a fraction of a percent: what it would have to be to hold the circuit."""
    what = "The forget circuit is a fraction of a percent of the parameters"
    if not real:
        return Claim(what, "–", TOY if runs else "no circuit", UNTESTED)
    found = [run["circuit"] for run in real]
    masks, mass, whole, faithful = (
        [c[k] for c in found] for k in ("mask", "mass", "whole mask", "faithfulness")
    )
    held = percent(HELD, 0)
    return Claim(
        what,
        f"{percent(max(whole))} at most hold {held} of its attribution",
        f"{percent(min(whole))} to {percent(max(whole))} of the parameters hold {held} of the "
        "attribution of the circuit's heads and neurons, at faithfulness "
        f"{min(faithful):.2f} or more on the pairs that it was found on; its mask, cut at "
        f"{percent(max(masks), 3)}, holds {percent(min(mass), 0)} to {percent(max(mass), 0)}",
        _judged(max(whole) < CIRCUIT),
    )


def _ablation(runs: Runs, name: str, what: str, properties: Sequence[Name]) -> Claim:
    """A part is needed where the check that decides without it is worse than with it, in one of its
    properties; not where that is passed without it; else it is undecided.
    """
    needed, told = [], []
    for run in runs:
        if name not in run["methods"] or "mansu" not in run["methods"]:
            continue
        with_it, without = run["methods"]["mansu"], run["methods"][name]
        found = [pair for p in properties if (pair := _pair(with_it, without, p))]
        if not found:
            continue
        worse = [has.status != "passed" and _worse(has, had) for had, has in found]
        needed.append(_any(worse))
        told += [
            f"{run['task']['name']}: {had.what} {measured(had.value, had.unit)} with, "
            f"{measured(has.value, has.unit)} without"
            for had, has in found
        ]
    ours = "; ".join(told) + " (more than half is asked)" if told else "not measured"
    return _counted(what, needed, "tasks", ours, _most(needed))


def _pair(with_it: Figures, without: Figures, name: Name) -> tuple[Check, Check] | None:
    """What decides a property without a part, as it is with it and without it.

    None where either was not measured, or where nothing was forgotten that could come back.
    """
    if not {f["status"][name] for f in (with_it, without)} <= {"passed", "undecided", "failed"}:
        return None
    has = worst_of(checks_of(without, name))
    same = [c for c in checks_of(with_it, name) if has and (c.what, c.unit) == (has.what, has.unit)]
    return (same[0], has) if has and same else None


def _worse(check: Check, than: Check) -> bool | None:
    """Whether one is the worse by its whole interval; None where the two intervals meet."""
    two = (check.value, than.value) if check.at_least else (than.value, check.value)
    return _below(*two)


def _below(first: Interval, second: Interval) -> bool | None:
    """Whether an interval is below another as a whole, False if above; None where they meet."""
    if second.alone:
        return None
    return True if first.below(second.low) else False if first.above(second.high) else None


def _any(of: Sequence[bool | None]) -> bool | None:
    """Whether one holds; None where those decide it that are undecided (None)."""
    return True if True in of else None if None in of else False


def _all(of: Sequence[bool | None]) -> bool | None:
    """Whether all hold; None where those decide it that are undecided (None)."""
    return False if False in of else None if None in of else True


def _rephrasings(runs: Runs) -> Claim:
    """Accuracy on rephrasings that nothing trains on: the circuit's mask against a random one."""
    told, lower = [], []
    for run in runs:
        if not {"mansu", "mansu_no_circuit"} <= run["methods"].keys():
            continue
        found = [run["methods"][m]["full"] for m in ("mansu", "mansu_no_circuit")]
        if any("paraphrase" not in f for f in found):
            continue
        ours, random = (Interval.from_json(f["paraphrase"]) for f in found)
        lower.append(_below(ours, random))
        told.append(f"{run['task']['name']}: {between(ours)} with, {between(random)} without")
    return _counted(
        "Without the circuit forgetting does not reach rephrasings",
        lower,
        "tasks",
        "accuracy; " + "; ".join(told) if told else "not measured",
        _most(lower),
    )


def _formats(runs: Runs) -> Claim:
    found = [f["formats"] for _, f in _of(runs, ["mansu"]) if f["formats"] is not None]
    names = list(found[0]) if found else []
    least = {name: min(shares[name] for shares in found) for name in names}
    told = ", ".join(f"{name} {percent(share, 2)}" for name, share in least.items())
    return Claim(
        "MANSU's moves also change their codes in FP4, int8 and other NF4 blocks",
        f"{percent(min(least.values()), 2)} at least" if least else "–",
        f"the least share over {len(found)} tasks: {told}" if found else "not measured",
        _judged(all(share == 1 for share in least.values()) if found else None),
    )


def _bound(runs: Runs) -> Claim:
    found = [(k, f["bound"]) for k, f in _of(runs, ["mansu"]) if f["bound"] is not None]
    told = "; ".join(
        f"{k}: {b['restricted']:.3f} over what may move, {b['everywhere']:.3f} over all weights, "
        f"{written(b['measured'], '+.3f')} measured"
        for k, b in found
    )
    holds = [b["measured"] <= b["restricted"] <= b["everywhere"] for _, b in found]
    return _counted(
        "The diagonal-Fisher bound over what may move holds for the retain loss (Theorem 1)",
        holds,
        "tasks",
        f"nats; {told}" if found else "not measured",
        all(holds),
    )


def _relearning(runs: Runs) -> Claim:
    """The verdict's check: MANSU's against each baseline's of which forgetting did not fail either.

    Where MANSU did not forget there is nothing to relearn. Edits whose kept facts fail are not left
    out, since MANSU's mostly do, too; how many do is told.
    """
    told, better, kept = [], [], list[bool]()
    for run in runs:
        forgot = {
            name: check
            for name in ("mansu", *BASELINES)
            if name in run["methods"] and (check := _relearned(run["methods"][name]))
        }
        ours = forgot.pop("mansu", None)
        if ours is None or not forgot:
            continue
        kept += [run["methods"][k]["status"]["retention"] != "failed" for k in ("mansu", *forgot)]
        harder = [_worse(theirs, ours) for theirs in forgot.values()]
        better.append(_all(harder))
        told.append(
            f"{run['task']['name']}: {measured(ours.value, ours.unit)} after MANSU, "
            + ", ".join(f"{measured(c.value, c.unit)} after {k}" for k, c in forgot.items())
        )
    return _counted(
        "What MANSU erased is harder to relearn than what a baseline hid",
        better,
        "tasks",
        "above what the reference relearns, mean over the steps; "
        + "; ".join(told)
        + f" (of these edits the kept facts of {kept.count(False)} in {len(kept)} fail)"
        if told
        else "not measured",
        _all(better),
    )


def _relearned(figures: Figures) -> Check | None:
    if figures["status"]["forgetting"] not in ("passed", "undecided"):
        return None
    return next((c for c in checks_of(figures, "erasure") if c.what == RELEARNED), None)


def _separation(runs: Runs, auroc: Mapping[str, Any] | None) -> Claim:
    """Plain CAD, which is the paper's, decides; signal CAD, which is ours, is told beside it."""
    what = "CAD tells an erased circuit from a suppressed behaviour"
    if auroc is None:
        return Claim(what, "–", f"not measured: run {SEPARATION} first", UNTESTED)
    today = {f"{r['task']['name']} ({r['subject']})": r["task"]["digest"] for r in runs}
    names = [name for name in auroc["tasks"] if name in today]
    stale = [name for name in names if auroc["tasks"][name]["digest"] != today[name]]
    if stale or not names:
        why = f"measured on other facts than today's ({', '.join(stale)})" if stale else NO_TASK
        return Claim(what, "–", f"{why}: run {SEPARATION} again", UNTESTED)

    def least(measure: str) -> str:
        found = min((erased[measure][n] for n in names), key=lambda one: one["auroc"])
        return _auroc(found)

    erased, with_mansu = (auroc["separation"][k] for k in ("erased", "erased or mansu"))
    told = [
        f"{label}: AUROC "
        + ", ".join(f"{_auroc(of[measure][n])} ({n.partition(' (')[0]})" for n in names)
        for label, measure, of in (
            ("plain CAD, the paper's", PLAIN, erased),
            ("signal CAD", SIGNAL, erased),
            ("signal CAD with MANSU's edits among the erased", SIGNAL, with_mansu),
        )
    ]
    bounds = [erased[PLAIN][n]["interval"] for n in names]
    below = any(high < AUROC for _, high in bounds)
    above = all(low > AUROC for low, _ in bounds)
    return Claim(
        what,
        f"plain CAD: AUROC {least(PLAIN)} at least, above {AUROC} asked; signal CAD: "
        f"{least(SIGNAL)}",
        "; ".join(told),
        NOT_REPRODUCED if below else REPRODUCED if above else UNDECIDED,
    )


def _auroc(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['auroc']:.2f} [{low:.2f}, {high:.2f}]"
