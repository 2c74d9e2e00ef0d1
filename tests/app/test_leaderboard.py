"""The leaderboard shows the store: every edit, its verdict, and the way to its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made import ranked
from streamlit.testing.v1 import AppTest

from app import charts, leaderboard_view
from mansu.job.runs import EXAMPLES, Run
from mansu.sweep.store import FILE, Store

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one of the two runs whose edits are in its store, and one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    for example in sorted(EXAMPLES.iterdir()):
        ranked(folder, Run.open(example))
    failed = {"unit": "x", "subject": "tiny", "task": "mine", "method": "npo", "given": {}}
    Store(folder / FILE).put({**failed, "seed": 0, "state": "failed", "error": "No *such* thing."})
    shutil.copytree(EXAMPLES / "tiny-colours", folder / "tiny-colours")
    patch = pytest.MonkeyPatch()
    patch.setenv("MANSU_RUNS", str(folder))
    yield folder
    patch.undo()


def opened(**query: str) -> AppTest:
    at = AppTest.from_file(str(MAIN), default_timeout=90)
    for name, value in query.items():
        at.query_params[name] = value
    at.switch_page("../pages/leaderboard.py").run()
    assert not at.exception
    return at


def test_every_edit_is_a_row_with_its_verdict(folder: Path) -> None:
    at, rows = opened(), Store(folder / FILE).rows()
    (frame,) = (each.value for each in at.dataframe)
    assert len(frame) == len(rows) == 5
    told = {row["unit"]: row for row in rows}
    forgotten = told["chemical-symbols-mansu"]["forgotten"]
    assert round(100 * forgotten, 1) in list(frame["Forgotten, points"])
    passed = [sum(cell == "✓ passed" for cell in cells) for cells in frame.values]
    assert passed[:4] == sorted(passed[:4], reverse=True)
    assert frame["Verdict"].iloc[-1] == "not made"  # which is no verdict
    assert any(r"No \*such\* thing" in each.value for each in at.markdown)
    figure = charts.forgotten_kept(leaderboard_view.spots(rows))
    assert sorted(x for trace in figure.to_dict()["data"] for x in trace["x"]) == sorted(
        row["forgotten"] for row in rows if row["verdict"]
    )
    lost = sorted(row["kept_loss"] for row in rows if row["verdict"])
    assert sorted(y for trace in figure.to_dict()["data"] for y in trace["y"]) == lost
    assert "nats" in figure.to_dict()["layout"]["yaxis"]["title"]["text"]
    assert sorted(frame["Kept lost, nats"].dropna()) == lost and lost[-1] > 0.1


def test_one_edit_is_told_of_as_one() -> None:
    row = {"verdict": "passed", "state": "done"}
    said = leaderboard_view.best([row])
    assert said == "1 edit was judged, and 1 passed all four properties."
    assert leaderboard_view.best([row, row]).startswith("2 edits were judged, and 2 passed")


def test_a_link_chooses_what_is_shown(folder: Path) -> None:
    at = opened(board_task="chemical-symbols", unit="chemical-symbols-mansu_no_floor")
    (frame,) = (each.value for each in at.dataframe)
    assert set(frame["Task"]) == {"chemical-symbols"} and len(frame) == 2
    verdict = Run.open(EXAMPLES / "chemical-symbols").verdict("mansu_no_floor")
    boxes = [box.label for box in at.expander]
    assert [label.split(" (")[1] for label in boxes] == [
        f"{len(each.checks)} checks)" for each in verdict.properties
    ]
    at.session_state[f"folded chemical-symbols-mansu_no_floor {boxes[0]}"] = True
    checks = at.run().table[0].value
    assert len(checks) == len(verdict.properties[0].checks)
    assert any("not among the runs" in each.value for each in at.markdown)
    assert not at.get("page_link")
    here = opened(unit="tiny-colours-mansu").get("page_link")
    assert ["run=tiny-colours" in link.proto.query_string for link in here] == [True, True]


def test_without_a_sweep_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    at = opened()
    assert "mansu sweep" in at.code[1].value and not at.dataframe
    (tmp_path / FILE).write_text("none" * 500)
    assert "move it away" in opened().error[0].value


def test_a_column_of_text_is_as_wide_as_its_longest(folder: Path) -> None:
    shown = leaderboard_view.table(Store(folder / FILE).rows())
    (proto,) = (each.proto for each in opened().dataframe)
    columns = json.loads(proto.columns)
    for name in ("Method", "Task", "Settings", "Subject"):
        longest = max(map(len, shown[name]))
        assert columns[name]["width"] > 6.5 * longest, name
    assert leaderboard_view.widths(shown.assign(Task="x" * 999))["Task"] < 500
