"""MANSU: Mechanistic-Aligned Null-Space Unlearning (arXiv 2605.15138).

Only the circuit's weights move, along directions that the retain inputs do not see, weighed by the
diagonal Fisher of the retain log-likelihood, and a weight moves to the centre of another NF4 code
of its own block or not at all (the magnitude floor): what moves is there after NF4, by
construction. Of these centres it takes only those that also lie in another bin of larger blocks,
of FP4 and of int8, so that the floor holds in every format of ``nf4.FORMATS``.

How the floor is met. Each weight has a wish, the continuous change that the optimiser asks for,
and a threshold u drawn once from U(0, 1). Its points are its own exact value and the centres that
it may take. With w + wish between its points p₀ ≤ w + wish < p₁ it takes p₁ when
(w + wish − p₀)/(p₁ − p₀) > u, else p₀. So the mean over weights follows the wish, as unbiased
rounding does, while each moved weight is a whole bin away; a fixed threshold means that nothing
moves back and forth unless its wish does. Gradients are always those of the rounded model, which
corrects what the rounding did.

The forget objective makes the answer indistinguishable among the candidate answers, not
impossible; the retain objective is the KL divergence from the unedited
model's next-token distribution on retain facts and plain text. Steps go to the NF4-dequantised
model instead of the full-precision one where that remembers more, so that the PTQ gap closes from
both sides.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mansu.circuits.parameters import random_mask
from mansu.errors import BadInputError
from mansu.measure.geometry import ENERGY, Projectors, fisher, projectors
from mansu.measure.scores import measure
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import scratch
from mansu.progress import Step
from mansu.quant.codes import bin_width, quantize, sets_absmax
from mansu.quant.floor import code_centers, holds_cast, leaves_bin
from mansu.quant.formats import FORMATS, NF4, Format
from mansu.quant.swap import Dequantized, quantized
from mansu.settings import setting
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names
from mansu.tasks.tokens import Examples

MOMENTUM, SECOND_MOMENT = 0.9, 0.95
FORGET_ROWS, RETAIN_ROWS, TEXT_ROWS = 40, 36, 3
RATE, TOY_RATE = 0.12, 0.2
CHECK_EVERY = 3
CHANCE = 0.25
ADVANTAGE = 0.25
"""Weight of the answer's advantage in the forget objective. With 1 the forgetting overshoots: 4-way
accuracy ends at 4 to 11 %, and the answer is known by its avoidance."""


@dataclass(frozen=True)
class Settings:
    rate: float | None = setting(
        None,
        f"Step size, in NF4 bin widths a step. Empty: {RATE:g}, or {TOY_RATE:g} in a toy model.",
        low=0,
        above=True,
    )
    steps: int = setting(36, "Steps of the optimiser, at most.", low=1)
    retain_weight: float = setting(
        1.0, "Weight of the retain objective: larger keeps more and forgets less.", low=0
    )
    energy: float = setting(
        ENERGY,
        "Share of the retain inputs' energy (squared norm) that the projection protects.",
        low=0,
        high=1,
    )
    fisher_weight: float = setting(
        1.0,
        "λ in the penalty $\\tfrac{\\lambda}{2} \\sum_i F_i \\delta_i^2$, with the diagonal Fisher "
        "information $F$ of the retain log-likelihood.",
        low=0,
        source="arXiv 2605.15138, theorem 1",
    )
    circuit: bool = setting(
        True,
        "Move the circuit's weights. Off for an ablation: a random mask of the same size.",
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
        "Stop when forget accuracy is at most this, in full precision and in NF4. Empty: halfway "
        "between chance (25 %) and what the task's margin asks for. Below 0: never.",
        low=-1,
        high=1,
    )

    def chosen(self, problem: Problem) -> Settings:
        """With the rate and the target that are left to the subject and the task."""
        rate, target = self.rate, self.target
        if rate is None:
            rate = TOY_RATE if problem.subject.is_toy else RATE
        if target is None:
            target = (CHANCE + max(1 - problem.task.margin, CHANCE)) / 2
        return replace(self, rate=rate, target=target)


def run(problem: Problem, settings: Settings) -> Outcome:
    """Move the circuit's weights until the forget set is at the target, or the steps are used up.

    Every ``CHECK_EVERY`` steps forget and retain accuracy are measured in full precision and NF4;
    the best check is what is returned.

    Args:
        problem: with the circuit's mask.

    Raises:
        BadInputError: there is no mask, or it holds no quantised weight that may move.
    """
    if problem.mask is None:
        raise BadInputError("MANSU needs a circuit: run attribution and the circuit step first.")
    settings = settings.chosen(problem)
    work, watch = _Work(problem, settings), problem.watch
    history: list[Step] = []
    with scratch(problem.subject, work.weights) as base:
        for step in range(1, settings.steps + 1):
            values = work.step(step)
            told = watch is not None and watch(step)
            last = told or step == settings.steps
            if last or step % CHECK_EVERY == 0:
                values |= work.check(step)
            history.append(Step("unlearn", step, settings.steps, values=values))
            problem.on_step(history[-1])
            if told or work.done:
                break
        best = work.best
        assert best is not None  # the last step is always checked
        edit = Edit.between(base, best.weights)
    why = _ending(history, work.done, settings, problem.task.tolerance)
    return Outcome(edit, tuple(history), f"Step {best.step} is kept: {why}.", asdict(settings))


class _Best(NamedTuple):
    """The check that is returned if no better one comes."""

    rank: tuple[bool, bool, float]
    step: int
    weights: dict[str, Tensor]


class _Work:
    """MANSU at work: what may move, what holds it, and the best check so far."""

    best: _Best | None = None
    done = False  # whether the last check reached the target
    in_nf4 = False  # whether steps go to the NF4 model

    def __init__(self, problem: Problem, settings: Settings) -> None:
        subject = problem.subject
        self.problem, self.settings = problem, settings
        self.subject, self.rng = subject, random.Random(problem.seed)
        self._tell("quantising the unedited model")
        self.nf4_weights = Dequantized.of(subject)
        mask = problem.mask or {}
        if not settings.circuit:
            generator = torch.Generator().manual_seed(problem.seed)
            mask = random_mask(subject, mask, generator).tensors()
        self.weights = _movable(subject, mask, self.nf4_weights, self.rng, settings.every_format)
        self._tell("measuring the retain geometry")
        self.optimiser = self._optimiser({name: mask[name] for name in self.weights})
        self.reference = _Reference(problem)
        self.start = _Check.of(problem)
        with self._nf4_model():
            self.start_nf4 = _Check.of(problem)

    def _tell(self, part: str) -> None:
        self.problem.on_step(Step("unlearn", 0, self.settings.steps, part=part))

    def _optimiser(self, mask: Mapping[str, Tensor]) -> _Optimiser:
        """The optimiser with the projection, after the weights have their Fisher information."""
        problem, settings, spans = self.problem, self.settings, None
        retain, text = problem.retain, problem.text
        if settings.project:
            spans = projectors(self.subject, retain, text, mask, energy=settings.energy)
        if settings.fisher_weight:
            for name, values in fisher(self.subject, retain, text, mask).items():
                everywhere = torch.zeros(mask[name].shape)
                everywhere[mask[name]] = values
                weight = self.weights[name]
                weight.fisher = everywhere.flatten()[weight.where]
        assert settings.rate is not None
        return _Optimiser(settings.rate, settings.fisher_weight, spans)

    def _nf4_model(self) -> AbstractContextManager[Subject]:
        # With the floor, what moved is at a code's centre and no absmax changed: the cache is
        # kept up to date instead of quantising everything again.
        return quantized(self.subject, self.nf4_weights if self.settings.floor else None)

    def step(self, step: int) -> dict[str, float]:
        """One step of the optimiser and the moves that it asks for, and what to record of them."""
        in_nf4 = self.in_nf4
        forget_loss, forget, retain_loss, retain = self._gradients()
        for name, weight in self.weights.items():
            self.optimiser.step(weight, name, forget[name], retain[name], step)
        return {
            "in_nf4": float(in_nf4),
            "forget_loss": forget_loss,
            "retain_loss": retain_loss,
            "moved": self._move(),
        }

    def _gradients(self) -> tuple[float, dict[str, Tensor], float, dict[str, Tensor]]:
        """Forget loss and gradients, retain loss and gradients, of the model that steps go to."""
        forget = self.problem.forget
        some = forget.select(_sample(self.rng, len(forget), FORGET_ROWS))
        with self._nf4_model() if self.in_nf4 else nullcontext():
            forget_loss = indistinguishable(self.subject, some).mean()
            forget_loss.backward()
            forget_gradients = _take(self.subject, self.weights)
            retain_loss = self.reference.divergence(self.rng)
            (self.settings.retain_weight * retain_loss).backward()
            retain_gradients = _take(self.subject, self.weights)
        return forget_loss.item(), forget_gradients, retain_loss.item(), retain_gradients

    def _move(self) -> int:
        """Put the weights where their wishes and the budget have them; how many moved."""
        asked = _moves(self.weights, self.settings.floor)
        count = 0
        for name, (values, moved) in _within(self.settings.budget, self.weights, asked).items():
            weight = self.weights[name]
            parameter, in_nf4 = self.subject.parameters[name].data, self.nf4_weights.weights[name]
            parameter.view(-1)[weight.where] = values.to(parameter)
            after_nf4 = torch.where(moved, values, weight.base_nf4)
            in_nf4.view(-1)[weight.where] = after_nf4.to(in_nf4)
            count += int(moved.sum())
        return count

    def check(self, step: int) -> dict[str, float]:
        """Measure the weights as they are, and keep them if they are the best so far.

        What counts, in this order: the retain tolerance, no PTQ gap, and forget accuracy near
        chance. Far below chance the answer is told by its avoidance.
        """
        now = _Check.of(self.problem)
        with self._nf4_model():
            now_nf4 = _Check.of(self.problem)
        fall = max(self.start.retain - now.retain, self.start_nf4.retain - now_nf4.retain)
        kept = fall <= self.problem.task.tolerance
        self.in_nf4 = now_nf4.forget > now.forget
        rank = (not kept, self.in_nf4, abs(max(now.forget, now_nf4.forget) - CHANCE))
        if self.best is None or rank < self.best.rank:
            weights = {n: self.subject.parameters[n].detach().clone() for n in self.weights}
            self.best = _Best(rank, step, weights)
        assert self.settings.target is not None
        self.done = kept and not self.in_nf4 and now.forget <= self.settings.target
        return {
            "forget_accuracy": now.forget,
            "forget_accuracy_nf4": now_nf4.forget,
            "retain_fall": fall,
        }


def _ending(history: Sequence[Step], done: bool, settings: Settings, tolerance: float) -> str:
    """Which rule ended the run: the target, or the steps, and what stood in the target's way."""
    target, budget = settings.target or 0.0, settings.budget
    checks = [step.values for step in history if "forget_accuracy" in step.values]
    kept = [c for c in checks if c["retain_fall"] <= tolerance]
    lost = [c for c in checks if c["retain_fall"] > tolerance]
    if done:
        why = "the forget target was reached in full precision and in NF4"
    elif history[-1].done < history[-1].total:
        why = "it was told to end there"
    elif not kept:
        why = "the steps are used up, and retain accuracy never came within the tolerance"
    elif any(c["forget_accuracy"] <= target for c in lost):
        why = "the steps are used up; the forget target was reached only where retain accuracy "
        why += "had fallen past the tolerance"
    elif any(c["forget_accuracy"] <= target for c in kept):
        why = "the steps are used up; where the forget target was reached, NF4 brought some back"
    else:
        why = "the steps are used up before the forget target was reached"
    if budget is not None and any(step.values["moved"] == budget for step in history):
        why += f", with the whole budget of {budget:,} moves in use"
    return why


@dataclass
class _Weight:
    """The movable entries of one weight (n of them) and the optimiser's state.

    Work happens in the layout that the quantiser sees, ``[outputs, inputs]``.
    """

    where: Tensor  # int64 [n], into the flattened parameter
    rows: Tensor  # int64 [n], outputs
    columns: Tensor  # int64 [n], inputs
    shape: tuple[int, int]  # [outputs, inputs]
    base: Tensor  # [n]
    points: Tensor  # [n, codes], where it may lie: base, codes' centres; infinite where it may not
    width: Tensor  # [n], of the base weight's bin
    threshold: Tensor  # [n], u
    wish: Tensor  # [n], in weight units
    forget_moment: Tensor  # [n], Adam's moments, in bins
    retain_moment: Tensor
    second_moment: Tensor
    fisher: Tensor  # [n]
    base_nf4: Tensor  # [n], what the base weight's code stands for

    def rounded(self) -> tuple[Tensor, Tensor]:
        """(values ``[n]``, moved bool ``[n]``) of the magnitude floor."""
        aim = self.base + self.wish
        above = self.points > aim[:, None]
        high = self.points.masked_fill(~above, torch.inf).amin(1)
        low = self.points.masked_fill(above, -torch.inf).amax(1)
        up = (aim - low) / (high - low) > self.threshold
        values = torch.where(up | low.isinf(), high, low)  # past the last point: to the last
        return values, values != self.base


def indistinguishable(subject: Subject, rows: Examples) -> Tensor:
    """The forget objective of each row ``[N]``, nats.

    KL(uniform ‖ p) over the row's candidate answers, which is 0 when none stands out, plus
    ``ADVANTAGE`` times what the answer's log-probability exceeds the mean of the others' by. The
    KL is quadratic in that advantage and its pull fades long before the answer stops winning; the
    second term's does not, and it ends where the answer is an average candidate, not where it is
    an impossible one.
    """
    logits = subject.next_token_logits(rows.tokens, rows.length).float()
    candidates = rows.candidates.to(logits.device)
    vocabulary = rows.vocabulary.to(logits.device)
    chosen = logits[:, vocabulary].masked_fill(~candidates, -torch.inf)
    log_probabilities = chosen.log_softmax(-1).masked_fill(~candidates, 0)
    count = candidates.sum(1)
    divergence = -log_probabilities.sum(1) / count - count.log()
    is_answer = vocabulary == rows.answer.to(logits.device)[:, None]
    answer = (log_probabilities * is_answer).sum(1)
    others = (log_probabilities.sum(1) - answer) / (count - 1).clamp_min(1)
    return divergence + ADVANTAGE * (answer - others).relu()


class _Check(NamedTuple):
    """Accuracies on the sets that the method trains on."""

    forget: float
    retain: float

    @classmethod
    def of(cls, problem: Problem) -> _Check:
        subject = problem.subject
        retain = measure(subject, problem.retain)
        groups = [retain.group(name).accuracy for name in dict.fromkeys(retain.groups)]
        return cls(measure(subject, problem.forget).accuracy, min(groups))


class _Reference:
    """The unedited model's next-token distributions on what must be kept."""

    def __init__(self, problem: Problem) -> None:
        self.subject, self.retain, self.text = problem.subject, problem.retain, problem.text
        with torch.no_grad():
            self.facts = self._facts(self.retain)
            rows = range(len(self.text[0]))
            self.texts = [
                self._texts(self.text[0][i : i + 1], self.text[1][i : i + 1]) for i in rows
            ]

    def divergence(self, rng: random.Random) -> Tensor:
        """KL(unedited ‖ current) on a sample of retain facts plus one of text positions, nats."""
        rows = _sample(rng, len(self.retain), RETAIN_ROWS)
        total = _kl(self.facts[rows], self._facts(self.retain.select(rows)))
        if self.texts:
            some = _sample(rng, len(self.texts), TEXT_ROWS)
            now = self._texts(self.text[0][some], self.text[1][some])
            total = total + _kl(torch.cat([self.texts[i] for i in some]), now)
        return total

    def _facts(self, rows: Examples) -> Tensor:
        return self.subject.next_token_logits(rows.tokens, rows.length).float().log_softmax(-1)

    def _texts(self, tokens: Tensor, length: Tensor) -> Tensor:
        tokens, length = tokens.to(self.subject.device), length.to(self.subject.device)
        decoder = self.subject.model.get_decoder()  # type: ignore[operator]
        hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
        real = torch.arange(tokens.shape[1], device=tokens.device)[None] < length[:, None]
        return self.subject.head(hidden[real]).float().log_softmax(-1)


def _kl(reference: Tensor, now: Tensor) -> Tensor:
    return (reference.exp() * (reference - now)).sum(-1).mean()


def _sample(rng: random.Random, n: int, size: int) -> list[int]:
    return rng.sample(range(n), min(n, size))


def _movable(
    subject: Subject,
    mask: Mapping[str, Tensor],
    nf4_weights: Dequantized,
    rng: random.Random,
    every_format: bool = True,
) -> dict[str, _Weight]:
    """The mask's quantised weights that do not set their block's absmax, nor change by a cast."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    transposed = transposed_names(subject)
    # Double quantization has NF4's codes and blocks.
    others = [f for f in FORMATS if f != NF4 and not f.double_quant] if every_format else []
    weights = {}
    for name, chosen in mask.items():
        if name not in subject.quantized_names:
            continue
        matrix, movable = subject.parameters[name].detach(), chosen
        indices = torch.arange(matrix.numel()).view(matrix.shape)
        if name in transposed:
            matrix, movable, indices = matrix.T.contiguous(), movable.T, indices.T
        movable = movable.to(matrix.device) & holds_cast(matrix)
        for format in (NF4, *others):
            movable &= ~sets_absmax(matrix, format)
        rows, columns = movable.nonzero(as_tuple=True)
        if not len(rows):
            continue
        flat = rows * matrix.shape[1] + columns
        where = indices.to(matrix.device)[movable]
        base = matrix[movable].float()  # a half-precision model is edited in float32, too
        weights[name] = _Weight(
            where=where,
            rows=rows.unique(return_inverse=True)[1],
            columns=columns,
            shape=(len(rows.unique()), matrix.shape[1]),
            base=base,
            points=_points(matrix, flat, others).float(),
            width=bin_width(matrix)[movable].to(base),
            threshold=torch.rand(len(rows), generator=generator).to(base),
            base_nf4=nf4_weights.weights[name].flatten()[where].float(),
            wish=torch.zeros_like(base),
            forget_moment=torch.zeros_like(base),
            retain_moment=torch.zeros_like(base),
            second_moment=torch.zeros_like(base),
            fisher=torch.zeros_like(base),
        )
    if not weights:
        raise BadInputError("No weight may move: the circuit holds no weight that NF4 quantises.")
    return weights


def _points(matrix: Tensor, flat: Tensor, others: Sequence[Format]) -> Tensor:
    """Where each weight may lie, ``[n, codes]``: its value at its own code, the others' centres.

    Infinite where it may not: at the extreme codes, where it would tie with its block's absmax, and
    at centres that some other format does not tell from where it is.
    """
    points = code_centers(matrix, flat)
    may = torch.ones_like(points, dtype=torch.bool)
    may[:, [0, -1]] = False
    for format in others:
        may &= leaves_bin(matrix, flat, points, format)
    points.masked_fill_(~may, torch.inf)
    own = quantize(matrix).codes[flat].long()[:, None]
    return points.scatter_(1, own, matrix.reshape(-1)[flat][:, None])


_Moves = dict[str, tuple[Tensor, Tensor]]
"""Weight → (values ``[n]``, moved bool ``[n]``)."""


def _moves(weights: Mapping[str, _Weight], floor: bool) -> _Moves:
    """What the wishes ask for, with the magnitude floor or as they are."""
    if floor:
        return {name: w.rounded() for name, w in weights.items()}
    return {name: (w.base + w.wish, w.wish != 0) for name, w in weights.items()}


def _within(budget: int | None, weights: Mapping[str, _Weight], moves: _Moves) -> _Moves:
    """The ``budget`` moves with the largest wish in bins; the others are taken back."""
    if budget is None or sum(int(moved.sum()) for _, moved in moves.values()) <= budget:
        return moves
    size = torch.cat(
        [(weights[n].wish / weights[n].width).abs() * moved for n, (_, moved) in moves.items()]
    )
    kept = torch.zeros_like(size, dtype=torch.bool)
    kept[size.topk(budget).indices] = True
    parts = kept.split([len(moved) for _, moved in moves.values()])
    return {
        name: (torch.where(keep & moved, values, weights[name].base), keep & moved)
        for (name, (values, moved)), keep in zip(moves.items(), parts, strict=True)
    }


def _take(subject: Subject, weights: Mapping[str, _Weight]) -> dict[str, Tensor]:
    """The gradients at the movable entries; clears them."""
    taken = {}
    for name, weight in weights.items():
        gradient = subject.parameters[name].grad
        assert gradient is not None
        taken[name] = gradient.view(-1)[weight.where].float()
        subject.parameters[name].grad = None
    return taken


@dataclass(frozen=True)
class _Optimiser:
    """Adam in units of bins; what it takes from the forget gradient is projected."""

    rate: float
    fisher_weight: float
    spans: Projectors | None

    def step(self, weight: _Weight, name: str, forget: Tensor, retain: Tensor, step: int) -> None:
        retain = retain + self.fisher_weight * weight.fisher * weight.wish
        forget, retain = forget * weight.width, retain * weight.width
        weight.forget_moment.lerp_(forget, 1 - MOMENTUM)
        weight.retain_moment.lerp_(retain, 1 - MOMENTUM)
        weight.second_moment.lerp_((forget + retain).square(), 1 - SECOND_MOMENT)
        scale = (weight.second_moment / (1 - SECOND_MOMENT**step)).sqrt() + 1e-12
        scale = self.rate * weight.width / scale / (1 - MOMENTUM**step)
        down = weight.forget_moment * scale
        if self.spans is not None:
            matrix = down.new_zeros(weight.shape)
            matrix[weight.rows, weight.columns] = down
            down = self.spans(name, matrix)[weight.rows, weight.columns]
        weight.wish -= down + weight.retain_moment * scale


METHOD = Method(
    name="mansu",
    title="MANSU",
    about="Moves only weights of the circuit, along directions that the retain inputs do not see, "
    "and each of them to the centre of another NF4 code or not at all.",
    settings=Settings,
    run=run,
    kind="mansu",
    # For want of its authors' code: multiples of 0.03 bins a step.
    search=Search(origin=0.03, rate="rate", steps=(12, 24, 36), fixed={"target": -1.0}),
)
