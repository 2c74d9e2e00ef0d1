"""What the lesson measures: the tiny subject, the edits of it, and what is asked of them.

Each thing is made when a step first asks for it, once for everybody on this server. Nothing here
draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor

import mansu
from mansu import methods, quant, subjects, tasks
from mansu.circuits import Circuit
from mansu.circuits.graph import graph_of
from mansu.circuits.silence import silenced
from mansu.evidence import Verdict, controls
from mansu.evidence.cad import PLACES
from mansu.evidence.concealed import concealed
from mansu.evidence.relearning import Relearned, halves, relearning
from mansu.evidence.tradeoff import Cell, grid
from mansu.measure.scores import Scores, measure_sets
from mansu.methods import Problem
from mansu.methods.graddiff import Settings as GradDiff
from mansu.methods.training import TrainingSettings
from mansu.progress import OnStep, Step, silent
from mansu.quant.block import Bin, bin_of
from mansu.quant.survival import Kept, NF4Report
from mansu.subjects import Edit, Subject
from mansu.tasks import Task
from mansu.tasks.tokens import Examples

TASK = "tiny-colours"

PLACE = ("model.layers.1.mlp.down_proj.weight", 2903)
"""The weight that the lesson follows, by its tensor and its place in it: one that MANSU moves."""

GENTLE: Mapping[str, Any] = {"learning_rate": GradDiff.RATE}
"""The rate that the method's search found on a real model: this toy hardly feels it."""

STRONG: Mapping[str, Any] = {"learning_rate": 3e-4, "steps": 40}
"""A rate and a length that make the toy forget."""

SILENCED = 3
"""Nodes that are switched off in one go."""

DRAWS = 20
"""Random choices of so many nodes, whose mean is shown."""

EDITS = ("mansu", "ordinary", "retrained")
"""The edits of the last step, by the number that a student sees."""


@dataclass(frozen=True)
class Asked:
    """Scores of an edit by set, in full precision and in NF4."""

    full: dict[str, Scores]
    nf4: dict[str, Scores]


class Bench:
    """The lesson's model and task, and what was measured of them.

    Args:
        subject, task: any; the lesson's own are ``tiny`` and ``tiny-colours``.
    """

    def __init__(self, subject: Subject, task: Task) -> None:
        self.subject, self.task = subject, task
        self._made: dict[str, Any] = {}
        self._lock = RLock()

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:  # what is made is given at once, whatever else is being made
            with self._lock:
                if name not in self._made:
                    self._made[name] = make()
        return self._made[name]

    def prepare(self, on_step: OnStep = silent) -> None:
        """Make everything that the lesson measures, so that no step has to wait."""
        makers: list[Callable[[], Any]] = [
            *(partial(self.report, name) for name in ("gentle", "ordinary")),
            *(partial(self.asked, name) for name in ("gentle", "ordinary", "concealed")),
            self.grid,
            self.without_some,
            *(partial(self.kept, name) for name in ("ordinary", "mansu")),
            *(partial(self.asked, name) for name in ("mansu", "suppressor")),
            *(partial(self.relearned, name) for name in ("mansu", "suppressor", "ablation")),
            *(partial(self.verdict, name) for name in EDITS),
        ]
        for done, make in enumerate(makers):
            on_step(Step("lesson", done, len(makers)))
            make()
        on_step(Step("lesson", len(makers), len(makers)))

    # One weight.

    @property
    def block(self) -> Tensor:
        """``[64]``: the block of the weight that is followed."""
        name, place = PLACE
        start = place // 64 * 64
        return self.subject.parameters[name].detach().flatten()[start : start + 64]

    @property
    def bin(self) -> Bin:
        """Where the weight that is followed lies."""
        return bin_of(self.block, PLACE[1] % 64)

    def moved_to(self, edit: Edit) -> float | None:
        """Where an edit puts that weight, in units of its block's absmax; None if it stays."""
        name, place = PLACE
        where, values = edit.changes.get(name, (torch.empty(0, dtype=torch.long), torch.empty(0)))
        where = where.nonzero()[:, 0] if where.dtype == torch.bool else where
        found = (where == place).nonzero()
        if not len(found):
            return None
        return float(values[int(found[0])] / self.block.abs().max())

    # The model, asked.

    def rows(self) -> dict[str, Examples]:
        """Every split that has rows, tokenised."""
        splits = ("forget", "paraphrase", "retain", "holdout", "neighbour")

        def make() -> dict[str, Examples]:
            found = {s: tasks.examples(self.task, self.subject, s) for s in splits}
            return {split: rows for split, rows in found.items() if len(rows)}

        return self._once("rows", make)

    def base(self) -> Asked:
        """The unedited model."""
        return self._once("base", lambda: self._asked(Edit({}, "unedited")))

    def asked(self, name: str) -> Asked:
        """The model with one of ``edit``'s."""
        return self._once(f"asked {name}", lambda: self._asked(self.edit(name)))

    def _asked(self, edit: Edit) -> Asked:
        rows = self.rows()
        with edit.applied(self.subject):
            full = measure_sets(self.subject, list(rows.values()))
            with quant.quantized(self.subject):
                nf4 = measure_sets(self.subject, list(rows.values()))
        return Asked(dict(zip(rows, full, strict=True)), dict(zip(rows, nf4, strict=True)))

    # Edits.

    def edit(self, name: str) -> Edit:
        """``gentle`` and ``ordinary`` (gradient difference at two rates), ``concealed`` (the same,
        held inside its bins), ``mansu``, ``suppressor`` or ``retrained``."""
        makers: dict[str, Callable[[], Edit]] = {
            "gentle": partial(self._trained, GENTLE),
            "ordinary": partial(self._trained, STRONG),
            "concealed": lambda: concealed(self._problem(), TrainingSettings(**STRONG)),
            "mansu": lambda: mansu.unlearn(self.subject, self.task, self.circuit()),
            "suppressor": self._suppressor,
            "retrained": lambda: methods.named("retrained")(self._problem()).edit,
        }
        return self._once(f"edit {name}", makers[name])

    def _problem(self) -> Problem:
        rows = self.rows()
        text = tasks.text(self.task, self.subject)
        return Problem(self.subject, self.task, rows["forget"], rows["retain"], text)

    def _trained(self, settings: Mapping[str, Any]) -> Edit:
        """Of weights that NF4 stores: what it does not, would carry an edit through it."""
        train = methods.named("graddiff")
        return train(self._problem(), **settings, only_quantized=True).edit

    def _suppressor(self) -> Edit:
        """That at the output which MANSU's verdict compares it with: one name, one edit."""
        rows, accuracy = self.rows(), self.asked("mansu").full["forget"].accuracy
        hiding = controls.suppression(self.subject, rows["forget"], rows["retain"], PLACES[0])
        return hiding.reaching(controls.suppressed_percent(accuracy) / 100)

    def report(self, name: str) -> NF4Report:
        """What NF4 keeps of an edit."""
        edit = self.edit(name)
        return self._once(f"report {name}", lambda: quant.report(self.subject, edit))

    def kept(self, name: str) -> dict[str, Kept]:
        """What each format keeps of an edit, by the format's name."""

        def make() -> dict[str, Kept]:
            found = quant.kept_by_format(self.subject, self.edit(name))
            return {str(format): kept for format, kept in found.items()}

        return self._once(f"kept {name}", make)

    # Where, and how far.

    def grid(self, on_step: OnStep = silent) -> tuple[Cell, ...]:
        """Survival, forgetting and damage by how many weights move and how far."""
        rows = self.rows()
        kept = {split: rows[split] for split in ("retain", "holdout") if split in rows}

        def make() -> tuple[Cell, ...]:
            edit = self.edit("ordinary")
            return grid(self.subject, edit, rows["forget"], kept, on_step=on_step)

        return self._once("grid", make)

    def forgotten(self) -> float:
        """The highest forget accuracy that the task counts as forgotten."""
        return self.base().nf4["forget"].accuracy - self.task.margin

    def circuit(self) -> Circuit:
        """The circuit of what is to be forgotten, with its parameters."""

        def make() -> Circuit:
            found = mansu.attribute(self.subject, self.task)
            self._made["scores"] = found.scores
            return mansu.find_circuit(self.subject, self.task, found)

        return self._once("circuit", make)

    def nodes(self) -> dict[int, str]:
        """Every head and MLP by its number in the graph, and what it is called."""
        graph = graph_of(self.subject)
        found = {}
        for node in range(1, graph.n_sources):
            layer, head = divmod(node - 1, graph.n_heads + 1)
            what = "MLP" if head == graph.n_heads else f"head {head}"
            found[node] = f"layer {layer} {what}"
        return found

    def importance(self) -> dict[int, float]:
        """|attribution| of each head and MLP, all that it writes together."""
        self.circuit()
        scores: Tensor = self._made["scores"]
        return {node: abs(float(scores[node].sum())) for node in self.nodes()}

    def strongest(self) -> tuple[int, ...]:
        """The nodes of largest attribution."""
        importance = self.importance()
        return tuple(sorted(importance, key=lambda node: -importance[node])[:SILENCED])

    def without(self, nodes: tuple[int, ...]) -> tuple[float, float]:
        """Forget and kept accuracy with some nodes switched off, full precision."""

        def make() -> tuple[float, float]:
            with silenced(self.subject, nodes).applied(self.subject):
                rows = self.rows()
                forget, kept = measure_sets(self.subject, [rows["forget"], rows["retain"]])
            return forget.accuracy, kept.accuracy

        return self._once(f"silent {sorted(nodes)}", make)

    def without_some(self) -> tuple[float, float]:
        """The mean of ``without`` over random choices."""
        rng = random.Random(0)
        drawn = [tuple(rng.sample(sorted(self.nodes()), SILENCED)) for _ in range(DRAWS)]
        found = [self.without(nodes) for nodes in drawn]
        return sum(f for f, _ in found) / DRAWS, sum(k for _, k in found) / DRAWS

    # Hidden or gone.

    def relearned(self, name: str) -> Relearned:
        """Relearning of ``mansu``, ``suppressor``, or ``ablation`` (it does not know the facts)."""

        def make() -> Relearned:
            mask = self.circuit().mask
            assert mask is not None  # find_circuit gives one
            ablated = name == "ablation"
            edit = controls.ablation(self.subject, mask.tensors()) if ablated else self.edit(name)
            halved = self._once("halves", lambda: halves(self.task, self.subject))
            return relearning(self.subject, self.task, edit, halved)

        return self._once(f"relearned {name}", make)

    def verdict(self, name: str, on_step: OnStep = silent) -> Verdict:
        """The verdict on an edit."""
        edit, circuit = self.edit(name), self.circuit()

        def make() -> Verdict:
            return mansu.judge(self.subject, self.task, edit, circuit, on_step=on_step)

        return self._once(f"verdict {name}", make)


def load() -> Bench:
    """The lesson's own bench."""
    return Bench(subjects.load(subjects.TINY), tasks.load(TASK))
