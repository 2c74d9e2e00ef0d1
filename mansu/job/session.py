"""What a run and a subject share, made once: a server and a command line use it alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from mansu import quant, tasks
from mansu.circuits.gradients import Factors
from mansu.evidence.cad import Signals
from mansu.evidence.controls import Suppression
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.measure.scores import EVALUATED
from mansu.progress import OnStep, silent
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, Pairs

SPARSE = 0.05
"""Edits of a smaller share of the parameters are quantised block by block from a cache of the
unedited model; a denser one touches so many blocks that it is quantised as a whole."""


class Session:
    """A run with its subject loaded, and what work on the two needs, made when first asked for.

    Attributes:
        run, subject: as given.

    Use: ``perform(Session(run, mansu.load(run.subject)), JUDGE, "mansu")``.

    Raises:
        MismatchError: the subject is not the one that the run measured.
    """

    def __init__(self, run: Run, subject: Subject) -> None:
        run.check(subject)
        self.run, self.subject = run, subject
        self._rows: dict[str, Examples] = {}
        self._signals: Signals | None = None
        self._factors: Sequence[Factors] = ()

    @property
    def settings(self) -> Settings:
        return self.run.settings

    @cached_property
    def task(self) -> tasks.Task:
        return self.run.task()

    @cached_property
    def pairs(self) -> Pairs:
        """The clean–corrupt pairs of the forget set that the circuit is found on."""
        n, seed = self.settings.pairs, self.settings.seed
        return tasks.pairs(self.task, self.subject, n=n, seed=seed)

    @cached_property
    def others(self) -> Pairs | None:
        """As many pairs that the circuit was not found on; None where there are none."""
        every = tasks.pairs(self.task, self.subject)
        rows = [i for i, row in enumerate(every.rows) if row not in self.pairs.rows]
        return every.select(rows[: len(self.pairs)]) if rows else None

    def rows(self, split: str) -> Examples:
        """A tokenised split."""
        if split not in self._rows:
            seed = self.settings.seed
            self._rows[split] = tasks.examples(self.task, self.subject, split, seed=seed)
        return self._rows[split]

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Plain text to keep: tokens ``[N, T]``, length ``[N]``."""
        return tasks.text(self.task, self.subject)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What of the task cannot be used with this subject, by line, a sentence each."""
        found = [note for split in EVALUATED for note in self.rows(split).notes]
        return tuple(dict.fromkeys([*found, *self.pairs.notes]))

    def keep(self, factors: Sequence[Factors]) -> None:
        """Attribution's, so that ``signals`` need not make them again."""
        self._factors, self._signals = factors, None

    def signals(self, on_step: OnStep = silent) -> Signals:
        """CAD's view of the unedited model (for SmolLM2 a tenth of a gigabyte)."""
        if self._signals is None:
            self._signals = Signals(
                self.subject,
                self.pairs,
                steps=self.settings.steps,
                factors=self._factors,
                on_step=on_step,
            )
        return self._signals

    @cached_property
    def suppression(self) -> Suppression:
        """CAD's control that only hides, at any strength."""
        return Suppression(self.subject, self.rows("forget"), self.rows("retain"))

    @cached_property
    def nf4(self) -> quant.Dequantized:
        """The unedited weights in NF4: as much memory as the weights."""
        return quant.Dequantized.of(self.subject)

    def nf4_for(self, edit: Edit) -> quant.Dequantized | None:
        """``nf4``, where it is of use to quantise the edited model."""
        return self.nf4 if edit.fraction(self.subject) < SPARSE else None

    def release(self) -> None:
        """Let go of what is large; it is made again when asked for."""
        self.__dict__.pop("nf4", None)
