"""Fixtures that many test files share: the subjects are loaded once a session."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # before torch is, as mansu has it
if at_once := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # what tests start shares its cores, too
    threads = max(1, (os.cpu_count() or 1) // int(at_once))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from experiments.benchmarks.canvas import ARGUMENTS, CHROMIUM
from mansu import subjects, tasks
from mansu.methods import Problem

MAIN = sys.modules["__main__"]

# No test asserts a time, an example's neither: 200 ms are soon over on a busy machine.
hypothesis.settings.register_profile("timeless", deadline=None)
hypothesis.settings.load_profile("timeless")


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """A page that Streamlit's AppTest ran stays ``__main__``, which a spawned process would run."""
    yield
    sys.modules["__main__"] = MAIN


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


@pytest.fixture(scope="module")
def problem(tiny: subjects.Subject, tiny_task: tasks.Task) -> Problem:
    forget, retain = (tasks.examples(tiny_task, tiny, s) for s in ("forget", "retain"))
    return Problem(tiny, tiny_task, forget, retain, tasks.text(tiny_task, tiny))


@pytest.fixture
def untouched(tiny: subjects.Subject) -> Iterator[None]:
    """Fails the test unless it leaves the weights bit for bit as they were."""
    before = {n: p.clone() for n, p in tiny.parameters.items()}
    yield
    for name, parameter in tiny.parameters.items():
        assert torch.equal(parameter.view(torch.int32), before[name].view(torch.int32)), name
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one the tests are skipped, and fail where CI must have it."""
    if not CHROMIUM:
        sentence = "No Chromium here: install one (apt-get install chromium) to run this test."
        pytest.fail(sentence) if os.environ.get("CI") == "true" else pytest.skip(sentence)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()
