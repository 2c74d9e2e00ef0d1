"""What a method is: the problem that it is given, the outcome that it returns, its description."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mansu.errors import BadInputError
from mansu.progress import OnStep, Step, silent
from mansu.settings import Setting, configure, settings_of, typed_in

if TYPE_CHECKING:  # titles and settings are read where torch is not needed
    from torch import Tensor

    from mansu.subjects.edit import Edit
    from mansu.subjects.subject import Subject
    from mansu.tasks.facts import Task
    from mansu.tasks.tokens import Examples

Watch = Callable[[int], bool]
"""Called after each step with the number of steps done; True ends the method there."""


@dataclass(frozen=True)
class Problem:
    """What a method is given.

    Attributes:
        subject: the model, unedited; a method leaves it bit for bit as it found it.
        task: the task (for its margins).
        forget, retain: tokenised splits. text: (tokens ``[N, T]``, length ``[N]``) to keep.
        mask: the circuit's parameters, name → bool tensor of the parameter's shape; None for
            methods that are not restricted to a circuit.
        candidates: those of a wider circuit, of which MANSU picks what it moves; None: of the mask.
        seed: of everything random.
        on_step: hears of each step: stage ``unlearn``, with the losses and counts as values.
        watch: called while the subject has the weights of the step just done, to measure them or
            to end the method. These are the weights that the method would return if it ended
            there, but for MANSU, which returns those of the best of its own checks.
    """

    subject: Subject
    task: Task
    forget: Examples
    retain: Examples
    text: tuple[Tensor, Tensor]
    mask: Mapping[str, Tensor] | None = None
    candidates: Mapping[str, Tensor] | None = field(default=None, kw_only=True)
    seed: int = 0
    on_step: OnStep = field(default=silent, repr=False, compare=False)
    watch: Watch | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a method returns: the edit and what happened on the way.

    Attributes:
        edit: the change of the parameters.
        history: a record of each step.
        stopped: why it stopped, a sentence.
        settings: every setting that it ran with, as JSON values, those chosen for the subject and
            task too: run with them again, it makes the same edit.
    """

    edit: Edit
    history: tuple[Step, ...]
    stopped: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """What the search for a method's defaults varies (``experiments.search``).

    Attributes:
        origin: the rate that the grid is multiples of: that of the authors' code.
        rate: the name of the setting that is the rate.
        steps: after how many steps each rate is measured, ascending.
        apart: a run of fewer steps is another one, not the beginning of a longer: its rate falls
            towards its end, and it may end before.
    """

    origin: float
    rate: str = "learning_rate"
    steps: tuple[int, ...] = (4, 8, 12)
    apart: bool = False


@dataclass(frozen=True)
class Method:
    """A way to unlearn, described once: command line, app, model card and search render it.

    ``named("npo")(problem, beta=0.2).edit`` runs one.

    Attributes:
        name: in commands, files and folders. title: as papers write it. about: one sentence.
        settings: a frozen dataclass of ``mansu.settings.setting`` fields, one a setting.
        run: the work, on checked settings; call the method itself instead.
        kind: MANSU, a baseline of the literature, a control (moves that know nothing of what is to
            be forgotten, or the retrained reference), or an ablation: MANSU with one of its parts
            off.
        search: what the search for its defaults varies; None where there is none.
        preset: settings that make an ablation what it is, which cannot be given.
    """

    name: str
    title: str
    about: str
    settings: type
    run: Callable[[Problem, Any], Outcome]
    kind: Literal["mansu", "baseline", "control", "ablation"]
    search: Search | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Setting]:
        """The settings that can be given, by name, in order."""
        known = settings_of(self.settings)
        return {name: about for name, about in known.items() if name not in self.preset}

    def configure(self, values: Mapping[str, Any]) -> Any:
        """Its settings dataclass with these values, each checked, and defaults for the others.

        Raises:
            BadInputError: an unknown name, a value of another type or out of range, or a preset
                setting with another value.
        """
        settings = configure(self.settings, {**self.preset, **values}, self.name)
        for name, value in self.preset.items():
            if getattr(settings, name) != value:
                raise BadInputError(
                    f"The setting {name} of {self.name} is always {json.dumps(value)}: run another "
                    "method, or leave it out."
                )
        return settings

    def changed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that can be given and are not the default."""
        options = self.options()
        return {n: v for n, v in values.items() if n in options and v != options[n].default}

    def __call__(self, problem: Problem, **values: Any) -> Outcome:
        """Run it.

        The subject's lock is held, and the subject is bit for bit as before when this ends, also
        where an exception ended it. One that ``on_step`` or ``watch`` raises cancels the method.

        Raises:
            BadInputError: a bad setting, or a problem that lacks what the method needs.
        """
        settings = self.configure(values)

        def named(step: Step) -> Step:
            return dataclasses.replace(step, method=self.name)

        given = dataclasses.replace(problem, on_step=lambda step: problem.on_step(named(step)))
        with problem.subject.lock:  # nobody else's edit may be on meanwhile
            made = self.run(given, settings)
        meta = {"method": self.name, **made.settings, "seed": problem.seed}
        meta |= {"subject": problem.subject.name, "fingerprint": problem.subject.fingerprint}
        edit = dataclasses.replace(made.edit, label=self.name, meta=meta)
        return dataclasses.replace(made, edit=edit, history=tuple(map(named, made.history)))


def parse_settings(method: Method, items: Sequence[str]) -> dict[str, Any]:
    """What ``--set NAME=VALUE`` gave, checked: ``["rate=0.03"]`` → ``{"rate": 0.03}``.

    Args:
        items: each with a JSON value. A name given twice has its last value.

    Raises:
        BadInputError: an item of another form, or a setting that ``method.configure`` refuses.
    """
    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise BadInputError(
                f"--set {item!r:.60} has no value: write NAME=VALUE, e.g. rate=0.03."
            )
        values[name] = typed_in(value)
        if values[name] == value:  # it is no JSON
            raise BadInputError(
                f"--set {item!r:.60}: {value!r:.40} is no number, true, false or null."
            )
    settings = method.configure(values)
    return {name: getattr(settings, name) for name in values}
