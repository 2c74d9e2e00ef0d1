"""Models in memory: counted by their bytes, let go of oldest first, never while they are in use."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from app import state
from app.shelf import Shelf, bytes_of
from mansu import subjects, tasks
from mansu.circuits import lens
from mansu.errors import BadInputError, MansuError
from mansu.job.limits import limits
from mansu.quant import NF4, Dequantized
from mansu.subjects import Subject


def large(n: int = 100) -> Dequantized:
    """Something of n bytes."""
    return Dequantized({"w": torch.zeros(n, dtype=torch.uint8)}, NF4)


def test_models_stay_within_the_budget_and_one_in_use_is_never_there_twice(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = bytes_of(tiny)
    assert size == sum(p.nbytes for p in tiny.parameters.values())
    assert size == subjects.expected_bytes(subjects.TINY)
    shelf = Shelf(2.5 * size, patience=0.3)
    monkeypatch.setattr(state, "shelf", lambda: shelf)
    copy = shutil.copytree(subjects.TINY_FOLDER, tmp_path / "copy")
    first = state.subject(subjects.TINY)
    weight = weakref.ref(next(iter(first.parameters.values())))
    assert state.subject(subjects.TINY) is first
    state.subject(subjects.RETRAINED)
    assert shelf.taken() == 2 * size
    third = state.subject(str(copy))  # the reference makes room: the first is in use
    assert shelf.taken() == 2 * size and third.fingerprint == first.fingerprint
    with pytest.raises(MansuError, match=r"^Loading the model: it takes 1\.8 MiB.* --memory"):
        state.subject(subjects.RETRAINED)
    assert state.subject(subjects.TINY) is first  # let go of in vain, and still the same one
    del first
    state.subject(subjects.RETRAINED)
    assert weight() is None  # its memory, too, is free
    assert shelf.taken() <= 2.5 * size


def test_what_was_used_longest_ago_makes_room() -> None:
    shelf = Shelf(250)
    for key in ("a", "b", "a", "c"):
        shelf.get(key, large, "x", 100)
    assert shelf.keys() == ["a", "c"] and shelf.taken() == 200
    shelf.get("unknown before", lambda: large(200), "x")
    assert shelf.keys() == ["unknown before"] and shelf.taken() == 200
    with pytest.raises(MansuError, match=r"takes 30\.0 MiB, .* 25\.0 MiB here\. Have the"):
        Shelf(25 * 2**20).get("too large", large, "x", 30 * 2**20)  # no waiting helps
    with pytest.raises(MansuError, match="models may take"):
        shelf.get("too large", large, "x", 300)
    assert shelf.keys() == ["unknown before"]  # nothing is let go of for what fits nowhere


def test_memory_that_another_session_uses_is_waited_for() -> None:
    shelf, held = Shelf(150, patience=30), []
    held.append(shelf.get("a", large, "x", 100))
    threading.Timer(0.4, held.clear).start()
    shelf.get("b", large, "x", 100)
    assert not held and shelf.keys() == ["b"] and shelf.taken() == 100


def test_many_sessions_that_ask_at_once_get_one_and_a_failure_leaves_no_trace() -> None:
    shelf, made, found = Shelf(1000), [], []

    def make() -> Dequantized:
        time.sleep(0.05)
        made.append(large())
        return made[-1]

    threads = [
        threading.Thread(target=lambda: found.append(shelf.get("a", make, "x"))) for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(made) == 1 and all(each is made[0] for each in found) and len(found) == 6

    def fails() -> Dequantized:
        raise BadInputError("no")

    with pytest.raises(BadInputError):
        shelf.get("b", fails, "x", 900)
    assert shelf.taken() == 100


def test_what_refers_to_a_model_is_counted_without_it(tiny: Subject) -> None:
    pairs = tasks.pairs(tasks.load("tiny-colours"), tiny, n=2)
    look = lens.look(tiny, lens.Asked.of(pairs, 0))
    assert look.patterns.nbytes + look.logits.nbytes < bytes_of(look) < bytes_of(tiny)


def test_limits_are_said_by_variables_and_go_by_the_machine_where_they_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MANSU_MEMORY", raising=False)
    monkeypatch.setenv("MANSU_JOBS", "3")
    found = limits()
    assert found.jobs == 3 and found.memory and 0.1 < found.memory < 10_000
    monkeypatch.setenv("MANSU_JOBS", "none")
    with pytest.raises(
        BadInputError, match=r"jobs of the server \(MANSU_JOBS\) is 'none': give a whole number"
    ):
        limits()
