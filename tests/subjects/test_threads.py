"""Threads that share a subject: what one changes or hooks is in no other's numbers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import mansu
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


def together(first: Callable[[], Any], second: Callable[[], Any], times: int = 6) -> list[Any]:
    """What ``first`` gives again and again, while ``second`` is at work in another thread."""
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(lambda: [second() for _ in range(times)])
        found = [first()]
        while not busy.done():
            found.append(first())
        busy.result()
    return found


@pytest.fixture(scope="module")
def wrecked(tiny: Subject, tiny_task: Task) -> mansu.Edit:
    return mansu.unlearn(tiny, tiny_task, method="ga", steps=12, learning_rate=1e-3)


def test_a_measurement_beside_an_edit_is_of_the_unedited_model(
    tiny: Subject, tiny_task: Task, wrecked: mansu.Edit
) -> None:
    def unedited() -> float:
        return mansu.evaluate(tiny, tiny_task).splits["forget"].accuracy

    def edited() -> float:
        return mansu.evaluate(tiny, tiny_task, wrecked).splits["forget"].accuracy

    apart = unedited()
    assert apart > edited()
    assert set(together(unedited, edited)) == {apart}


def test_attribution_beside_an_edit_and_another_attribution(
    tiny: Subject, tiny_task: Task, wrecked: mansu.Edit
) -> None:
    def scores(pairs: int = 8) -> torch.Tensor:
        return mansu.attribute(tiny, tiny_task, pairs=pairs, steps=2).scores

    def edited() -> None:
        mansu.evaluate(tiny, tiny_task, wrecked)

    apart = scores()
    for other in (edited, lambda: scores(24)):
        assert all(torch.equal(found, apart) for found in together(scores, other, times=3))
