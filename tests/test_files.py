"""Files are whole, and hold only what JSON has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mansu.errors import BadInputError, DamagedError, NotMeasuredError
from mansu.files import load_values, new_folder, read_json, save_values, write_json


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"splits": {"forget": {"margin": [0.5, float("nan")]}}}, r"splits\.forget\.margin\[1\]"),
        ({"a": 1, "b": float("-inf")}, "b"),
        (float("nan"), "the number"),
    ],
)
def test_no_file_holds_a_number_that_is_none(value: Any, field: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_json(path, {"before": 1.5})
    with pytest.raises(
        BadInputError, match=f"found.json was not written: {field} in it is not finite"
    ):
        write_json(path, value)
    assert read_json(path) == {"before": 1.5} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": 1',
        b"\xff\xfe",
        b"9" * 5000,
        b"[" * 100_000,
        b"NaN",
        b"[1e999]",
        None,
    ],
)
def test_json_that_cannot_be_read_is_damaged(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"found\.json .*: make it again\.$"):
        read_json(path)


def test_json_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_bytes('"ü 😀"'.encode())
    assert read_json(tmp_path / "found.json") == "ü 😀"


def test_what_is_not_there_was_not_made_yet(tmp_path: Path) -> None:
    for read in (read_json, load_values):
        with pytest.raises(NotMeasuredError, match="There is no found"):
            read(tmp_path / "found")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_neither_written_nor_read(
    number: float, tmp_path: Path
) -> None:
    path, spoilt = tmp_path / "values.safetensors", {"scores": torch.tensor([1.0, number])}
    with pytest.raises(BadInputError, match="the tensor scores in it is not finite"):
        save_values(path, spoilt, {})
    with pytest.raises(BadInputError, match=r"values\.safetensors was not written: clean in it"):
        save_values(path, {}, {"clean": number})
    assert not path.exists()
    save_file(spoilt, path, {"mansu": "{}"})
    with pytest.raises(DamagedError, match="the tensor scores is not finite"):
        load_values(path)


@pytest.mark.parametrize("header", [None, "[]", "{", "9" * 5000, "[" * 100_000])
def test_tensors_with_another_header_are_damaged(header: str | None, tmp_path: Path) -> None:
    path = tmp_path / "values.safetensors"
    save_file({"a": torch.ones(1)}, path, None if header is None else {"mansu": header})
    with pytest.raises(DamagedError, match=r"values\.safetensors is damaged"):
        load_values(path)
    save_values(path, {"a": torch.ones(2).bool()}, {"b": 1})
    tensors, meta = load_values(path)
    assert tensors["a"].all() and json.dumps(meta) == '{"b": 1}'


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(BadInputError, match="is not an empty folder"), new_folder(path):
            pass
