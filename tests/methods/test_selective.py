"""Which of a mask's weights MANSU moves, against the ratio taken one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mansu.measure.geometry import fisher
from mansu.methods import Problem, named
from mansu.methods.mansu_method import GEOMETRY_FACTS, GEOMETRY_TEXTS
from mansu.methods.selective import FAINT, selective
from mansu.subjects.weights import weight_name
from mansu.tasks.tokens import evenly


@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.booleans())
def test_the_weights_that_the_forget_facts_hang_on_most_for_what_is_kept(
    seed: int, count: int, alone: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 7), "b": (5, 4), "c": (2, 2)}
    mask = {n: torch.rand(s, generator=generator) < 0.7 for n, s in shapes.items()}
    sizes = {n: int(m.sum()) for n, m in mask.items()}
    forget, retain = (
        {n: torch.rand(k, generator=generator) for n, k in sizes.items()} for _ in range(2)
    )
    found = selective(forget, None if alone else retain, mask, count)
    assert all(bool((found[n] <= mask[n]).all()) for n in found)
    if sum(sizes.values()) <= count:
        assert found.keys() == mask.keys()
        assert all(torch.equal(found[n], mask[n]) for n in found)
        return
    assert sum(int(m.sum()) for m in found.values()) == count
    assert all(m.any() for m in found.values())
    ranked = []
    for name, chosen in mask.items():
        least = FAINT * float(retain[name].mean()) if sizes[name] else 0.0
        for i, place in enumerate(chosen.nonzero().tolist()):
            over = 1.0 if alone else float(retain[name][i]) + least
            ranked.append((float(forget[name][i]) / over, name, place))
    inside = [r for r, n, (i, j) in ranked if n in found and found[n][i, j]]
    outside = [r for r, n, (i, j) in ranked if n not in found or not found[n][i, j]]
    assert min(inside) >= max(outside) * (1 - 1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_mansu_moves_weights_of_the_best_share_of_the_candidates(
    problem: Problem, weight: float
) -> None:
    """From half of the depth on; ``weight``: of the Fisher information."""
    subject, share = problem.subject, 0.01
    half = subject.config.num_hidden_layers // 2
    at = ((half - 1, "up"), (half, "o"), (half, "up"))
    names = [weight_name(subject, layer, role) for layer, role in at]
    every = {n: torch.ones_like(subject.parameters[n], dtype=torch.bool) for n in names}
    here = replace(problem, mask={names[1]: every[names[1]]}, candidates=every)
    given = {"rate": 0.5, "steps": 3, "share": share, "fisher_weight": weight}
    edit = named("mansu")(here, **given).edit

    reached = {n: every[n] for n in names[1:]}
    some, text = evenly(len(problem.text[0]), GEOMETRY_TEXTS), problem.text
    none, kept = (text[0][:0], text[1][:0]), (text[0][some], text[1][some])
    of_forget = fisher(subject, problem.forget.some(GEOMETRY_FACTS), none, reached)
    of_retain = fisher(subject, problem.retain.some(GEOMETRY_FACTS), kept, reached)
    count = round(share * subject.n_parameters)
    chosen = selective(of_forget, of_retain if weight else None, reached, count)
    assert 0 < edit.n_moved <= count
    for name, (where, _) in edit.changes.items():
        assert bool(chosen[name].flatten()[where].all())
