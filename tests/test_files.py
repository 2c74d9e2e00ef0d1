"""Files are whole, and hold only what JSON has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mansu.errors import MansuError
from mansu.files import read_json, write_json


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
        MansuError, match=f"found.json was not written: {field} in it is not finite"
    ):
        write_json(path, value)
    assert read_json(path) == {"before": 1.5} and list(tmp_path.iterdir()) == [path]
