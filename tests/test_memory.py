"""Values that are kept: as many as there is room for, the last used last."""

from __future__ import annotations

import pytest

from mansu.memory import Memory


def test_what_was_used_longest_ago_makes_room() -> None:
    memory: Memory[str] = Memory(8)
    for key in ("a", "b", "a", "c", "d", "a", "e"):
        assert memory.get(key, lambda key=key: key.upper(), 2) == key.upper()
    made: list[str] = []
    for key in ("a", "c", "d", "e", "b"):
        memory.get(key, lambda key=key: made.append(key) or key.upper(), 2)
    assert made == ["b"] and memory.taken == 8


def test_what_is_large_or_fails_is_made_again() -> None:
    memory: Memory[int] = Memory(8)
    assert [memory.get("large", lambda i=i: i, 3) for i in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        memory.get("fails", lambda: 1 // 0)
    assert memory.get("fails", lambda: 2) == 2 and memory.taken == 1
