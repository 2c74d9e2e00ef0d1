"""Fixtures that many test files share: the subjects are loaded once a session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import pytest

from mansu import subjects, tasks


@pytest.fixture(scope="session")
def tiny() -> subjects.Subject:
    return subjects.load(subjects.TINY)


@pytest.fixture(scope="session")
def tiny_task() -> tasks.Task:
    return tasks.load("tiny-colours")


@pytest.fixture(scope="session")
def default_subject() -> subjects.Subject:
    """SmolLM2-135M-Instruct: takes seconds, so use it only where the real model matters."""
    return subjects.load(subjects.DEFAULT)
