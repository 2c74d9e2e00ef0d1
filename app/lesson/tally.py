"""The answers of everybody on this server, without names, until a teacher clears them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock

import streamlit as st

Said = float | str
"""What one person said in one step: a number, or the choice that they made."""


class Board:
    """Answers by step; a person who answers a step again is counted once, with the later answer."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._said: dict[str, dict[str, tuple[Said, str]]] = {}

    def put(self, step: str, person: str, said: Said, caught: str = "") -> None:
        """Keep an answer.

        Args:
            person: a random token; it says nothing about who it is.
            caught: the common mistake that it shows, if it shows one.
        """
        with self._lock:
            self._said.setdefault(step, {})[person] = said, caught

    def answers(self, step: str) -> list[Said]:
        """Of everybody, in no order that tells who is who."""
        with self._lock:
            return sorted((said for said, _ in self._said.get(step, {}).values()), key=str)

    def caught(self, step: str) -> Mapping[str, int]:
        """The common mistakes that answers show, and how many do."""
        with self._lock:
            return Counter(found for _, found in self._said.get(step, {}).values() if found)

    def counts(self) -> Mapping[str, int]:
        """How many people have answered, by step."""
        with self._lock:
            return {step: len(said) for step, said in self._said.items()}

    def clear(self) -> None:
        """Forget every answer."""
        with self._lock:
            self._said.clear()


@st.cache_resource(show_spinner=False)
def board() -> Board:
    """The one of this server."""
    return Board()
