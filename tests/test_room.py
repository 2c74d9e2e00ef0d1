"""The collector waits while a process of ours imports, and only then."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from mansu.room import unwatched

STARTED = """
import gc, sys
from mansu import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.parametrize("enabled", (True, False))
def test_nothing_is_collected_in_the_block_and_it_goes_on_after_a_failure(enabled: bool) -> None:
    begun: list[str] = []
    note = lambda phase, _: begun.append(phase)  # noqa: E731
    gc.collect()
    if not enabled:
        gc.disable()
    gc.callbacks.append(note)
    try:
        with pytest.raises(KeyError), unwatched():
            kept = [[n] for n in range(100_000)]
            raise KeyError
        assert begun == [] and len(kept) == 100_000
        assert gc.isenabled() == enabled and gc.get_freeze_count() > 100_000
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize(("command", "many"), (("quantize", True), ("task", False)))
def test_a_command_that_loads_a_model_imports_unwatched(command: str, many: bool) -> None:
    """And goes on with the collector on."""
    given = [sys.executable, "-c", STARTED, command, "nowhere"]
    said = subprocess.run(given, capture_output=True, text=True).stdout.split()
    assert said[0] == "True" and (int(said[1]) > 100_000) == many
