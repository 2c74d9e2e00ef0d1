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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mansu.errors import BadInputError, MansuError
from mansu.interrupts import put_back
from mansu.measure.scores import following_losses
from mansu.methods.method import Outcome, Problem
from mansu.progress import Step
from mansu.settings import filled, setting
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

CLIP = 1.0
TEXT_SHARE = 8
"""One row of plain text for this many facts a batch: a text row is several times as long."""


TOY_RATE, TOY_STEPS = 1e-3, 12
"""In a toy model, whose answers a dozen steps at a real model's rate do not change."""


def learning_rate(default: float, source: str) -> Any:
    """The field of the learning rate; ``source`` says what its authors have."""
    return setting(
        None,
        "Step size of AdamW. Larger moves weights further: more forgetting, more damage, and more "
        "that outlives NF4.",
        low=0,
        above=True,
        source=source,
        empty=(default, TOY_RATE),
    )


def steps(default: int | None, empty: tuple[int, int] | None = None) -> Any:
    """The field of the number of steps."""
    about = "Steps of the optimiser, at most."
    return setting(default, about, low=1, high=10_000, empty=empty)


def retain_weight(source: str) -> Any:
    """The field of the retain objective's weight w."""
    about = "Weight of the retain objective: larger keeps more and forgets less."
    return setting(1.0, about, low=0, source=source)


def bfloat16() -> Any:
    """The field of the number format of gradients."""
    return setting(
        None,
        "Matrix products of gradients, and of checks on the way, in bfloat16, about twice as "
        "fast; what is measured of an edit stays in the model's own format. Empty: where the "
        "processor has them and the model is no toy.",
    )


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of the loop; those of a method extend them.

    A method's ``RATE`` and its default of ``steps`` are what ``experiments.search`` found on
    chemical-symbols (``experiments/results/search-<method>.json``).
    """

    RATE: ClassVar[float] = 2e-5  # the learning rate that is meant where none is given
    learning_rate: float | None = learning_rate(RATE, "")
    steps: int | None = steps(12)
    batch: int = setting(
        20,
        "Forget rows in a step (and as many retain rows, where the method uses them).",
        low=1,
    )
    only_quantized: bool = setting(
        False,
        "Train only weights that NF4 quantises: the embeddings and norms, which it leaves alone, "
        "cannot carry the edit through. In a small model they are a fifth of all weights, in a "
        "large one next to none.",
    )
    bfloat16: bool | None = bfloat16()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def chosen_bfloat16(subject: Subject, asked: bool | None) -> bool:
    """The setting, where it is left to the machine and the model.

    Raises:
        BadInputError: it is asked for, and the processor has none.
    """
    has = has_bfloat16(subject.device)
    if asked and not has:
        raise BadInputError(
            "This processor has no products of bfloat16: leave the setting bfloat16 empty."
        )
    return has and not subject.is_toy if asked is None else asked


def products(subject: Subject, asked: bool | None) -> AbstractContextManager[Any]:
    """Matrix products inside the block as the setting ``bfloat16`` has them.

    A loss and what it is compared with are made alike, else they differ where nothing was edited.

    Raises:
        BadInputError: as ``chosen_bfloat16``.
    """
    if not chosen_bfloat16(subject, asked):
        return nullcontext()
    return torch.autocast(subject.device.type, torch.bfloat16)


@contextmanager
def scratch(subject: Subject, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The named parameters, to be trained inside the block only.

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
"""Yields the named terms of the objective, whose sum is minimised."""


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


class Trained(NamedTuple):
    """What a training has come to, while the subject has the weights that it ended with.

    Attributes:
        before, parameters: the trained ones, by name: as they were, and as they are.
        history: of its steps. stopped: why it ended. settings: as they were used.
    """

    before: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    history: tuple[Step, ...]
    stopped: str
    settings: TrainingSettings


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

    Args:
        settings, loss, names, constrain, scale: as ``trained`` takes them.
    """
    with trained(problem, settings, loss, names=names, constrain=constrain, scale=scale) as found:
        edit = Edit.between(found.before, found.parameters)
    return Outcome(edit, found.history, found.stopped, asdict(found.settings))


@contextmanager
def trained(
    problem: Problem,
    settings: TrainingSettings,
    loss: Loss,
    *,
    names: Iterable[str] | None = None,
    constrain: Callable[[str, Tensor], Tensor] | None = None,
    scale: float = 1.0,
) -> Iterator[Trained]:
    """The subject after minimising ``loss`` with AdamW, inside the block only.

    After each step it is reported, and watched while the subject has the weights that the method
    returns if it ends there. An exception ends the training and leaves the subject as it was.

    Args:
        settings: of the loop and the method; all are recorded.
        names: the parameters to train; by default all, as the baselines' authors do. Of these,
            with ``only_quantized``, those that NF4 quantises.
        constrain: ``(name, change)`` → the allowed part of the change, a projection
            applied after each step.
        scale: the weights end at this multiple of the change (−α for a task vector).
    """
    subject = problem.subject
    settings = filled(settings, subject.is_toy)
    rate, steps = settings.learning_rate, settings.steps
    assert rate is not None and steps is not None
    in_bfloat16 = chosen_bfloat16(subject, settings.bfloat16)
    settings = replace(settings, bfloat16=in_bfloat16)
    names = tuple(subject.parameters if names is None else names)
    if settings.only_quantized:
        names = tuple(n for n in names if n in subject.quantized_names)
    if any(subject.parameters[n].dtype == torch.float16 for n in names):
        raise BadInputError(
            f"{subject.name!r} is loaded in float16, where AdamW's second moments vanish and its "
            "steps are wild: load it in float32 or bfloat16."
        )
    with scratch(subject, names) as before:
        parameters = {n: subject.parameters[n] for n in names}
        exact = {n: _in_float32(p) for n, p in parameters.items()}
        optimiser = torch.optim.AdamW(exact.values(), lr=rate, weight_decay=0.0, fused=True)
        history: list[Step] = []
        stopped = "the one step was done" if steps == 1 else f"all {steps} steps were done"
        for step, rows in zip(range(1, steps + 1), batches(problem, settings.batch), strict=False):
            with products(subject, in_bfloat16):
                terms = dict(loss(rows))
            values = _differentiated(terms, parameters)
            if not all(map(isfinite, values.values())):
                stopped = f"the loss or its gradient became infinite at step {step}"
                break
            for name, parameter in parameters.items():
                if exact[name] is not parameter and parameter.grad is not None:
                    exact[name].grad = parameter.grad.float()
            optimiser.step()
            for name, parameter in parameters.items():
                if constrain is not None:
                    change = constrain(name, exact[name].data - before[name])
                    exact[name].data.copy_(before[name] + change)
                if exact[name] is not parameter:
                    parameter.data.copy_(exact[name])
            history.append(Step("unlearn", step, steps, values=values))
            with _scaled(parameters, before, scale):
                problem.on_step(history[-1])
                if problem.watch is not None and problem.watch(step):
                    stopped = f"it was told to end after step {step}"
                    break
        with _scaled(parameters, before, scale):
            yield Trained(before, parameters, tuple(history), stopped, settings)


def _in_float32(parameter: Tensor) -> Tensor:
    """What the optimiser moves: the parameter, or a float32 copy of one in bfloat16, most of whose
    steps would round to nothing (mixed precision's master weights, Micikevicius et al. 2018)."""
    if parameter.dtype != torch.bfloat16:
        return parameter
    return parameter.detach().float().requires_grad_()


def _differentiated(
    terms: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, float]:
    """The terms and the norm of their gradient, which is left, clipped, with the parameters."""
    for parameter in parameters.values():
        parameter.grad = None
    torch.stack([*terms.values()]).sum().backward()
    values = {name: float(term.detach()) for name, term in terms.items()}
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


def forget_and_retain(
    subject: Subject, batch: Batch, weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """What most methods ask of a batch, its rows run together.

    Returns:
        log π(answer | prompt) of the forget rows ``[N]``; the retain loss in nats times ``weight``:
        NLL of the retain answers, and cross-entropy of the text where there is any.
    """
    sets = [(rows.tokens, rows.length) for rows in (batch.forget, batch.retain)]
    if batch.text is not None:
        sets.append(batch.text)
    found = subject.states_of(*sets)
    last = [states[length.cumsum(0) - 1] for states, (_, length) in zip(found, sets, strict=True)]
    logits = subject.head(torch.cat(last[:2])).float()
    answers = torch.cat([batch.forget.answer, batch.retain.answer]).to(logits.device)
    log_probability = -cross_entropy(logits, answers, reduction="none")
    forget, retain = log_probability.split([len(batch.forget), len(batch.retain)])
    kept = {"retain": -weight * retain.mean()}
    if batch.text is not None:
        kept["text"] = weight * following_losses(subject, found[2], *batch.text).mean()
    return forget, kept
