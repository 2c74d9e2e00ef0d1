"""Data sets in the hub's schema: every format reads alike, and bad ones say why in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from mansu.errors import MansuError
from mansu.sets import choices, hub, tofu

SCHEMA = {"question": "a string", "choices": hub.LISTS, "answer": "a number"}
ROWS: list[dict[str, Any]] = [
    {"question": "Which?", "choices": ["a", "b, c", 'd"', "é"], "answer": 2},
    {"question": "Two\nlines?", "choices": ["x", "y", "z", "w"], "answer": 0},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:  # a list is JSON in a cell
        flat = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
        datasets.Dataset.from_list(flat).to_csv(path)
    return path


@pytest.mark.parametrize("suffix", hub.FORMATS)
def test_every_format_gives_the_rows_that_were_written(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    assert hub.read(str(path), SCHEMA) == ROWS


@pytest.mark.parametrize(
    "name", ["cfg/test-00000-of-00001.parquet", "cfg/test.json", "cfg.jsonl", "cfg/test.csv"]
)
def test_a_copy_of_a_hub_repository_is_read_by_config_and_split(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    write(tmp_path / "other" / "test.json", ROWS[:1])
    assert hub.read(f"{tmp_path}:cfg:test", SCHEMA) == ROWS
    assert hub.read(f"{tmp_path}:cfg", SCHEMA, split="test") == ROWS


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "cfg" / "test-00001-of-00002.parquet", ROWS[1:])
    write(tmp_path / "cfg" / "test-00000-of-00002.parquet", ROWS[:1])
    assert hub.read(f"{tmp_path}:cfg", SCHEMA) == ROWS


def test_a_hub_id_goes_through_load_dataset_with_its_config_and_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert hub.read("cais/wmdp:wmdp-bio", SCHEMA) == ROWS
    assert asked == [(("cais/wmdp", "wmdp-bio"), {"split": "test"})]
    assert choices.read("cais/wmdp:wmdp-bio")[0].about == "biology"


def test_a_hub_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(MansuError, match=r"reached from this machine.*'cais/no-such-set'"):
        hub.read("cais/no-such-set:wmdp-bio", SCHEMA)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bad.jsonl", "{oops", "The file .*bad.jsonl' cannot be read"),
        ("bad.parquet", "no parquet", "The file .*bad.parquet' cannot be read"),
        ("bad.txt", "text", "'bad.txt' is of no format"),
        ("empty.json", "[]", "cannot be read|has no rows"),
        ("lack.jsonl", '{"question": "Q", "answer": 1}', "lacks the column 'choices' .a list of"),
        (
            "type.jsonl",
            '{"question": "Q", "choices": ["a"], "answer": 1}\n'
            '{"question": "", "choices": ["a"], "answer": 1}',
            "Row 2 of .*type.jsonl has 'question' = '', which must be a string",
        ),
        (
            "number.jsonl",
            '{"question": "Q", "choices": ["a", "b", "c", "d"], "answer": "B"}',
            "Row 1 of .* has 'answer' = 'B', which must be a number",
        ),
        (
            "cell.csv",
            'question,choices,answer\nQ,"a; b",1\n',
            "Row 1 of .* has 'choices' = .*, which must be a list of strings",
        ),
    ],
)
def test_a_malformed_file_is_one_sentence(
    name: str, content: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MansuError, match=sentence):
        hub.read(str(tmp_path / name), SCHEMA)


def test_the_sentence_on_a_missing_column_gives_the_schema_and_what_is_there(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "rows.json", [{"question": "Q", "reply": "A"}])
    with pytest.raises(MansuError) as error:
        tofu.read(str(path))
    assert "lacks the column 'answer' (a string); it has 'question', 'reply'" in str(error.value)
    assert "The schema is question (a string), answer (a string)." in str(error.value)


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(MansuError, match=r"There is no file 'nowhere.json'"):
        hub.read("nowhere.json", SCHEMA)
    with pytest.raises(MansuError, match="has no file for the config 'cfg' and the split 'test'"):
        hub.read(f"{tmp_path}:cfg", SCHEMA)


def test_the_script_writes_sets_that_the_readers_read(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "hub_sets.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    wmdp = choices.read(f"{tmp_path}/wmdp:wmdp-chem")
    assert {q.about for q in wmdp} == {"chemistry"} and len(wmdp) > 40
    gold = next(q for q in wmdp if "gold" in q.question)
    assert gold.choices[gold.answer] == "Au"
    mmlu = choices.read(f"{tmp_path}/mmlu:all")
    assert {q.about for q in mmlu} == {"geography", "world languages", "vocabulary"}
    for name in ("forget10", "retain", "world_facts"):
        rows = tofu.read(f"{tmp_path}/tofu:{name}_perturbed")
        assert all(len(r.perturbed) == 3 and r.paraphrased not in r.perturbed for r in rows)
