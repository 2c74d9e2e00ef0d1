"""Training: the loop and the losses that every gradient baseline shares.

The forget loss of a row is the negative log-likelihood of its answer token after its prompt, the
question–answer form of TOFU (Maini et al. 2024, arXiv:2401.06121) and NPO (Zhang et al. 2024,
arXiv:2404.05868). The retain loss is the same on retain rows plus next-token cross-entropy on
plain text. The optimiser is theirs: AdamW, gradients clipped to norm 1 (the default of the
Hugging Face trainer that their code uses). Two things differ, on purpose: the learning rate is
constant, so that a run of n steps is the beginning of every longer run, and there is no weight
decay, which over a dozen steps would move each weight by less than one float32 rounding step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from mansu.errors import BadInputError, MansuError
from mansu.interrupts import put_back
from mansu.measure.scores import text_losses
from mansu.methods.method import Outcome, Problem
from mansu.progress import Step
from mansu.settings import setting
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

CLIP = 1.0
TEXT_SHARE = 8
"""One row of plain text for this many facts a batch: a text row is several times as long."""


def learning_rate(default: float, source: str) -> Any:
    """The field of the learning rate; ``source`` says what its authors have."""
    return setting(
        default,
        "Step size of AdamW. Larger moves weights further: more forgetting, more damage, and more "
        "that outlives NF4.",
        low=0,
        above=True,
        source=source,
    )


def steps(default: int) -> Any:
    """The field of the number of steps."""
    return setting(default, "Steps of the optimiser, at most.", low=1)


def retain_weight(source: str) -> Any:
    """The field of the retain objective's weight w."""
    about = "Weight of the retain objective: larger keeps more and forgets less."
    return setting(1.0, about, low=0, source=source)


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of the loop; those of a method extend them.

    A method's defaults of ``learning_rate`` and ``steps`` are what ``experiments.search`` found
    on chemical-symbols (``experiments/results/search-<method>.json``).
    """

    learning_rate: float = learning_rate(2e-5, "")
    steps: int = steps(12)
    batch: int = setting(
        20,
        "Forget rows in a step (and as many retain rows, where the method uses them).",
        low=1,
    )


@contextmanager
def scratch(subject: Subject, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The named parameters, trainable inside the block only.

    Holds ``subject.lock``. Afterwards, also after an exception, the parameters are bit for bit
    what they were, need no gradient and hold none.

    Yields:
        name → a copy of the parameter as it was.

    Raises:
        MansuError: the subject has no parameter of that name.
    """
    names = tuple(names)
    unknown = [n for n in names if n not in subject.parameters]
    if unknown:
        raise MansuError(f"The subject {subject.name!r} has no parameter {unknown[0]!r} to train.")
    with subject.lock:
        parameters = {n: subject.parameters[n] for n in names}
        before = {n: p.detach().clone() for n, p in parameters.items()}

        def undo() -> None:
            for name, parameter in parameters.items():
                parameter.requires_grad_(False)
                parameter.grad = None
                parameter.data.copy_(before[name])

        try:
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            yield before
        finally:
            put_back(undo)


@dataclass(frozen=True)
class Batch:
    """The rows of one step.

    Attributes:
        forget, retain: the rows; forget_rows, retain_rows: int64, which rows of the problem's
            sets they are (for what was computed on the unedited model beforehand).
        text: (tokens ``[n, T]``, length ``[n]``), None without text; text_rows: as above.
    """

    forget: Examples
    retain: Examples
    text: tuple[Tensor, Tensor] | None
    forget_rows: Tensor
    retain_rows: Tensor
    text_rows: Tensor


Loss = Callable[[Batch], Iterable[tuple[str, Tensor]]]
"""Yields the named terms of the objective, whose sum is minimised. Each term is differentiated
before the next is asked for, so that one forward pass is in memory at a time."""


def batches(problem: Problem, size: int) -> Iterator[Batch]:
    """Endless batches of ``size`` forget rows, as many retain rows, and text in proportion.

    Every pass over a set is a new permutation, drawn with the problem's seed; what is left of a
    pass and does not fill a batch is skipped.
    """
    generator = torch.Generator().manual_seed(problem.seed)
    tokens, length = problem.text
    usable = torch.nonzero(length > 1).flatten()  # one token has no next token
    forget = _epochs(len(problem.forget), size, generator)
    retain = _epochs(len(problem.retain), size, generator)
    text = _epochs(len(usable), -(-size // TEXT_SHARE), generator)
    while True:
        f, r, t = next(forget), next(retain), usable[next(text)]
        yield Batch(
            problem.forget.select(f.tolist()),
            problem.retain.select(r.tolist()),
            (tokens[t], length[t]) if len(t) else None,
            f,
            r,
            t,
        )


def _epochs(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - size + 1, max(size, 1)):
            yield order[start : start + size]


def train(
    problem: Problem,
    settings: TrainingSettings,
    loss: Loss,
    *,
    names: Iterable[str] | None = None,
    constrain: Callable[[str, Tensor], Tensor] | None = None,
    scale: float = 1.0,
) -> Outcome:
    """Minimise ``loss`` with AdamW and return the change of the weights as an edit.

    After each step it is reported, and watched while the subject has the weights that the method
    returns if it ends there. An exception ends the training and leaves the subject as it was.

    Args:
        settings: of the loop and the method; all are recorded.
        names: the parameters to train; by default all, as the baselines' authors do.
        constrain: ``(name, change)`` → the allowed part of the change, a projection
            applied after each step.
        scale: the edit is this multiple of the change (−α for a task vector).
    """
    subject, steps = problem.subject, settings.steps
    names = tuple(subject.parameters if names is None else names)
    if any(subject.parameters[n].dtype == torch.float16 for n in names):
        raise BadInputError(
            f"{subject.name!r} is loaded in float16, where AdamW's second moments vanish and its "
            "steps are wild: load it in float32 or bfloat16."
        )
    with scratch(subject, names) as before:
        parameters = {n: subject.parameters[n] for n in names}
        optimiser = torch.optim.AdamW(
            parameters.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        history: list[Step] = []
        stopped = f"all {steps} steps were done"
        for step, rows in zip(range(1, steps + 1), batches(problem, settings.batch), strict=False):
            values = _differentiated(loss(rows), parameters)
            if not all(map(isfinite, values.values())):
                stopped = f"the loss or its gradient became infinite at step {step}"
                break
            optimiser.step()
            if constrain is not None:
                for name, parameter in parameters.items():
                    change = constrain(name, parameter.data - before[name])
                    parameter.data.copy_(before[name] + change)
            history.append(Step("unlearn", step, steps, values=values))
            with _scaled(parameters, before, scale):
                problem.on_step(history[-1])
                if problem.watch is not None and problem.watch(step):
                    stopped = f"it was told to end after step {step}"
                    break
        with _scaled(parameters, before, scale):
            edit = Edit.between(before, parameters)
    return Outcome(edit, tuple(history), stopped, asdict(settings))


def _differentiated(
    terms: Iterable[tuple[str, Tensor]], parameters: Mapping[str, Tensor]
) -> dict[str, float]:
    """The terms and the norm of their gradient, which is left, clipped, with the parameters."""
    for parameter in parameters.values():
        parameter.grad = None
    values = {}
    for name, term in terms:
        term.backward()
        values[name] = float(term.detach())
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
    return {**values, "gradient_norm": float(norm)}


@contextmanager
def _scaled(
    parameters: Mapping[str, Tensor], before: Mapping[str, Tensor], scale: float
) -> Iterator[None]:
    """The parameters at ``before + scale × (trained − before)``, and then as trained again."""
    if scale == 1.0:
        yield
        return
    trained = {n: p.detach().clone() for n, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data.copy_(before[name] + scale * (trained[name] - before[name]))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(trained[name])


def answer_log_probability(subject: Subject, rows: Examples) -> Tensor:
    """log π(answer | prompt) in nats, ``[N]`` (differentiable)."""
    logits = subject.next_token_logits(rows.tokens, rows.length).float()
    answer = rows.answer.to(logits.device)
    return -torch.nn.functional.cross_entropy(logits, answer, reduction="none")


def retain_terms(
    subject: Subject, batch: Batch, weight: float = 1.0
) -> Iterator[tuple[str, Tensor]]:
    """The retain loss: NLL of the retain answers, and cross-entropy of the text, in nats."""
    yield "retain", -weight * answer_log_probability(subject, batch.retain).mean()
    if batch.text is not None:
        yield "text", weight * text_losses(subject, *batch.text).mean()
