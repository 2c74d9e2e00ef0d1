"""Random moves: the control of MANSU that knows nothing of what is to be forgotten."""

from __future__ import annotations

import random

import torch

from mansu.errors import MansuError
from mansu.methods import Outcome, Problem
from mansu.quant.codes import quantize, sets_absmax
from mansu.quant.floor import centers, holds_cast
from mansu.quant.formats import CODES
from mansu.subjects.edit import Edit
from mansu.subjects.weights import layout, transposed_names

SHARE = 0.001


def unlearn(problem: Problem, *, moves: int | None = None) -> Outcome:
    """Move random quantised weights to the centre of a neighbouring NF4 code.

    As MANSU's, the moves all survive NF4: no weight that sets its block's absmax moves, and none
    to an extreme code, where it would tie with it.

    Args:
        moves: how many weights; by default one in a thousand of all parameters.

    Raises:
        MansuError: ``moves`` is below 1 or above the number of weights that may move.
    """
    subject = problem.subject
    if moves is None:
        moves = max(1, round(SHARE * subject.n_parameters))
    with subject.lock:
        movable = {
            name: (~sets_absmax(weight) & holds_cast(weight)).flatten().cpu()
            for name in sorted(subject.quantized_names)
            for weight in [layout(subject, name)]
        }
        counts = {name: int(may.sum()) for name, may in movable.items()}
        total = sum(counts.values())
        if not 1 <= moves <= total:
            raise MansuError(
                f"moves of random moves is {moves}: give a number from 1 to {total}, of the "
                f"weights of {subject.name!r} that may move."
            )
        chosen = torch.tensor(random.Random(problem.seed).sample(range(total), moves)).sort()[0]
        generator = torch.Generator().manual_seed(problem.seed)
        up = torch.rand(moves, generator=generator) < 0.5
        changes, start = {}, 0
        transposed = transposed_names(subject)
        for name, count in counts.items():
            here = (chosen >= start) & (chosen < start + count)
            where = movable[name].nonzero()[:, 0][chosen[here] - start]
            start += count
            if not len(where):
                continue
            weight = layout(subject, name)
            code = quantize(weight).codes.cpu()[where].long()
            last = len(CODES) - 1
            # The neighbour on the drawn side, or the other one where that is an extreme code.
            step = torch.where(up[here], 1, -1)
            step = torch.where((code + step <= 0) | (code + step >= last), -step, step)
            values = centers(weight, where, code + step)
            if name in transposed:
                rows, columns = where // weight.shape[1], where % weight.shape[1]
                where = columns * weight.shape[0] + rows
            changes[name] = (where, values)
    settings = {"moves": moves, "seed": problem.seed}
    problem.progress(1.0, f"{moves:,} random weights moved")
    edit = Edit(changes, "random moves", {"method": "random moves", **settings})
    return Outcome(edit, (), f"{moves:,} random weights were moved, as asked", settings)
