"""MANSU: Mechanistic-Aligned Null-Space Unlearning (arXiv 2605.15138).

Only weights of the circuit and beside it move, along directions that the retain inputs do not see,
weighed by the diagonal Fisher of the retain log-likelihood, and a weight moves to the centre of
another NF4 code of its own block or not at all (the magnitude floor): what moves is there after
NF4, by construction. Of these centres it takes only those that also lie in another bin of larger
blocks, of FP4 and of int8, so that the floor holds in every format of ``nf4.FORMATS``.

Which of them: the minimal circuit does the task alone, but not alone in the model. So they are
picked from the heads and neurons of a more faithful one (the mask's candidates, a tenth of the
parameters at most; a toy has the mask alone), weight by weight: those that the forget facts hang on
most for what hangs on them of what is kept (``mansu.methods.selective``).

Only how the answer is read out changes, not what a model gathers of the thing it is about, for
whatever may be asked. So weights move from half of the depth on (in a toy from the first layer on
where the circuit's heads read); and of the forget objective only what reaches a weight by its use
at a prompt's last token counts, but keys and values, which are read there, at every token. And the
retain inputs include these things, and common ones, with much else that may be said of them. So
other facts are kept.

The optimiser moves each weight's wish, and ``mansu.methods.movable`` rounds wishes to centres.
Gradients are always those of the rounded model, which corrects what the rounding did. What is
checked and returned are the wishes' running means, since a step of all weights swings what is kept.

The forget objective makes the answer indistinguishable among the candidate answers, not
impossible: the model is to say what it says to that form of asking on average. And it erases the
signal, what the nodes that move write differently for one fact than for another
(``mansu.methods.signal``). The retain objective is the KL divergence from the unedited model's
next-token distribution on retain facts and text, much of it the model's own
(``mansu.methods.keep``); it weighs more while kept answers lose. Steps go to the
full-precision model and to the NF4-dequantised one in turn: what a step mends in one alone drifts
in the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mansu.circuits.parameters import random_mask
from mansu.errors import BadInputError
from mansu.interrupts import put_back
from mansu.measure.geometry import ENERGY, fisher, projectors
from mansu.measure.scores import Scores, worst_fall, worst_nats
from mansu.methods.keep import common, prompts_of, said_of
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.movable import Movable
from mansu.methods.narrow import Narrow
from mansu.methods.objectives import Objectives, StepPack, sample
from mansu.methods.optimiser import Optimiser
from mansu.methods.selective import selective
from mansu.methods.signal import ATTENTION
from mansu.methods.training import bfloat16, chosen_bfloat16, products, steps
from mansu.progress import Step
from mansu.quant.swap import Dequantized, quantized, swapped
from mansu.settings import filled, setting
from mansu.statistics import at_most
from mansu.subjects.edit import Edit
from mansu.subjects.flows import watched
from mansu.subjects.lower import first_changed
from mansu.subjects.own_text import Rows, own_answers
from mansu.subjects.packing import together
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of, layer_of, lines
from mansu.tasks.facts import CHANCE
from mansu.tasks.tokens import entities, evenly

MEAN = 0.8
"""Share of the wishes' running mean that stays at each step."""

GEOMETRY_FACTS, GEOMETRY_TEXTS = 120, 12
"""Kept facts and texts, at most, that the projection and the Fisher information are taken from."""

FISHER_PROMPTS = 120
"""Prompts about the forgotten facts' things, at most, whose Fisher information counts as much."""

KEPT, TOY_KEPT, ALLOWED = 0.02, 0.05, 0.1
"""Nats that the kept answers may lose on the way before they weigh more, and half of what they may
have lost where MANSU stops: a verdict allows ``ALLOWED``, and neighbours, which nobody trains on,
lose twice as much. Then ``HARDER`` at each check, and ``EASIER`` again where they lose less."""

HARDER, EASIER, HARDEST = 1.5, 0.8, 8.0
CHECK_ROWS, CHECK_RETAIN = 96, 120
RATE, TOY_RATE = 0.12, 0.2
TOY_ENERGY = 0.3
SHARE = 0.005
CHECK_EVERY = 3
ALIKE = 0.1
"""Accuracies on a part of the rows differ by less than this by chance: of checks alike the latest
is kept, which the signal term has worked on longest."""

SLOWEST = 0.03
"""Share of the rate that a step has at least: the first half is taken at all of it, then less at
each, 1/18 of it at the last of 36."""

LEFT = 0.2
"""Share of the forget gradient, at most, where the facts are as good as forgotten: what that cost
is mended then, and more of it would have them avoided."""
NEAR = 0.2


@dataclass(frozen=True)
class Settings:
    rate: float | None = setting(
        None,
        "Step size, in NF4 bin widths a step.",
        low=0,
        above=True,
        empty=(RATE, TOY_RATE),
    )
    steps: int = steps(36)
    retain_weight: float = setting(
        1.0,
        "Weight of the retain objective, at least: it grows while kept answers lose more than "
        f"{KEPT} nats ({TOY_KEPT} in a toy model).",
        low=0,
    )
    form_weight: float = setting(
        0.25,
        "Weight, in the forget objective, of saying what the unedited model says to that form of "
        "asking on average over the facts, and not something absurd.",
        low=0,
    )
    signal_weight: float = setting(
        1.0,
        "Weight, in the forget objective, of what the nodes that move still write differently for "
        "one fact than for another. 0: the output alone is changed.",
        low=0,
    )
    energy: float | None = setting(
        None,
        "Share of the retain inputs' energy (squared norm) that the projection protects: less in a "
        "toy model, of whose few directions little else is left.",
        low=0,
        high=1,
        empty=(ENERGY, TOY_ENERGY),
    )
    fisher_weight: float = setting(
        1.0,
        "λ in the penalty $\\tfrac{\\lambda}{2} \\sum_i F_i \\delta_i^2$, with the diagonal Fisher "
        "information $F$ of the retain log-likelihood; but for a toy, half of it is that of what "
        "the model itself says of the forgotten facts' things.",
        low=0,
        source="arXiv 2605.15138, theorem 1",
    )
    share: float | None = setting(
        None,
        "Share of all parameters that may move: of the circuit's candidates, those that the forget "
        "facts hang on most for what hangs on them of what is kept (diagonal Fisher information). "
        "Empty: half a percent; in a toy all of the circuit's mask.",
        low=0,
        high=1,
        above=True,
        empty=(SHARE, 1.0),
    )
    circuit: bool = setting(
        True,
        "Move weights of the circuit and of the heads and neurons beside it (its candidates). Off "
        "for an ablation: of as many random heads and neurons.",
    )
    read_out: bool = setting(
        True,
        "Change only how the answer is read out of the thing that it is about. Off: also what is "
        "gathered of the thing, from which all else that is known of it is read.",
    )
    floor: bool = setting(
        True,
        "The magnitude floor: a weight moves to the centre of another NF4 code or not at all. Off "
        "for an ablation.",
    )
    project: bool = setting(
        True, "Project the forget gradient off the retain inputs' span. Off for an ablation."
    )
    every_format: bool = setting(
        True,
        "A moved weight also changes its code with double quantization, in blocks of 128, in FP4 "
        "and in int8. Off: in NF4 with blocks of 64 only, with somewhat shorter moves.",
    )
    budget: int | None = setting(
        None,
        "Move at most so many weights at any time, those that the optimiser wants to move "
        "furthest. Empty: no limit.",
        low=1,
    )
    target: float | None = setting(
        None,
        "Stop when forget accuracy is at most this, in full precision and in NF4, and what is "
        "kept is. Empty: a fifth of the way from chance (25 %) to what the task's margin asks for. "
        "Below 0: never.",
        low=-1,
        high=1,
    )
    bfloat16: bool | None = bfloat16()

    def chosen(self, problem: Problem) -> Settings:
        """With what is left to the subject, the task and the machine."""
        target = self.target
        in_bfloat16 = chosen_bfloat16(problem.subject, self.bfloat16)
        if target is None:
            target = CHANCE + NEAR * max(1 - problem.task.margin - CHANCE, 0)
        chosen = filled(self, problem.subject.is_toy)
        return replace(chosen, target=target, bfloat16=in_bfloat16)


def run(problem: Problem, settings: Settings) -> Outcome:
    """Move weights until the forget set is at the target, or the steps are used up.

    Every ``CHECK_EVERY`` steps forget and retain accuracy are measured in full precision and NF4;
    the best check is what is returned.

    Args:
        problem: with the circuit's mask and, but for a toy, its candidates.

    Raises:
        BadInputError: there is no mask, or it holds no quantised weight that may move.
    """
    if problem.mask is None:
        raise BadInputError("MANSU needs a circuit: run attribution and the circuit step first.")
    settings = settings.chosen(problem)
    work, watch = _Work(problem, settings), problem.watch
    history: list[Step] = []
    with work.put_back_after():
        for step in range(1, settings.steps + 1):
            values = work.step(step)
            work.follow(step)
            told = watch is not None and watch(step)
            last = told or step == settings.steps
            if last or step % CHECK_EVERY == 0:
                with work.averaged():
                    values |= work.check(step, last)
            history.append(Step("unlearn", step, settings.steps, values=values))
            problem.on_step(history[-1])
            if told or work.done:
                break
        best = work.best
        assert best is not None  # the last step is always checked
    edit = work.edit(best.values)
    why = _ending(history, work.done, settings, problem.task.tolerance)
    return Outcome(edit, tuple(history), f"Step {best.step} is kept: {why}.", asdict(settings))


class _Best(NamedTuple):
    """The check that is returned if no better one comes."""

    rank: tuple[bool, bool, int]
    step: int
    values: dict[str, Tensor]


class _Work:
    """MANSU at work: what may move, what holds it, and the best check so far."""

    best: _Best | None = None
    done = False  # whether the last check reached the target
    in_nf4 = False  # whether this step goes to the NF4 model
    forgotten = False  # whether the last check was within ``ALIKE`` of the target

    def __init__(self, problem: Problem, settings: Settings) -> None:
        subject = problem.subject
        assert settings.target is not None  # they are ``chosen``
        self.problem, self.settings, self.target = problem, settings, settings.target
        self.subject, self.rng = subject, random.Random(problem.seed)
        self._tell("quantising the unedited model")
        self.nf4_weights = Dequantized.of(subject)
        self._tell("measuring what hangs on the candidates' weights")
        self.things = entities(problem.forget)
        self.asked = prompts_of(subject, self.things)
        self.products = partial(products, subject, settings.bfloat16)
        self.narrow: dict[bool, Narrow] = {}
        if settings.bfloat16 and subject.dtype == torch.float32 and subject.offload is None:
            for nf4 in (False, True)[: 1 + settings.floor]:  # else NF4 is made anew each time
                with self._nf4_model() if nf4 else nullcontext():
                    self.narrow[nf4] = Narrow(subject)
        with self._stepped(nf4=False):
            mask, importance = self._selected(self._circuit())
        self.movable = Movable.of(subject, mask, self.nf4_weights, self.rng, settings.every_format)
        self.mean = torch.zeros_like(self.movable.wish)
        self.keys_and_values = {n: _keys_and_values(subject, n) for n in self.movable.places}
        self.prompts = together([self.asked, prompts_of(subject, common(subject))])
        self._tell("measuring the retain geometry")
        moving = {name: mask[name] for name in self.movable.places}
        with self._stepped(nf4=False), self.products():
            self.optimiser = self._optimiser(moving, importance)
        # Each model is held against itself unedited: NF4 alone is some tenths of a nat away from
        # full precision, and steps in NF4 would mend the quantisation, at all else's expense.
        self.objectives: dict[bool, Objectives] = {}
        for nf4 in (False, True):
            with self._stepped(nf4), self.products():  # as the steps have them, to the last bit
                self.objectives[nf4] = Objectives(
                    problem,
                    mask,
                    self.prompts,
                    first=first_changed(subject, mask),
                    signal_weight=settings.signal_weight,
                    form_weight=settings.form_weight,
                )
        self.part = sorted(sample(random.Random(problem.seed), len(problem.forget), CHECK_ROWS))
        self.retain_weight = settings.retain_weight
        self.may_lose = TOY_KEPT if subject.is_toy else KEPT
        self.kept = evenly(len(problem.retain), CHECK_RETAIN)
        (self.start,), (self.start_nf4,) = (self._measured([], nf4) for nf4 in (False, True))

    @contextmanager
    def _stepped(self, nf4: bool) -> Iterator[None]:
        """One of the two models that steps go to; a backward pass belongs into the block too."""
        with (
            self._nf4_model() if nf4 else nullcontext(),
            swapped(self.subject, self.narrow[nf4].weights if nf4 in self.narrow else {}),
        ):
            yield

    def _measured(self, forget: Sequence[int], nf4: bool) -> list[Scores]:
        """Of some forget rows, where there are any, and of what is kept; as steps see one of the
        two models: what is reported of an edit is measured later."""
        with self._stepped(nf4), self.products():
            return self.objectives[nf4].measured(forget, self.kept)

    def _tell(self, part: str) -> None:
        self.problem.on_step(Step("unlearn", 0, self.settings.steps, part=part))

    def _circuit(self) -> Mapping[str, Tensor]:
        """The weights to pick from."""
        problem, subject, settings = self.problem, self.subject, self.settings
        mask, more = problem.mask or {}, problem.candidates
        if not settings.circuit:
            generator = torch.Generator().manual_seed(problem.seed)
            mask = random_mask(subject, mask, generator).tensors()
            more = more and random_mask(subject, more, generator).tensors()
        if settings.read_out:
            # Candidates have heads in nearly every layer. A fact is gathered in the first half of
            # them and read out in the second (Geva et al. 2023, arXiv 2304.14767).
            half = subject.config.num_hidden_layers // 2
            return reading(subject, mask) if more is None else _from(subject, more, half)
        return mask if more is None else more

    def _selected(self, mask: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mask's weights that may move, and the Fisher information of what is kept on them:
        name → ``[n]`` at their entries, none where the settings ask for none."""
        problem, settings, subject = self.problem, self.settings, self.subject
        mask = {name: chosen for name, chosen in mask.items() if name in subject.quantized_names}
        retain = self._kept_fisher(mask) if mask and settings.fisher_weight else None
        assert settings.share is not None
        count = round(settings.share * subject.n_parameters)
        chosen = mask
        if sum(int(each.sum()) for each in mask.values()) > count:
            none = problem.text[0][:0], problem.text[1][:0]
            facts = problem.forget.some(GEOMETRY_FACTS)
            forget = fisher(subject, facts, none, mask, self.products)
            chosen = selective(forget, retain, mask, count)
        left = {name: retain[name][chosen[name][mask[name]]] for name in chosen} if retain else {}
        return chosen, left

    def _kept_fisher(self, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of kept facts and texts, and of what else is said of the forgotten facts' things: as much
        as of the facts, since there the neighbours of what is forgotten are."""
        problem, (tokens, length) = self.problem, self.asked
        facts = problem.retain.some(GEOMETRY_FACTS)
        found = fisher(self.subject, facts, self._text(), mask, self.products)
        if not len(tokens):  # a toy is asked nothing
            return found
        some = evenly(len(tokens), FISHER_PROMPTS)
        with self.products():
            said = own_answers(self.subject, (tokens[some], length[some]), seed=problem.seed)
        of_things = fisher(self.subject, said, (tokens[:0], length[:0]), mask, self.products)
        return {name: (value + of_things[name]) / 2 for name, value in found.items()}

    def _text(self) -> Rows:
        """The texts that the geometry is taken from."""
        tokens, length = self.problem.text
        some = evenly(len(tokens), GEOMETRY_TEXTS)
        return tokens[some], length[some]

    def _optimiser(self, mask: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Optimiser:
        """With the projection, where the settings ask for it, and the Fisher information."""
        settings, spans = self.settings, None
        if settings.project:
            assert settings.energy is not None
            retain = self.problem.retain.some(GEOMETRY_FACTS)
            said = together([self._text(), said_of(self.subject, self.things)])
            spans = projectors(self.subject, retain, said, mask, energy=settings.energy)
        importance = torch.zeros_like(self.movable.base)
        for name, place in self.movable.places.items() if found else ():
            everywhere = torch.zeros(mask[name].shape)
            everywhere[mask[name]] = found[name]
            importance[place.span] = everywhere.flatten()[place.where.cpu()].to(importance)
        assert settings.rate is not None
        return Optimiser(self.movable, settings.rate, settings.fisher_weight * importance, spans)

    def _nf4_model(self) -> AbstractContextManager[Subject]:
        # With the floor, what moved is at a code's centre and no absmax changed: the cache is
        # kept up to date instead of quantising everything again.
        return quantized(self.subject, self.nf4_weights if self.settings.floor else None)

    def step(self, step: int) -> dict[str, float]:
        """One step of the optimiser and the moves that it asks for, and what to record of them."""
        self.in_nf4 = step % 2 == 0
        forget_loss, forget, retain_loss, retain = self._gradients()
        left = 1 - (step - 1) / self.settings.steps
        share = max(min(1.0, 2 * left), SLOWEST)
        less = min(share, LEFT) if self.forgotten else 1
        self.optimiser.step(less * forget, retain, step, share)
        return {
            "in_nf4": float(self.in_nf4),
            "forget_loss": forget_loss,
            "retain_loss": retain_loss,
            "moved": self._move(),
        }

    def _gradients(self) -> tuple[float, Tensor, float, Tensor]:
        """Forget loss and gradients, retain loss and gradients, of the model that steps go to."""
        objectives, places = self.objectives[self.in_nf4], self.movable.places
        rows = objectives.sample(self.rng)
        forget, retain = (torch.zeros_like(self.movable.wish) for _ in range(2))
        forget_loss = retain_loss = 0.0
        weight = self.retain_weight
        with self._stepped(self.in_nf4):
            for pack in rows.packs(self.subject):

                def add(name: str, inputs: Tensor, outputs: Tensor, pack: StepPack = pack) -> None:
                    place, x, g = places[name], inputs[0], outputs[0]
                    forget[place.span] += place.gradient(*self._read(name, x, g, pack))
                    retain[place.span] += place.gradient(x[pack.kept], g[pack.kept])

                with watched(self.subject, places, see_gradient=add):
                    with self.products():
                        losses = objectives.losses(rows, pack)
                    (losses[0] + weight * losses[1]).backward()
                forget_loss += losses[0].item()
                retain_loss += losses[1].item()
        return forget_loss, forget, retain_loss, retain

    def _read(self, name: str, x: Tensor, g: Tensor, pack: StepPack) -> tuple[Tensor, Tensor]:
        """A map's inputs ``[T, in]`` and gradients ``[T, out]`` where its forget gradient is of."""
        everywhere, last = self.keys_and_values[name], pack.last
        if self.settings.read_out and not len(everywhere):
            # Rows of one prompt have one last token, whose gradient is of them all.
            alone = last.unique()
            last = last if len(alone) == len(last) else alone
            return x[last], g[last]
        x, g = x[pack.forgotten], g[pack.forgotten]
        if self.settings.read_out:
            unread = torch.ones_like(g, dtype=torch.bool)
            unread[pack.last] = False
            unread[:, everywhere] = False
            g = g.masked_fill(unread, 0)
        return x, g

    def follow(self, step: int) -> None:
        """Have the running mean of the wishes take in those of a step."""
        self.mean.lerp_(self.movable.wish, max(1 / step, 1 - MEAN))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights are where the mean of the wishes has them inside the block."""
        wish, self.movable.wish = self.movable.wish, self.mean
        try:
            self._move()
            yield
        finally:
            self.movable.wish = wish
            self._move()

    def _move(self) -> int:
        """Put the weights where their wishes and the budget have them; how many moved."""
        movable = self.movable
        values, moved = movable.moves(self.settings.floor, self.settings.budget)
        in_nf4 = torch.where(moved, values, movable.base_nf4)
        for name, place in movable.places.items():
            parameter, cached = self.subject.parameters[name].data, self.nf4_weights.weights[name]
            parameter.view(-1)[place.where] = values[place.span].to(parameter)
            cached.view(-1)[place.where] = in_nf4[place.span].to(cached)
            for nf4, narrow in self.narrow.items():
                narrow.set(name, place.where, (in_nf4 if nf4 else values)[place.span])
        return int(moved.sum())

    def check(self, step: int, last: bool) -> dict[str, float]:
        """Measure the weights as they are, and keep them if they are the best so far.

        What counts, in this order: what is kept, in accuracy and in nats, and forget accuracy near
        chance in both formats. Far below chance the answer is told by its avoidance. A part of the
        forget set is asked; all of it at the end, and where the part says that the target is
        reached.
        """
        every = range(len(self.problem.forget))
        found = self._checked(every if last else self.part)
        if not last and self._reached(found):
            found = self._checked(every)
        self.done = self._reached(found)
        self.retain_weight = min(
            max(
                self.retain_weight * (HARDER if found.retain_nats > self.may_lose else EASIER),
                self.settings.retain_weight,
            ),
            HARDEST,
        )
        self.forgotten = max(found.forget, found.forget_nf4) <= self.target + ALIKE
        furthest = max(abs(a - CHANCE) for a in (found.forget, found.forget_nf4))
        fell = not at_most(found.retain_fall, self.problem.task.tolerance)
        rank = (fell, found.retain_nats > ALLOWED, round(furthest / ALIKE))
        if self.best is None or rank <= self.best.rank:
            self.best = _Best(rank, step, self.values())
        return {
            "forget_accuracy": found.forget,
            "forget_accuracy_nf4": found.forget_nf4,
            "retain_fall": found.retain_fall,
            "retain_nats": found.retain_nats,
        }

    def values(self) -> dict[str, Tensor]:
        """What the weights that may move are, by name; no other ever changes."""
        places = self.movable.places.items()
        return {n: self.subject.parameters[n].data.view(-1)[place.where] for n, place in places}

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Have the weights that may move be what ``values`` said."""
        for name, some in values.items():
            self.subject.parameters[name].data.view(-1)[self.movable.places[name].where] = some

    @contextmanager
    def put_back_after(self) -> Iterator[None]:
        """The weights may move inside the block only, and are bit for bit what they were after.

        Holds ``subject.lock``.
        """
        with self.subject.lock:
            before = self.values()
            try:
                yield
            finally:
                put_back(lambda: self.put(before))

    def edit(self, values: Mapping[str, Tensor]) -> Edit:
        """The edit from the unedited model to ``values``: one weight at a time is there twice."""
        changes = {}
        with self.subject.lock:
            for name, some in values.items():
                parameter = self.subject.parameters[name].data
                new = parameter.clone()
                new.view(-1)[self.movable.places[name].where] = some
                changes |= Edit.between({name: parameter}, {name: new}).changes
        return Edit(changes)

    def _checked(self, forget: Sequence[int]) -> _Check:
        now, kept = self._measured(forget, nf4=False)
        now_nf4, kept_nf4 = self._measured(forget, nf4=True)
        pairs = ((self.start, kept), (self.start_nf4, kept_nf4))
        fall = max(worst_fall(before, after) for before, after in pairs)
        nats = max(worst_nats(before, after) for before, after in pairs)
        return _Check(now.accuracy, now_nf4.accuracy, fall, nats)

    def _reached(self, found: _Check) -> bool:
        kept = at_most(found.retain_fall, self.problem.task.tolerance)
        kept = kept and found.retain_nats <= 2 * self.may_lose
        return kept and max(found.forget, found.forget_nf4) <= self.target


class _Check(NamedTuple):
    """Accuracies in full precision and in NF4; by how much, in the worse of the two, accuracy fell
    in the retain group where it fell most, and so the kept answers' mean log-probability."""

    forget: float
    forget_nf4: float
    retain_fall: float
    retain_nats: float


def _ending(history: Sequence[Step], done: bool, settings: Settings, tolerance: float) -> str:
    """Which rule ended the run: the target, or the steps, and what stood in the target's way."""
    target, budget = settings.target or 0.0, settings.budget
    checks = [step.values for step in history if "forget_accuracy" in step.values]
    kept = [c for c in checks if at_most(c["retain_fall"], tolerance)]

    def reached(check: Mapping[str, float], nf4: bool) -> bool:
        left = check["forget_accuracy"]
        return (max(left, check["forget_accuracy_nf4"]) if nf4 else left) <= target

    if done:
        why = "the forget target was reached in full precision and in NF4"
    elif history[-1].done < history[-1].total:
        why = "it was told to end there"
    elif not kept:
        why = "the steps are used up, and retain accuracy never came within the tolerance"
    elif any(reached(c, nf4=True) for c in kept):
        why = "the steps are used up; where the forget target was reached, kept answers had lost "
        why += "too much of their log-probability"
    elif any(reached(c, nf4=True) for c in checks):
        why = "the steps are used up; the forget target was reached only where retain accuracy "
        why += "had fallen past the tolerance"
    elif any(reached(c, nf4=False) for c in checks):
        why = "the steps are used up; where the forget target was reached, NF4 brought some back"
    else:
        why = "the steps are used up before the forget target was reached"
    if budget is not None and any(step.values["moved"] == budget for step in history):
        why += f", with the whole budget of {budget:,} moves in use"
    return why


def reading(subject: Subject, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A mask from the first layer on in which it has weights of the attention; all, if nowhere.

    Before that nothing of the thing that is asked about has reached the prompt's last token by the
    circuit: what is written there is the same for every fact.
    """
    attention = [layer_of(subject, name) for name in mask if kind_of(subject, name) in ATTENTION]
    first = min((layer for layer in attention if layer is not None), default=0)
    return _from(subject, mask, first)


def _from(subject: Subject, mask: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    return {n: chosen for n, chosen in mask.items() if (layer_of(subject, n) or 0) >= first}


def _keys_and_values(subject: Subject, name: str) -> Tensor:
    """int64: which of a weight's outputs are keys or values.

    None of the first layer's, which are made of a word alone, before anything of it is gathered.
    """
    layer = layer_of(subject, name)
    found = [lines(subject, layer, role) for role in "kv"] if layer else []
    found = [where.all() for where in found if where.name == name]
    return torch.cat([torch.empty(0, dtype=torch.long), *found])


METHOD = Method(
    name="mansu",
    title="MANSU",
    about="Moves only weights of the circuit and beside it, along directions that the retain "
    "inputs do not see, and each of them to the centre of another NF4 code or not at all.",
    settings=Settings,
    run=run,
    kind="mansu",
    # For want of its authors' code: multiples of 0.03 bins a step.
    search=Search(origin=0.03, rate="rate", steps=(12, 24, 36), apart=True),
)
