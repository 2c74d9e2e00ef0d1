"""Work on a model that its memory does not hold finds what it finds in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mansu.errors import StorageError
from mansu.subjects import offload
from mansu.subjects.loading import load

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_with_the_memory_capped_the_work_on_the_disk_goes_on_and_is_the_same() -> None:
    """In a process of its own: the cap is the process's."""
    command = [sys.executable, "-m", "experiments.benchmarks.capped"]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(said)
    assert "memory" in found["failed"]  # in memory
    assert found["same"]
    assert max(found["cap"], found["offloaded"][0]) < found["in_memory"][0]


def test_a_copy_on_the_disk_has_the_bytes_and_leaves_no_file(tmp_path: Path) -> None:
    values = torch.randn(7, 5).to(torch.bfloat16)
    found = offload.on_disk(values, tmp_path / "new")
    assert torch.equal(found, values) and found.data_ptr() != values.data_ptr()
    found[0] = 1  # pages of a file that nobody else has
    assert not torch.equal(found, values) and not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        offload.on_disk(values, tmp_path / "file" / "new")


def test_a_checkpoint_is_converted_only_where_it_must_be(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, source / "model.safetensors")
    (source / "config.json").write_text("{}")
    with offload.converted(source, torch.bfloat16, tmp_path / "room") as same:
        assert same == source
    with offload.converted(source, torch.float32, tmp_path / "room") as new:
        assert load_file(new / "model.safetensors")["w"].dtype == torch.float32
        assert (new / "config.json").is_file()
    assert not list((tmp_path / "room").iterdir())


def test_a_model_that_the_memory_does_not_hold_is_offloaded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load("tiny").offload is None
    monkeypatch.setenv("MANSU_CACHE", str(tmp_path))
    monkeypatch.setattr(offload, "machine_memory", lambda: 1 << 20)
    assert load("tiny").offload == tmp_path / "offload"
