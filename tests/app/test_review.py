"""The Review page: what is shown, signed and taken along."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import changed, run_of
from streamlit.testing.v1 import AppTest

from mansu.job.runs import Run
from mansu.measure.scores import measure_task
from mansu.report.dossier import about_table, counts_table, dossier, notes_table
from mansu.report.repeat import WHERE
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

PAGE = Path(__file__).resolve().parents[2] / "pages" / "review.py"


@pytest.fixture
def run(tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    base = measure_task(tiny, tiny_task)
    edited = changed(base, forget={"correct": 0.0, "log_probability": -9.0})
    return run_of(tmp_path / "mine", tiny, tiny_task, base, {"mansu": edited, "ga": base})


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(str(PAGE), default_timeout=60)
    app.query_params |= query
    app.run()
    assert not app.exception, app.exception
    return app


def tables(app: AppTest) -> list[dict[str, list[str]]]:
    return [t.value.to_dict("list") for t in app.table]


def test_it_shows_what_the_dossier_holds(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    found = dossier(run, "mansu")
    for table in (about_table(found), counts_table(found)):
        assert table.columns in tables(app)
    assert any(f"**{found.status}** ({found.judged.counts})" in m.value for m in app.markdown)
    assert app.code[0].value == "\n".join(found.commands)
    assert any(c.value == WHERE for c in app.caption)  # the first is of another folder
    assert len(app.dataframe[0].value) == sum(f.kind == "not forgotten" for f in found.facts)
    assert any("Not tried" in i.value for i in app.info)  # attacks, that is said


def test_a_decision_is_kept_with_the_edit_it_was_made_on(run: Run) -> None:
    app = opened(run="mine", edit="mansu", nats="0.5")
    app.text_input[0].set_value("Ada *Lovelace*")
    app.radio[0].set_value("rejected")
    app.text_area[0].set_value("Rephrasings are still answered.")
    (button,) = [b for b in app.button if b.label == "Sign"]
    button.click().run()
    assert not app.exception and not app.error
    signed = run.read("review", "mansu")
    assert (signed.decision, signed.name) == ("rejected", "Ada *Lovelace*")
    assert signed.notes == {"forgetting": "Rephrasings are still answered."}
    assert signed.thresholds == {"nats": 0.5}
    assert notes_table(signed).columns in tables(app)  # in sight, not only in the form
    assert any("Ada \\*Lovelace\\*" in w.value for w in app.warning)
    assert "signed by moved thresholds" in app.warning[-1].value
    assert "kept with the run" in app.success[-1].value  # said where the button is
    assert not app.run().success  # once
    other = opened(run="mine", edit="ga")
    assert any("Nobody has signed" in i.value for i in other.info)


def test_a_signature_without_a_decision_or_a_name_is_refused(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    (button,) = [b for b in app.button if b.label == "Sign"]
    button.click().run()
    assert "Choose a decision" in app.error[0].value and not run.has("review", "mansu")
    app.radio[0].set_value("accepted")
    (button,) = [b for b in app.button if b.label == "Sign"]
    button.click().run()
    assert "needs a name" in app.error[0].value and not run.has("review", "mansu")


def test_another_edit_s_dossier_is_held_beside_it(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    (box,) = [s for s in app.selectbox if s.label == "Or an edit that is here"]
    box.set_value("mine/ga").run()
    assert not app.exception
    (beside,) = [t for t in tables(app) if "mine, ga" in t]
    assert dict(zip(beside["What"], beside["Alike?"], strict=True))["Method"] == "differs"
    refused = opened(run="mine", edit="mansu")
    refused.file_uploader[1].upload("other.json", b"{}").run()
    assert "no dossier" in refused.error[0].value


def test_a_bundle_that_is_brought_becomes_the_chosen_run(run: Run, tmp_path: Path) -> None:
    from mansu import exports

    exports.pack(run, tmp_path / "x.zip")
    app = opened(run="mine")
    app.file_uploader[0].upload("x.zip", (tmp_path / "x.zip").read_bytes()).run()
    (button,) = [b for b in app.button if b.label == "Add this run"]
    button.click().run()
    assert not app.exception
    assert Run.open(tmp_path / "mine-2").edits() == run.edits()


def test_a_damaged_run_is_said(run: Run) -> None:
    run.file("full", "mansu").write_text("{}")
    app = opened(run="mine", edit="mansu")
    assert "damaged" in app.error[0].value and not app.table
