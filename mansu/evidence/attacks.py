"""Recovery attacks: what brings back what an edit removed?

An attacker who has half of the forget facts asks for the other half, on which every attack is
scored: as they are, after a hint, after demonstrations, after fine-tuning on the half that is
known (``mansu.evidence.relearning``), and in each low-bit format. The same attacks on the unedited
model are the control, since they also cost accuracy.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mansu import quant, tasks
from mansu.evidence.relearning import STEPS, budget, ended, halves, relearn
from mansu.measure.scores import Scores, measure
from mansu.progress import OnStep, Step, silent
from mansu.statistics import Interval, change
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples, Reading

SHOTS = 3
"""Demonstrations before a question, each of another answer."""


FORMATS: Mapping[str, quant.Format] = {
    "NF4": quant.NF4,
    "FP4": quant.Format("fp4"),
    "int8": quant.Format("int8"),
}


ATTACKS: Mapping[str, str] = {
    "none": "As is",
    "paraphrase": "Paraphrase",
    "hint": "Hint",
    "demonstrations": "Examples",
    "relearning": "Relearning",
    **{name: name for name in FORMATS},
}
"""Every attack in order, with its title for people."""


@dataclass(frozen=True)
class Material:
    """What an attacker has and what is asked.

    Attributes:
        known: the forget rows that may be used. asked: those that are asked for; their
            distractors are no answers of ``known``, unless the task gives them.
        hinted: ``asked`` behind a sentence that names the domain. shown: ``asked``, each behind
            ``SHOTS`` known facts that do not contain its answer (rows without so many left out).
            Of both, rows that are then longer than the model's context are left out.
    """

    known: Examples
    asked: Examples
    hinted: Examples
    shown: Examples


@dataclass(frozen=True)
class Attacks:
    """Scores under each attack on one model, edited or not.

    Attributes:
        scores: by attack, in the order of ``ATTACKS``; ``paraphrase`` (the task's own split, all
            answers), ``hint`` and ``demonstrations`` are absent where there are no rows for them,
            and ``relearning`` where it was cut short (``cut_short``).
        curve: scores after 0, 1, … steps of relearning; the last is ``scores["relearning"]``.
        settings: the budget, as JSON values.
    """

    scores: Mapping[str, Scores]
    curve: tuple[Scores, ...]
    settings: Mapping[str, Any]

    def accuracy(self, attack: str) -> Interval:
        """4-way accuracy under an attack, with its interval over facts."""
        return self.scores[attack].interval

    def recovered(self, attack: str) -> Interval | None:
        """Accuracy under an attack minus that without one, paired; None for other questions, and
        where there is none under it."""
        before, after = self.scores["none"], self.scores.get(attack)
        if after is None or before.rows != after.rows:
            return None
        gain = after.correct.astype(float) - before.correct.astype(float)
        return change(gain, after.clusters)

    def cut_short(self, of: str) -> str | None:
        """Why nothing is known of relearning, a sentence: its loss became infinite before its end.

        Args:
            of: whose it is, for people.
        """
        steps = len(self.curve) - 1
        asked = self.settings.get("steps", steps)
        return ended(of, steps, asked) if steps < asked else None

    def to_json(self) -> dict[str, Any]:
        return {
            "scores": {name: scores.to_json() for name, scores in self.scores.items()},
            "curve": [scores.to_json() for scores in self.curve],
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Attacks:
        """Read what ``to_json`` made; raises as ``Scores.from_json`` does."""
        scores = {name: Scores.from_json(found) for name, found in value["scores"].items()}
        curve = tuple(Scores.from_json(found) for found in value["curve"])
        found = cls(scores, curve, dict(value["settings"]))
        if found.cut_short(""):
            scores.pop("relearning", None)  # an earlier MANSU wrote what the last step had brought
        elif "relearning" not in scores:
            raise KeyError("relearning")
        if "none" not in scores:
            raise KeyError("none")
        return found


def material(task: Task, subject: Subject, *, seed: int = 0) -> Material:
    """Split the forget set into what is known and what is asked, and build the hints.

    Raises:
        MansuError: the forget set is too small to split.
    """
    known, asked = halves(task, subject, seed=seed)
    readings = {r.fact.row: r for r in tasks.read(task.split("forget"), subject)[0]}
    prefixes = _demonstrations([readings[row] for row in known.rows], subject, asked, seed)
    some = [i for i, prefix in enumerate(prefixes) if prefix is not None]
    return Material(
        known,
        asked,
        _behind(asked, [f"Topic: {task.title}. "] * len(asked), readings, subject),
        _behind(asked.select(some), [prefixes[i] or "" for i in some], readings, subject),
    )


def _demonstrations(
    known: Sequence[Reading], subject: Subject, asked: Examples, seed: int
) -> list[str | None]:
    """For each asked row ``SHOTS`` known facts as text, or None where there are not so many."""
    texts = [f"{subject.without_prefix(r.fact.prompt)}{r.gap}{r.fact.answer}. " for r in known]
    tokens = [set(subject.encode(text)) for text in texts]
    rng = random.Random(seed)
    found: list[str | None] = []
    for answer in asked.answer.tolist():
        chosen: dict[str, str] = {}  # by answer: three rephrasings of one fact would be one shot
        for i in rng.sample(range(len(known)), len(known)):
            if answer not in tokens[i] and len(chosen) < SHOTS:
                chosen.setdefault(known[i].fact.answer, texts[i])
        found.append("".join(chosen.values()) if len(chosen) == SHOTS else None)
    return found


def _behind(
    rows: Examples, prefixes: Sequence[str], readings: Mapping[int, Reading], subject: Subject
) -> Examples:
    """The same questions, each with its text in front, where they fit the model's context."""
    some, prompts = [], []
    for i, (prefix, row, answer) in enumerate(
        zip(prefixes, rows.rows, rows.answer.tolist(), strict=True)
    ):
        r = readings[row]
        prompt = prefix + subject.without_prefix(r.fact.prompt)
        head, tail = subject.continuation(prompt, r.gap + r.fact.answer)
        if tail == [answer] and subject.fits(len(head)):
            some.append(i)
            prompts.append(head)
    tokens, length = tasks.pad(prompts)
    return replace(rows.select(some), tokens=tokens, length=length)


def attack(
    subject: Subject,
    task: Task,
    *,
    paraphrase: Scores | None = None,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Attacks:
    """Run every attack on the subject as it now is, and leave it bit for bit like that.

    Use it inside ``edit.applied(subject)`` to attack an edit.

    Args:
        paraphrase: what the model scores on the task's paraphrases, measured before.

    Raises:
        MansuError: the forget set is too small to split.
    """
    have = material(task, subject, seed=seed)
    scores: dict[str, Scores] = {}
    done, total = itertools.count(1), 1 + STEPS + len(FORMATS)

    def report(part: str) -> None:
        on_step(Step("attacks", next(done), total, part=part))

    scores["none"] = measure(subject, have.asked)
    if paraphrase is not None:
        scores["paraphrase"] = paraphrase
    if len(have.hinted):
        scores["hint"] = measure(subject, have.hinted)
    if len(have.shown):
        scores["demonstrations"] = measure(subject, have.shown)
    report("the questions")
    curve = relearn(
        subject, task, have.known, have.asked, seed=seed, on_step=lambda step: report(step.part)
    )
    settings = asdict(budget(subject))
    if len(curve) > settings["steps"]:  # else its loss became infinite
        scores["relearning"] = curve[-1]
    for name, format in FORMATS.items():
        with quant.quantized(subject, format=format):
            scores[name] = measure(subject, have.asked)
        report(name)
    sizes = {"shots": SHOTS, "known": len(have.known), "asked": len(have.asked)}
    return Attacks(scores, curve, {**settings, **sizes})
