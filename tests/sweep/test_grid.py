"""A grid's file gives each combination once, and a slip in it is one sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from mansu.errors import BadInputError
from mansu.methods.graddiff import METHOD
from mansu.methods.training import TOY_RATE
from mansu.settings import settings_of
from mansu.sweep.grid import circuits, read, units

GradDiff = METHOD.settings
GRID = """
subjects = ["tiny"]
tasks = ["tiny-colours"]
seeds = [0, 1]
[run]
pairs = 8
[methods.mansu]
rate = [0.06, 0.12]
steps = [2, 3]
[methods.graddiff]
"""


def written(folder: Path, text: str, name: str = "grid.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_each_combination_is_a_unit_once(tmp_path: Path) -> None:
    found = units(read(written(tmp_path, GRID)))
    assert len(found) == len({u.id for u in found}) == 2 * (4 + 1)
    assert len(circuits(found)) == 2  # one a seed
    assert {u.run["pairs"] for u in found} == {8}
    tried = {(u.given["rate"], u.given["steps"]) for u in found if u.method == "mansu"}
    assert tried == {(0.06, 2), (0.06, 3), (0.12, 2), (0.12, 3)}
    assert pickle.loads(pickle.dumps(found[0])) == found[0]  # on its way to a worker


def test_a_unit_is_another_where_an_empty_setting_stands_for_another_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result of yesterday's default rate is not today's."""
    before = {u.method: u for u in units(read(written(tmp_path, GRID)))}
    assert before["graddiff"].settings["learning_rate"] == (GradDiff.RATE, TOY_RATE)
    field = GradDiff.__dataclass_fields__["learning_rate"]
    known = {**field.metadata, "empty": (1e-4, TOY_RATE)}
    monkeypatch.setattr(field, "metadata", known)
    settings_of.cache_clear()
    try:
        now = {u.method: u for u in units(read(written(tmp_path, GRID)))}
    finally:
        monkeypatch.undo()
        settings_of.cache_clear()
    assert now["graddiff"].id != before["graddiff"].id
    assert now["mansu"].id == before["mansu"].id  # the rate is given


def test_json_says_the_same_and_what_is_said_twice_is_done_once(tmp_path: Path) -> None:
    toml = units(read(written(tmp_path, GRID)))
    value = {
        "subjects": ["tiny", "tiny"],
        "tasks": ["tiny-colours"],
        "seeds": [0, 1],
        "run": {"pairs": 8},
        "methods": {"mansu": {"rate": [0.06, 0.12], "steps": [2, 3, 3]}, "graddiff": {}},
    }
    found = units(read(written(tmp_path, json.dumps(value), "grid.json")))
    assert [u.id for u in found] == [u.id for u in toml]


def test_a_folder_is_one_subject_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    whole = str(tmp_path / "models" / "mine")
    several = json.dumps(["models/mine", whole, "~/models/mine"])
    found = units(read(written(tmp_path, GRID.replace('["tiny"]', several))))
    assert len(found) == 10 and {unit.subject for unit in found} == {whole}


def test_a_unit_is_another_where_its_task_or_a_setting_is(tmp_path: Path) -> None:
    task = tmp_path / "mine.jsonl"
    line = '{"prompt": "The colour of grass is", "answer": " green", "split": "forget"}\n'
    lines = line + line.replace("forget", "retain")
    text = GRID.replace('"tiny-colours"', json.dumps(str(task)))
    found = []
    for content in (lines, lines.replace("grass", "moss")):
        task.write_text(content)
        found.append({u.id for u in units(read(written(tmp_path, text)))})
    found.append({u.id for u in units(read(written(tmp_path, text.replace("= 8", "= 9"))))})
    assert not found[0] & found[1] and not found[1] & found[2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("subjects", "subject"), "subjects: Field required"),
        (('["tiny"]', '"tiny"'), "subjects: Input should be a valid list"),
        (('["tiny"]', "[]"), "subjects: List should have at least 1 item"),
        (("[0, 1]", "[0.5]"), r"seeds\.0: Input should be a valid integer"),
        (("[0, 1]", "[-1]"), "seed of a run is -1"),
        (("tiny-colours", "colors"), "Unknown task 'colors'"),
        (("methods.mansu", "methods.magic"), "magic"),
        (("rate", "speed"), "'speed' is no setting of mansu"),
        (("[0.06, 0.12]", "[0.06, -3]"), "rate of mansu is -3"),
        (("[0.06, 0.12]", "[]"), "empty list"),
        (("pairs = 8", "pairs = 0"), "pairs of a run is 0"),
        (("pairs = 8", "seed = 8"), "table run has a seed"),
        (("[2, 3]", str(list(range(1, 6000)))), "more than 10,000 settings"),
        (("[0, 1]", str(list(range(9000)))), "45,000 units, and 10,000 are the most"),
        (("[run]", "[run"), "it is no TOML"),
        *(
            (("[0.06, 0.12]", bad), r"methods\.mansu\.rate: give a number, text, true or false, or")
            for bad in ("nan", "inf", "[[0.1]]", "{a = 1}", "2020-01-01", "[0.1, nan]")
        ),
        *(
            (("pairs = 8", f"pairs = {bad}"), r"run\.pairs: give a number, text, true or false\)")
            for bad in ("nan", "[8]", "{a = 1}", "2020-01-01")
        ),
    ],
)
def test_a_wrong_grid_is_one_sentence(
    change: tuple[str, str], sentence: str, tmp_path: Path
) -> None:
    assert change[0] in GRID
    with pytest.raises(BadInputError, match=sentence) as found:
        units(read(written(tmp_path, GRID.replace(*change))))
    assert "\n" not in str(found.value)


def test_a_reference_that_does_not_ship_is_refused_with_its_grid(tmp_path: Path) -> None:
    grid = GRID.replace("graddiff", "retrained")
    assert units(read(written(tmp_path, grid)))
    two = grid.replace('["tiny-colours"]', '["tiny-colours", "capitals"]')
    with pytest.raises(
        BadInputError, match=r"No retrained reference ships .* 'capitals' on 'tiny'"
    ):
        units(read(written(tmp_path, two)))


def test_a_grid_with_a_byte_order_mark_is_the_grid(tmp_path: Path) -> None:
    """Some editors write one; a task file may have it, too."""
    plain = read(written(tmp_path, GRID))
    for name, text in (("marked.toml", GRID), ("marked.json", plain.model_dump_json())):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read(tmp_path / name) == plain


def test_another_file_is_refused(tmp_path: Path) -> None:
    for name, text in (("g.yaml", ""), ("g.json", "[" * 100_000), ("g.json", "3")):
        with pytest.raises(BadInputError):
            read(written(tmp_path, text, name))
    with pytest.raises(BadInputError, match="No such file"):
        read(tmp_path / "none.toml")
