"""The retrained reference: what exact unlearning would give, as an edit like any other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mansu import subjects, tasks
from mansu.errors import BadInputError
from mansu.methods.method import Method, Outcome, Problem
from mansu.subjects.shipped import REFERENCES
from mansu.tasks.facts import Task


@dataclass(frozen=True)
class Settings:
    """None: the reference is one."""


def reference(subject: str, task: Task) -> str:
    """Name of the shipped subject that was trained without the task's forget set.

    Raises:
        BadInputError: none ships for this subject and these facts.
    """
    found = REFERENCES.get((subject, task.name))
    if found is None or _facts(task) != _facts(tasks.load(task.name)):
        pairs = ", ".join(f"{wanted} on {name}" for name, wanted in REFERENCES)
        raise BadInputError(
            f"No retrained reference ships for the forget facts of {task.name!r} on {subject!r}, "
            f"only for {pairs}: run another method."
        )
    return found


def _facts(task: Task) -> Collection[tuple[str, str]]:
    return {(fact.prompt, fact.answer) for fact in task.split("forget")}


def run(problem: Problem, settings: Settings) -> Outcome:
    """Give every weight its value in the reference.

    Raises:
        BadInputError: none ships for this subject and task.
    """
    subject = problem.subject
    name = reference(subject.name, problem.task)
    retrained = subjects.load(name, dtype=subject.dtype)
    edit = subjects.Edit.between(subject.parameters, retrained.parameters)
    return Outcome(edit, (), f"every weight is that of {name}, trained without the facts", {})


METHOD = Method(
    name="retrained",
    title="Retrained",
    about="A control: the reference of exact retraining, the same model trained by the same recipe "
    "without the forget facts. It ships for the tiny subject and its own task only.",
    settings=Settings,
    run=run,
    kind="control",
)
