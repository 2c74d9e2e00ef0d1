"""What was changed for a while is put back, whatever signal arrives in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from mansu.interrupts import put_back, waiting
from mansu.methods.training import scratch
from mansu.quant import quantized
from mansu.subjects import Edit, Subject
from mansu.subjects.edit import touched


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM raises KeyboardInterrupt, as Ctrl-C does."""

    def raising(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raising)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), waiting():
        os.kill(os.getpid(), signal.SIGALRM)
        done.append("after the signal")
    assert done == ["after the signal"]


@pytest.mark.usefixtures("alarm")
def test_what_is_put_back_is_put_back_whole() -> None:
    values = [1, 2, 3]

    def undo() -> None:
        for i in range(len(values)):
            if i == 1:
                os.kill(os.getpid(), signal.SIGALRM)
            values[i] = 0

    with pytest.raises(KeyboardInterrupt):
        put_back(undo)
    assert values == [0, 0, 0]


def _edited(tiny: Subject) -> AbstractContextManager[Any]:
    name = next(n for n in tiny.quantized_names if "down" in n)
    count = tiny.parameters[name].numel()
    return Edit({name: (torch.arange(count), torch.ones(count))}).applied(tiny)


WAYS: dict[str, Callable[[Subject], AbstractContextManager[Any]]] = {
    "edit": _edited,
    "nf4": quantized,
    "training": lambda tiny: scratch(tiny, tiny.quantized_names),
}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("way", WAYS)
def test_the_subject_is_bit_for_bit_itself_after_an_interrupt(tiny: Subject, way: str) -> None:
    before = {n: p.detach().clone() for n, p in tiny.parameters.items()}
    with WAYS[way](tiny):
        pass
    for microseconds in range(50, 6000, 250):  # anywhere in the block's life
        signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
        try:
            with WAYS[way](tiny):
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)  # in here: it may yet go off before this
        except KeyboardInterrupt:
            pass
        assert not touched(tiny)
        assert all(torch.equal(p, before[n]) for n, p in tiny.parameters.items()), microseconds
        assert not any(p.requires_grad for p in tiny.parameters.values())
