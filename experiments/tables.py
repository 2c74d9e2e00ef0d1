"""The tables of a reproduction, made of its figures: nothing in them is written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims import Claim, claims
from experiments.figures import NO_EDIT, Figures, checks_of
from mansu.evidence.strengths import Point, Strengths
from mansu.evidence.verdict import ABOUT, Name, kept_loss, worst_of
from mansu.methods import NAMES
from mansu.show.numbers import NOTHING, Unit, between, mark, measured, minus, number, percent
from mansu.show.table import Table
from mansu.statistics import Interval
from mansu.tasks.facts import CHANCE


def _measured(value: Sequence[float] | None, unit: Unit) -> str:
    """A change with its interval; the head says the unit."""
    return measured(None if value is None else Interval.from_json(value), unit, behind=False)


def _percents(share: float | None) -> str:
    """A share in percent, three digits; the head says the unit."""
    return number(None if share is None else 100 * share)


def claims_table(found: Sequence[Claim]) -> Table:
    """Every claim with all that was measured of it."""
    rows = [(c.claim, c.ours, f"**{c.status}**") for c in found]
    return Table(("Claim", "Measured here", ""), rows, align="<<<")


def claims_short(found: Sequence[Claim]) -> Table:
    """Every claim with its status and one number."""
    rows = [(c.claim, f"**{c.status}**", c.number) for c in found]
    return Table(("Claim of the paper", "Here", "Number"), rows, align="<<<")


def counted(found: Sequence[Claim]) -> str:
    """How many claims have which status, for people."""
    return ", ".join(f"{n} {status}" for status, n in Counter(c.status for c in found).items())


def properties_table(run: Mapping[str, Any]) -> Table:
    """One task: accuracies and the four properties of every method.

    Accuracies are in percent, full precision / NF4. The worst kept fall is that of the answers'
    mean log-probability, over the groups to be kept and both formats. The four marks are those of
    the verdict, in its order.
    """
    kept = [k for k in run["methods"][NO_EDIT]["full"] if k.startswith("keep ")]
    groups = ["forget", "paraphrase", *kept]
    groups = [g for g in groups if g in run["methods"][NO_EDIT]["full"]]
    head = ["", *(g.removeprefix("keep ") for g in groups), "PTQ gap, points", "PTQ gap, nats"]
    head += ["worst kept fall, nats", "verdict", "moved, %", "bin ÷ update", "codes changed, %"]
    rows = []
    for name, f in run["methods"].items():
        cells = [f"{100 * f['full'][g][0]:.1f} / {100 * f['nf4'][g][0]:.1f}" for g in groups]
        if name == NO_EDIT:
            cells += [""] * 7
        else:
            cells += [
                _measured(f["gap"], "share"),
                _measured(f["gap in nats"], "nats"),
                measured(kept_loss(checks_of(f, "retention")), "nats", behind=False),
                " ".join(mark(f["status"][p], f["certain"][p]) for p in ABOUT),
                _percents(f["fraction"]),
                number(f["width over update"]),
                _percents(f["codes changed"]),
            ]
        rows.append((name, *cells))
    return Table(head, rows)


def front_table(run: Mapping[str, Any]) -> Table:
    """One task: how far each method's rephrasings are from chance, against what that costs.

    Both in the worse of full precision and NF4; accuracy below chance is as far from it as the same
    above. A method is on the Pareto front where no other is as near for less, or nearer for as
    much. Of single runs: what is nearly alike may be the other way with another seed.
    """
    points = {}
    for name in NAMES:
        f = run["methods"].get(name)
        lost = f and kept_loss(checks_of(f, "retention"))
        if f and lost and "paraphrase" in f["full"]:
            away = max(abs(f[form]["paraphrase"][0] - CHANCE) for form in ("full", "nf4"))
            points[name] = (away, lost.value)
    rows = []
    for name, (away, lost) in sorted(points.items(), key=lambda each: each[1][1]):
        better = [
            other
            for other, found in points.items()
            if found != (away, lost) and found[0] <= away and found[1] <= lost
        ]
        cost = minus(f"{lost:.2f}")
        rows.append((name, f"{100 * away:.1f}", cost, ", ".join(better) or "on the front"))
    head = ("", "rephrasings from chance, points", "worst kept fall, nats", "better")
    return Table(head, rows, align="<>><")


def intervals_table(run: Mapping[str, Any]) -> Table:
    """One task: the check that decides each property, with its interval and threshold."""
    rows = []
    for name, f in run["methods"].items():
        if name != NO_EDIT:
            cells = (f"{_decided(f, p)} {mark(f['status'][p])}" for p in ABOUT)
            rows.append((name, *cells))
    return Table(("", *ABOUT.values()), rows, align="<<<<<")


def _decided(figures: Figures, name: Name) -> str:
    worst = None if figures["status"][name] == "unknown" else worst_of(checks_of(figures, name))
    return NOTHING if worst is None else str(worst)


def tradeoff(run: Mapping[str, Any]) -> dict[str, tuple[Point, ...]]:
    """Method → its points of forgetting against permanence, the weakest first."""
    edits = {name: f.get("strengths") for name, f in run["methods"].items()}
    return {name: Strengths.from_json(found).points for name, found in edits.items() if found}


def attacks_table(run: Mapping[str, Any]) -> Table:
    """Forget accuracy under every recovery attack, with its interval."""
    attacked = {name: f["attacks"] for name, f in run["methods"].items() if f["attacks"]}
    names = list(dict.fromkeys(attack for found in attacked.values() for attack in found))
    rows = [
        (name, *(between(Interval.from_json(found[a])) if a in found else NOTHING for a in names))
        for name, found in attacked.items()
    ]
    return Table(("", *names), rows)


def costs_table(run: Mapping[str, Any]) -> Table:
    """Wall seconds and peak resident memory of every method itself, in the same process."""
    rows = []
    for name, f in run["methods"].items():
        if name != NO_EDIT:
            memory = NOTHING if f["peak memory"] is None else f"{f['peak memory']:.2f}"
            rows.append((name, f"{f['seconds']:.0f}", memory, f["stopped"]))
    return Table(("", "seconds", "peak memory, GiB", "stopped"), rows, align="<>><")


def report(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> str:
    """Everything as Markdown: the claims, and per task the methods, attacks and costs."""
    manifest = found["manifest"]
    packages = ", ".join(f"{k} {v}" for k, v in manifest["packages"].items())
    parts = [
        f"Judged by `{manifest['command']}` at commit {manifest['commit']} on "
        f"{manifest['created']} (Python {manifest['python']}, {packages}). An edit that was done "
        "by then was not done again.",
        *_earlier(found),
        "## The claims",
        claims_table(claims(found, auroc)).markdown(),
    ]
    for run in found["runs"]:
        low, high = run["circuit"]["interval"]
        parts += [
            f"## {run['task']['title']} on {run['subject']}",
            "4-way accuracy in %, full precision / NF4; worst kept fall: of the answers' mean "
            "log-probability, over what is to be kept; ✓, ✗ and ? are the verdict on forgetting, "
            "retention, PTQ gap and erasure, with ~ where the interval crosses the threshold.",
            properties_table(run).markdown(),
            f"Circuit: {run['circuit']['edges']:,} of {run['circuit']['of']:,} edges, faithfulness "
            f"{run['circuit']['faithfulness']:.3f} [{low:.3f}, {high:.3f}]; mask "
            f"{percent(run['circuit']['mask'], 3)} of the parameters, which holds "
            f"{percent(run['circuit']['mass'], 0)} of its attribution.",
            "How near to chance the rephrasings are, for how much that is kept, in the worse of "
            "full precision and NF4, and which methods are better (in one of the two, and no worse "
            "in the other); on the Pareto front are those that none is better than:",
            front_table(run).markdown(),
            "What decides each property: the worst of its checks, with its interval and threshold:",
            intervals_table(run).markdown(),
        ]
        attacks = attacks_table(run)
        if attacks.rows:
            parts += [
                "Recovery attacks: forget accuracy, on questions that the attacker did not have:",
                attacks.markdown(),
            ]
        parts += [
            "Wall time and peak memory of the method itself:",
            costs_table(run).markdown(),
        ]
    return "\n\n".join(parts) + "\n"


def _earlier(found: Mapping[str, Any]) -> list[str]:
    """What an earlier command judged, and at which commit: a sentence a commit."""
    made: dict[str, dict[str, list[str]]] = {}
    for run in found["runs"]:
        for name, figures in run["methods"].items():
            if name != NO_EDIT and "made" in figures:
                of_commit = made.setdefault(figures["made"]["commit"], {})
                of_commit.setdefault(run["name"], []).append(name)
    return [
        f"Judged at commit {commit}: "
        + "; ".join(f"on {run} {', '.join(names)}" for run, names in runs.items())
        + "."
        for commit, runs in made.items()
    ]


def summary(found: Mapping[str, Any], auroc: Mapping[str, Any] | None = None) -> str:
    """What the README shows: how many claims hold, and each with one number, as Markdown."""
    judged = claims(found, auroc)
    return f"{len(judged)} claims: {counted(judged)}.\n\n{claims_short(judged).markdown()}\n"
