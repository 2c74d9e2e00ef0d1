"""How many and how far: a cell against the same by hand, and the choice of the best."""

from __future__ import annotations

import pytest
import torch

from mansu import quant
from mansu.evidence.tradeoff import Cell, best, grid
from mansu.measure.scores import measure
from mansu.methods import Problem, named
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject


@pytest.mark.usefixtures("untouched")
def test_a_cell_is_what_it_says(problem: Problem, tiny: Subject) -> None:
    edit = named("graddiff")(problem, learning_rate=1e-3, only_quantized=True).edit
    told: list[int] = []
    found = grid(
        tiny,
        edit,
        problem.forget,
        {"retain": problem.retain},
        counts=(1 / 16, 1 / 4),
        distances=(1 / 8, 2.0),
        on_step=lambda step: told.append(step.done),
    )
    assert told == [1, 2, 3, 4]
    total = sum(tiny.parameters[n].numel() for n in tiny.quantized_names)
    assert [c.moved for c in found] == [total // 16, total // 16, total // 4, total // 4]
    assert [c.distance for c in found] == [1 / 8, 2.0] * 2
    assert found[2].survival < 0.3 and found[3].survival > 0.99  # but at the line's ends
    assert found[3].forget < found[2].forget  # short moves are not seen

    # The last cell by hand.
    ratios, moves = [], {}
    for name in tiny.quantized_names:
        weight = tiny.parameters[name].detach()
        where, delta = edit.delta(tiny)[name]
        dense = torch.zeros(weight.numel())
        dense[where] = delta
        dense[quant.sets_absmax(weight).flatten()] = 0
        width = quant.bin_width(weight).flatten()
        ratios.append(dense.abs() / width)
        limit = 0.999 * quant.quantize(weight).scale
        target = weight.flatten() + 2 * width * dense.sign()
        moves[name] = torch.maximum(torch.minimum(target, limit), -limit)
    every = torch.cat(ratios)
    first = torch.zeros(len(every), dtype=torch.bool)
    order = every.argsort(descending=True)
    first[order[: total // 4]] = True  # of those alike at the end, no more than belong
    after = {
        name: torch.where(chosen, moves[name], tiny.parameters[name].flatten())
        for name, chosen in zip(
            tiny.quantized_names, first.split([len(r) for r in ratios]), strict=True
        )
    }
    shaped = {n: w.view_as(tiny.parameters[n]) for n, w in after.items()}
    by_hand = Edit.between(tiny.parameters, shaped)
    with quant.quantized(tiny):
        before = float(measure(tiny, problem.retain).log_probability.mean())
    with by_hand.applied(tiny), quant.quantized(tiny):
        forget, retain = measure(tiny, problem.forget), measure(tiny, problem.retain)
    assert found[3].survival == quant.kept_by_format(tiny, by_hand, [quant.NF4])[quant.NF4].share
    assert found[3].forget == forget.accuracy
    assert found[3].damage == pytest.approx(before - float(retain.log_probability.mean()), abs=1e-5)


def test_the_best_forgets_at_the_least_damage() -> None:
    cells = [Cell(10, 1.0, 1.0, forget, damage) for forget, damage in ((0.9, 0.0), (0.3, 0.2))]
    cells.append(Cell(20, 1.0, 1.0, 0.2, 0.5))
    assert best(cells, 0.5) == cells[1]
    assert best(cells, 0.1) is None
