"""Random moves: the control of MANSU that knows nothing of what is to be forgotten."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.methods.method import Method, Outcome, Problem
from mansu.quant.codes import quantize, sets_absmax
from mansu.quant.floor import centers, holds_cast
from mansu.quant.formats import CODES
from mansu.settings import setting
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import layout, transposed_names

SHARE = 0.001


@dataclass(frozen=True)
class Settings:
    moves: int | None = setting(
        None, "How many weights move. Empty: one in a thousand of all parameters.", low=1
    )


def run(problem: Problem, settings: Settings) -> Outcome:
    """Move random quantised weights to the centre of a neighbouring NF4 code.

    As MANSU's, the moves all survive NF4: no weight that sets its block's absmax moves, and none
    to an extreme code, where it would tie with it.

    Raises:
        BadInputError: more moves than weights that may move.
    """
    subject = problem.subject
    moves = settings.moves
    if moves is None:
        moves = max(1, round(SHARE * subject.n_parameters))
    movable = {
        name: (~sets_absmax(weight) & holds_cast(weight)).flatten().cpu()
        for name in sorted(subject.quantized_names)
        for weight in [layout(subject, name)]
    }
    total = sum(int(may.sum()) for may in movable.values())
    if moves > total:
        raise BadInputError(
            f"moves of random moves is {moves}: give a number from 1 to {total}, of the "
            f"weights of {subject.name!r} that may move."
        )
    chosen = torch.tensor(random.Random(problem.seed).sample(range(total), moves)).sort()[0]
    generator = torch.Generator().manual_seed(problem.seed)
    up = torch.rand(moves, generator=generator) < 0.5
    changes, start = {}, 0
    for name, may in movable.items():
        places = may.nonzero()[:, 0]
        here = (chosen >= start) & (chosen < start + len(places))
        if here.any():
            changes[name] = _neighbours(subject, name, places[chosen[here] - start], up[here])
        start += len(places)
    return Outcome(
        Edit(changes),
        (),
        f"{moves:,} random weights were moved, as asked",
        asdict(replace(settings, moves=moves)),
    )


def _neighbours(subject: Subject, name: str, where: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Places and new values of the weights at ``where`` in the quantiser's layout.

    The neighbour on the drawn side, or the other one where that is an extreme code.
    """
    weight = layout(subject, name)
    code = quantize(weight).codes.cpu()[where].long()
    last = len(CODES) - 1
    step = torch.where(up, 1, -1)
    step = torch.where((code + step <= 0) | (code + step >= last), -step, step)
    values = centers(weight, where, code + step)
    if name in transposed_names(subject):
        rows, columns = where // weight.shape[1], where % weight.shape[1]
        where = columns * weight.shape[0] + rows
    return where, values


METHOD = Method(
    name="random_moves",
    title="Random moves",
    about="A control: moves random weights, anywhere in the model, each to a neighbouring NF4 "
    "code. It knows nothing of what is to be forgotten.",
    settings=Settings,
    run=run,
    kind="control",
)
