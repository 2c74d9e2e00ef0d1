"""What a run and a subject share, made once: a server and a command line use it alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, partial

import torch
from torch import Tensor

from mansu import quant, tasks
from mansu.circuits.gradients import Factors
from mansu.evidence.cad import Signals
from mansu.evidence.controls import Suppression, suppression
from mansu.evidence.relearning import halves
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.measure.drift import Reference, texts
from mansu.measure.scores import EVALUATED, Measurement, measure_task, measured_rows
from mansu.methods.keep import kept_text
from mansu.progress import OnStep, silent
from mansu.subjects.edit import Edit
from mansu.subjects.lower import LowerLayers, first_changed, quarters
from mansu.subjects.own_text import Rows
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, Pairs

SPARSE = 0.05
"""Edits of a smaller share of the parameters are quantised block by block from a cache of the
unedited model; a denser one touches so many blocks that it is quantised as a whole."""

FEWEST = 4
"""Facts that a circuit was not found on, below which they are too few to try it on alone."""


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
        self._suppressions: dict[str, Suppression] = {}
        self._references: dict[bool, Reference] = {}
        self._lower: dict[bool, LowerLayers] = {}

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
        """At most as many pairs that the circuit was not found on, drawn; None without any.

        Of facts that it was not found on, whose prompts no pair of it has as its corrupt one. Where
        there are fewer such facts than ``FEWEST``, of all rows that it was not found on.
        """
        mine, seed = self.pairs, self.settings.seed
        every = tasks.pairs(self.task, self.subject, seed=seed)
        fact, clean = every.clusters.tolist(), _prompts(every.clean, every.length)
        chosen, corrupt = set(mine.rows), set(_prompts(mine.corrupt, mine.length))
        known = {fact[i] for i, row in enumerate(every.rows) if row in chosen}
        left = [i for i, row in enumerate(every.rows) if row not in chosen]
        fresh = [i for i in left if fact[i] not in known and clean[i] not in corrupt]
        if len({fact[i] for i in fresh}) >= FEWEST:
            left = fresh
        drawn = random.Random(seed).sample(left, min(len(left), len(mine)))
        return every.select(sorted(drawn)) if drawn else None

    def rows(self, split: str) -> Examples:
        """A tokenised split."""
        if split not in self._rows:
            seed = self.settings.seed
            self._rows[split] = tasks.examples(self.task, self.subject, split, seed=seed)
        return self._rows[split]

    @cached_property
    def text(self) -> Rows:
        """Plain text to keep: tokens ``[N, T]``, length ``[N]``."""
        return tasks.text(self.task, self.subject)

    @cached_property
    def kept_text(self) -> Rows:
        """``text``, and what the unedited model says itself, also of what the facts are about."""
        return kept_text(self.subject, self.text, self.rows("forget"), seed=self.settings.seed)

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

    def suppression(self, place: str) -> Suppression:
        """CAD's control that only hides, at any strength, in one of ``cad.PLACES``."""
        if place not in self._suppressions:
            self._suppressions[place] = suppression(
                self.subject, self.rows("forget"), self.rows("retain"), place
            )
        return self._suppressions[place]

    def reference(self, *, nf4: bool) -> Reference:
        """What the unedited model writes of itself, and how it expects it: the first time now.

        On the unedited subject; as it runs in NF4 with ``nf4``.
        """
        if nf4 not in self._references:
            rows = self.own_text  # of the model in full precision, also where NF4 is asked for
            with quant.quantized(self.subject, self.nf4) if nf4 else nullcontext():
                self._references[nf4] = Reference.of(self.subject, *rows)
        return self._references[nf4]

    def measured(
        self, *, nf4: bool, edit: Edit | None = None, reference: Reference | None = None
    ) -> Measurement:
        """The task on the subject as it now is, which is unedited or has ``edit``.

        What enters some layers of the unedited model is kept, so that only those from the first
        that an edit changes run again.
        """
        seed, subject = self.settings.seed, self.subject
        if nf4 not in self._lower:
            rows = measured_rows(subject, self.task, seed=seed).values()
            length = torch.cat([each.length for each in rows])
            self._lower[nf4] = LowerLayers(subject, length, quarters(subject))
        changed = None if edit is None else first_changed(subject, edit.changes)
        hidden = partial(self._lower[nf4].hidden, changed=changed)
        return measure_task(subject, self.task, seed=seed, reference=reference, hidden=hidden)

    @cached_property
    def own_text(self) -> Rows:
        """Text of the unedited model, which no method is given."""
        return texts(self.subject, self.task, seed=self.settings.seed)

    @cached_property
    def halves(self) -> tuple[Examples, Examples]:
        """The forget set, half to relearn and half to ask for."""
        return halves(self.task, self.subject, seed=self.settings.seed)

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
        self._references.clear()


def _prompts(tokens: Tensor, length: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[:n].tolist()) for row, n in zip(tokens, length, strict=True)]
