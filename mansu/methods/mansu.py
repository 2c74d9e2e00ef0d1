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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mansu.circuits.mask import random_mask
from mansu.errors import MansuError
from mansu.measure.geometry import ENERGY, Projectors, fisher, projectors
from mansu.measure.scores import measure
from mansu.methods import Outcome, Problem
from mansu.methods.training import scratch
from mansu.quant.codes import bin_width, quantize, sets_absmax
from mansu.quant.floor import code_centers, holds_cast, leaves_bin
from mansu.quant.formats import FORMATS, NF4, Format
from mansu.quant.swap import Dequantized, quantized
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


def unlearn(
    problem: Problem,
    *,
    rate: float | None = None,
    steps: int = 36,
    retain_weight: float = 1.0,
    energy: float = ENERGY,
    fisher_weight: float = 1.0,
    circuit: bool = True,
    floor: bool = True,
    project: bool = True,
    every_format: bool = True,
    budget: int | None = None,
    target: float | None = None,
) -> Outcome:
    """Run MANSU.

    Args:
        problem: with the circuit's mask.
        rate: step size of the wishes, in bin widths a step (Adam's learning rate). By default
            ``RATE``, or ``TOY_RATE`` in a toy, which has few weights to move.
        steps: at most so many. Every ``CHECK_EVERY`` forget and retain accuracy are measured in
            full precision and NF4; the best check is what is returned.
        retain_weight: weight of the retain objective.
        energy: share of the retain inputs' energy that the projection removes.
        fisher_weight: λ of the Fisher penalty ½ λ Σ F δ².
        circuit, floor, project: off for the ablations. Without the circuit a random mask of as many
            head slices and neurons takes its place; without the floor the wishes are applied.
        every_format: the floor holds in every format of ``nf4.FORMATS``; off, in NF4 with blocks of
            64 (and double quantization) only, where moves are somewhat shorter.
        budget: move at most so many weights at any time, those with the largest wish in bins; the
            others stay at their exact original. By default no limit.
        target: stop when forget accuracy is at most this in full precision and in NF4; by default
            halfway between chance (25 %) and what the task's margin asks for.

    Raises:
        MansuError: there is no mask, it holds no quantised weight that may move, or the budget is
            below 1.
    """
    if rate is None:
        rate = TOY_RATE if problem.subject.is_toy else RATE
    settings = {
        "rate": rate,
        "steps": steps,
        "retain_weight": retain_weight,
        "energy": energy,
        "fisher_weight": fisher_weight,
        "circuit": circuit,
        "floor": floor,
        "project": project,
        "every_format": every_format,
        "budget": budget,
        "seed": problem.seed,
    }
    if problem.mask is None:
        raise MansuError("MANSU needs a circuit: run attribution and the circuit step first.")
    if budget is not None and budget < 1:
        raise MansuError(f"budget of MANSU is {budget}: give the number of weights that may move.")
    if target is None:
        target = (CHANCE + max(1 - problem.task.margin, CHANCE)) / 2
    subject, rng = problem.subject, random.Random(problem.seed)
    report = problem.progress
    report(0.0, "quantising the unedited model")
    nf4_weights = Dequantized.of(subject)
    mask = problem.mask
    if not circuit:
        generator = torch.Generator().manual_seed(problem.seed)
        mask = random_mask(subject, mask, generator).tensors()
    weights = _movable(subject, mask, nf4_weights, rng, every_format)
    mask = {name: mask[name] for name in weights}
    report(0.0, "measuring the retain geometry")
    spans = None
    if project:
        spans = projectors(subject, problem.retain, problem.text, mask, energy=energy)
    if fisher_weight:
        for name, values in fisher(subject, problem.retain, problem.text, mask).items():
            everywhere = torch.zeros(mask[name].shape)
            everywhere[mask[name]] = values
            weights[name].fisher = everywhere.flatten()[weights[name].where]
    reference = _Reference(problem)
    optimiser = _Optimiser(rate, fisher_weight, spans)

    def nf4_model() -> AbstractContextManager[Subject]:
        # With the floor, what moved is at a code's centre and no absmax changed: the cache is
        # kept up to date instead of quantising everything again.
        return quantized(subject, nf4_weights if floor else None)

    start = _Check.of(problem)
    with nf4_model():
        start_nf4 = _Check.of(problem)

    history: list[Mapping[str, Any]] = []
    best: tuple[tuple[bool, bool, float], int, dict[str, Tensor]] | None = None
    in_nf4 = done = False
    with scratch(subject, weights) as base:
        for step in range(1, steps + 1):
            some = problem.forget.select(_sample(rng, len(problem.forget), FORGET_ROWS))
            with nf4_model() if in_nf4 else nullcontext():
                forget_loss = indistinguishable(subject, some).mean()
                forget_loss.backward()
                forget_gradients = _take(subject, weights)
                retain_loss = reference.divergence(rng)
                (retain_weight * retain_loss).backward()
                retain_gradients = _take(subject, weights)
            for name, weight in weights.items():
                optimiser.step(weight, name, forget_gradients[name], retain_gradients[name], step)
            moved, asked = 0, _moves(weights, floor)
            for name, (values, changed) in _within(budget, weights, asked).items():
                weight = weights[name]
                subject.parameters[name].data.view(-1)[weight.where] = values
                after_nf4 = torch.where(changed, values, weight.base_nf4)
                nf4_weights.weights[name].view(-1)[weight.where] = after_nf4
                moved += int(changed.sum())
            line: dict[str, Any] = {
                "step": step,
                "in_nf4": in_nf4,
                "forget_loss": forget_loss.item(),
                "retain_loss": retain_loss.item(),
                "moved": moved,
            }
            if step % CHECK_EVERY == 0 or step == steps:
                now = _Check.of(problem)
                with nf4_model():
                    now_nf4 = _Check.of(problem)
                fall = max(start.retain - now.retain, start_nf4.retain - now_nf4.retain)
                line |= {"forget": now.forget, "forget_nf4": now_nf4.forget, "retain_fall": fall}
                in_nf4 = now_nf4.forget > now.forget
                kept = fall <= problem.task.tolerance
                # What counts, in this order: the retain tolerance, no PTQ gap, and forget accuracy
                # near chance. Far below chance the answer is told by its avoidance.
                rank = (not kept, in_nf4, abs(max(now.forget, now_nf4.forget) - CHANCE))
                if best is None or rank < best[0]:
                    after = {n: subject.parameters[n].detach().clone() for n in weights}
                    best = rank, step, after
                done = kept and not in_nf4 and now.forget <= target
            history.append(line)
            report(step / steps, _sentence(line, steps))
            if done:
                break
        assert best is not None
        edit = Edit.between(base, best[2], "mansu", settings)
    why = _ending(history, done, target, problem.task.tolerance, budget)
    return Outcome(edit, tuple(history), f"Step {best[1]} is kept: {why}.", settings)


def _ending(
    history: Sequence[Mapping[str, Any]],
    done: bool,
    target: float,
    tolerance: float,
    budget: int | None,
) -> str:
    """Which rule ended the run: the target, or the steps, and what stood in the target's way."""
    checks = [line for line in history if "forget" in line]
    kept = [c for c in checks if c["retain_fall"] <= tolerance]
    if done:
        why = "the forget target was reached in full precision and in NF4"
    elif not kept:
        why = "the steps are used up, and retain accuracy never came within the tolerance"
    elif any(c["forget"] <= target for c in checks if c not in kept):
        why = "the steps are used up; the forget target was reached only where retain accuracy "
        why += "had fallen past the tolerance"
    elif any(c["forget"] <= target for c in kept):
        why = "the steps are used up; where the forget target was reached, NF4 brought some back"
    else:
        why = "the steps are used up before the forget target was reached"
    if budget is not None and any(line["moved"] == budget for line in history):
        why += f", with the whole budget of {budget:,} moves in use"
    return why


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
        base = matrix[movable]
        weights[name] = _Weight(
            where=where,
            rows=rows.unique(return_inverse=True)[1],
            columns=columns,
            shape=(len(rows.unique()), matrix.shape[1]),
            base=base,
            points=_points(matrix, flat, others),
            width=bin_width(matrix)[movable].to(base),
            threshold=torch.rand(len(rows), generator=generator).to(base),
            base_nf4=nf4_weights.weights[name].flatten()[where],
            wish=torch.zeros_like(base),
            forget_moment=torch.zeros_like(base),
            retain_moment=torch.zeros_like(base),
            second_moment=torch.zeros_like(base),
            fisher=torch.zeros_like(base),
        )
    if not weights:
        raise MansuError("No weight may move: the circuit holds no weight that NF4 quantises.")
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
        taken[name] = gradient.view(-1)[weight.where]
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


def _sentence(line: Mapping[str, Any], steps: int) -> str:
    text = f"step {line['step']}/{steps}: forget loss {line['forget_loss']:.3f}, retain "
    text += f"{line['retain_loss']:.4f}, {line['moved']:,} weights moved"
    if "forget" in line:
        text += f"; forget accuracy {line['forget']:.1%}, in NF4 {line['forget_nf4']:.1%}"
    return text
