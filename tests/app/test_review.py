"""The Review page: what is shown, signed and taken along."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chromium import settled
from made import changed, run_of
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from mansu.job.runs import Run
from mansu.measure.scores import measure_task
from mansu.report.dossier import about_table, counts_table, dossier, notes_table, review_of
from mansu.report.repeat import WHERE
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

PAGE = Path(__file__).resolve().parents[2] / "pages" / "review.py"


@pytest.fixture
def run(tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    return made(tmp_path, tiny, tiny_task)


def made(home: Path, tiny: Subject, tiny_task: Task) -> Run:
    base = measure_task(tiny, tiny_task)
    edited = changed(base, forget={"correct": 0.0, "log_probability": -9.0})
    return run_of(home / "mine", tiny, tiny_task, base, {"mansu": edited, "ga": base})


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(str(PAGE), default_timeout=60)
    app.query_params |= query
    app.run()
    assert not app.exception, app.exception
    return app


def tables(app: AppTest) -> list[dict[str, list[str]]]:
    return [t.value.to_dict("list") for t in app.table]


def fill(app: AppTest, decision: str | None, name: str, note: str) -> None:
    """Type into the form; what is not sent by its button an ``AppTest`` forgets in its next run."""
    app.radio[0].set_value(decision)
    app.text_input[0].set_value(name)
    app.text_area[0].set_value(note)


def filled(app: AppTest) -> tuple[object, ...]:
    """The decision, the name and the notes that stand in the form."""
    return app.radio[0].value, app.text_input[0].value, *(area.value for area in app.text_area[:4])


def press(app: AppTest, title: str = "MANSU") -> None:
    (button,) = [b for b in app.button if b.label == f"Sign the edit “{title}”"]
    button.click().run()
    assert not app.exception, app.exception


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
    fill(app, "rejected", "Ada *Lovelace*", "Rephrasings are still answered.")
    press(app)
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
    press(app)
    assert "Choose a decision" in app.error[0].value and not run.has("review", "mansu")
    app.radio[0].set_value("accepted")
    press(app)
    assert "needs a name" in app.error[0].value and not run.has("review", "mansu")


def test_nobody_s_signature_takes_the_place_of_what_somebody_else_typed(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    notes = {"forgetting": "It avoids the answer.", "gap": "Four facts."}
    anna = review_of(dossier(run, "mansu"), "rejected", "Anna", notes)
    run.save({"review": anna}, "mansu")
    app.run()  # drawn anew for another reason, it is not read yet
    fill(app, "accepted", "Bob", "I accept this.")
    press(app)
    assert run.read("review", "mansu") == anna
    (error,) = app.error
    assert "Anna has signed since you opened this form" in error.value
    assert any("Rejected: Anna" in w.value for w in app.warning)
    assert filled(app) == ("accepted", "Bob", "I accept this.", "", "", "")
    press(app)  # that was read
    signed = run.read("review", "mansu")
    assert (signed.decision, signed.name) == ("accepted", "Bob")
    assert signed.notes == {"forgetting": "I accept this."} and not app.error
    press(app)  # his own is no news
    assert not app.error


def test_nobody_signs_for_evidence_that_was_not_on_the_page(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    fill(app, "accepted", "Bob", "")
    run.save({"nf4": run.base(nf4=True)}, "mansu")
    press(app)
    (error,) = app.error
    assert "changed: measurement in NF4" in error.value and not run.has("review", "mansu")
    press(app)
    assert run.read("review", "mansu").name == "Bob"


def test_what_is_typed_for_an_edit_is_of_that_edit(run: Run) -> None:
    ada = review_of(dossier(run, "ga"), "rejected", "Ada", {"gap": "Of GA."})
    run.save({"review": ada}, "ga")
    app = opened(run="mine", edit="mansu")
    fill(app, None, "Bob", "Of MANSU.")
    press(app)
    assert "Choose a decision" in app.error[0].value
    app.selectbox(key="edit").set_value("ga").run()
    assert filled(app) == (None, "", "", "", "", "")  # nor is Ada's typed for whoever comes next
    fill(app, "accepted", "Bob", "Of GA, too.")
    press(app, "GA")
    assert run.read("review", "ga").name == "Bob" and not run.has("review", "mansu")


def test_a_moved_threshold_takes_no_note_away(run: Run) -> None:
    app = opened(run="mine", edit="mansu")
    fill(app, None, "Bob", "It is near chance.")
    app.text_area[1].set_value("Nothing fell.")
    press(app)
    written = filled(app)
    assert written == (None, "Bob", "It is near chance.", "Nothing fell.", "", "")
    before = dossier(run, "mansu").judged.retention.status
    (slider,) = [s for s in app.slider if s.label.startswith("Drift on text")]
    slider.set_value(0.0).run()
    assert dossier(run, "mansu", {"drift": 0.0}).judged.retention.status != before
    assert filled(app) == written


@pytest.mark.browser
def test_a_moved_threshold_closes_no_form(
    address: str, browser_page: Page, tiny: Subject, tiny_task: Task
) -> None:
    made(Path(os.environ["MANSU_RUNS"]), tiny, tiny_task)
    page = browser_page
    page.goto(f"{address}/review?run=mine&edit=mansu")
    for label in ("Move the thresholds", "Sign the edit “MANSU”"):
        page.get_by_text(label).first.click()
    for field in ("Your name", "Note on retain preservation"):
        page.get_by_label(field).fill("typed, and not sent yet")
    page.get_by_role("slider", name="Drift on text").press("Home")
    expect(page.get_by_text("Judged by moved thresholds")).to_be_visible()
    settled(page)
    for field in ("Your name", "Note on retain preservation"):
        expect(page.get_by_label(field)).to_be_visible()
        expect(page.get_by_label(field)).to_have_value("typed, and not sent yet")


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


def test_an_example_is_not_offered_to_be_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    app = opened(run="tiny-colours", edit="mansu")
    assert any("cannot be signed: copy it" in i.value for i in app.info)
    assert not app.text_input and not app.text_area
