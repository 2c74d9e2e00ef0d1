"""The Unlearn, NF4 and Compare pages, on a finished run of the tiny subject."""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from streamlit import config
from streamlit.testing.v1 import AppTest

from app import charts, jobs, live, settings, tables, words
from mansu import methods, tasks
from mansu.circuits.diff import diff
from mansu.evidence.attacks import ATTACKS
from mansu.evidence.cad import Divergences
from mansu.evidence.verdict import LIMITS, Thresholds
from mansu.files import SUM, resummed
from mansu.job import names
from mansu.job.artefacts import ARTEFACTS
from mansu.job.judging import judged, originals
from mansu.job.pipeline import perform, whole
from mansu.job.runs import EXAMPLES, Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.progress import Step
from mansu.quant.survival import EDGES
from mansu.report import rows
from mansu.report.compare import Side, compare
from mansu.show import numbers
from mansu.subjects.subject import Subject

PAGES = Path(__file__).resolve().parents[2] / "pages"
MAIN = PAGES.parent / "app" / "main.py"
SHORT = {"mansu": {"steps": 5, "rate": 0.2}, "graddiff": {"steps": 2}}


@pytest.fixture(scope="module")
def runs(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of two runs: one finished with two methods, one just begun."""
    folder = tmp_path_factory.mktemp("runs")
    task = tasks.load("tiny-colours")
    asked = Settings(pairs=8, steps=1)
    run = Run.create(tiny, task, asked, folder / "finished")
    session = Session(run, tiny)
    for method, short in SHORT.items():
        perform(session, whole(method, short), method)
    begun = replace(task, title="Only begun")
    Run.create(tiny, begun, asked, folder / "begun")
    patch = pytest.MonkeyPatch()
    patch.setenv("MANSU_RUNS", str(folder))
    yield folder
    patch.undo()


def done(run: Run, seconds: float) -> None:
    """Wait so long for the run's job."""
    ended = time.monotonic() + seconds
    while jobs.state(run) == "running" and time.monotonic() < ended:
        time.sleep(0.3)
    assert jobs.state(run) == "done", run.log()


@pytest.fixture(autouse=True)
def address() -> Iterator[None]:
    """Where app/.streamlit/config.toml binds it: elsewhere the app around a page warns."""
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    yield
    config.set_option("server.address", before)


def opened(page: str, **query: str | list[str]) -> AppTest:
    """The page as a link with these choices opens it."""
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.switch_page(str(PAGES / f"{page}.py"))
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def metrics(app: AppTest) -> dict[str, str]:
    return {m.label: m.value for m in app.metric}


@pytest.mark.parametrize("page", ["unlearn", "nf4", "compare", "review"])
def test_without_a_run_it_says_what_to_do(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    monkeypatch.setattr("mansu.job.runs.EXAMPLES", tmp_path / "none")
    app = opened(page)
    assert "Attribution page" in app.info[0].value


@pytest.mark.parametrize("page", ["nf4", "compare", "review"])
def test_without_an_edit_it_says_what_to_do(page: str, runs: Path) -> None:
    app = opened(page, run="begun")
    assert "Unlearn page" in app.info[0].value


def test_the_circuit_page_shows_what_an_edit_left_of_it(runs: Path) -> None:
    run = Run.open(runs / "finished")
    circuit = run.circuit()
    node = next(n for n, kind in circuit.graph().nodes(data="kind") if kind == "head")
    app = opened("circuit", run="finished", edit="graddiff", node=node)
    assert not app.error
    (canvas,) = app.get("bidi_component")
    given = json.loads(canvas.proto.json)
    found = diff(circuit, run.edge_scores("graddiff"))
    classes = [change for change in given["diff"]["classes"] if change]
    assert Counter(classes) == Counter(found.changes)
    assert given["view"]["stage"] == "all" and given["node"] == node  # what it did to all
    report = run.survival("graddiff")
    embedding = report.kinds["embedding"]
    assert given["diff"]["moved"]["embed"] == [embedding.moved, embedding.changed]
    titles = [m.value for m in app.markdown]
    assert titles.count("GradDiff in NF4") == 2  # where it attends, and what it writes
    assert len(app.get("plotly_chart")) == 3 + 3 + 1
    app = opened("circuit", run="finished", selection="edges shown")
    next(b for b in app.button if b.label == f"Measure it: {len(circuit):,} edges").click().run()
    assert not app.error and not app.exception
    assert circuit.faithfulness is not None
    assert metrics(app)["Faithfulness, measured"] == numbers.percent(circuit.faithfulness)


@pytest.mark.parametrize(("page", "file"), [("circuit", "marks.json"), ("ask", "mask.safetensors")])
def test_a_damaged_file_that_only_a_part_of_a_page_reads_is_said(
    page: str, file: str, runs: Path
) -> None:
    path = runs / "finished" / file
    whole = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes(b"[]")
        app = opened(page, run="finished", edit="mansu")
        assert any(f"{file} is damaged" in error.value for error in app.error)
    finally:
        path.unlink()
        if whole is not None:
            path.write_bytes(whole)


def test_a_run_without_edge_scores_says_what_to_do(runs: Path) -> None:
    file = Run.open(runs / "finished").file("edges", "mansu")
    whole = file.read_bytes()
    try:
        file.unlink()
        app = opened("circuit", run="finished", edit="mansu")
        assert "`mansu verdict" in app.info[0].value and len(app.get("bidi_component")) == 1
    finally:
        file.write_bytes(whole)


def test_unlearn_says_where_the_retain_bound_does_not_hold(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(EXAMPLES / "chemical-symbols")
    bounds = run.bounds("mansu_no_floor")
    assert bounds.measured > bounds.everywhere > 0 >= run.bounds("mansu").measured
    app = opened("unlearn", run="chemical-symbols", method="mansu")
    assert not any("does not hold here" in c.value for c in app.caption)
    monkeypatch.setattr(Run, "bounds", lambda *_: bounds)  # the page offers no edit without a floor
    app = opened("unlearn", run="chemical-symbols", method="mansu")
    assert [c.value for c in app.caption if "does not hold here" in c.value] == [
        rows.exceeded(bounds)
    ]


def test_unlearn_shows_what_the_method_did(runs: Path) -> None:
    run = Run.open(runs / "finished")
    for method in SHORT:
        app = opened("unlearn", run="finished", method=method)
        history = run.history(method)
        assert metrics(app)["Weights moved"] == f"{history['moved']:,}"
        assert (
            metrics(app)["Retain loss, measured"]
            == f"{numbers.written(run.bounds(method).measured, '+.3g')} nats"
        )
        after = run.measurement(method, nf4=True).splits["forget"].accuracy
        assert metrics(app)["Forget accuracy, NF4"] == numbers.percent(after)
        assert any(history["stopped"].rstrip(".") in m.value for m in app.markdown)
        assert len(app.get("plotly_chart")) == 1


def test_unlearn_runs_a_method_with_its_settings(runs: Path) -> None:
    app = opened("unlearn", run="begun", method="ga")
    app.number_input(key="ga steps").set_value(2)
    app.button[0].click().run()
    assert not app.exception
    run = Run.open(runs / "begun")
    try:
        assert jobs.state(run) == "running"
        done(run, 100)
    finally:
        jobs.cancel(run)
    assert run.history("ga")["settings"]["steps"] == 2
    written = [Step.from_json(s) for s in run.history("ga")["steps"]]
    assert live.steps(run, "ga") == written
    assert [step.done for step in written] == [1, 2]
    app = opened("unlearn", run="begun", method="ga")
    assert "Weights moved" in metrics(app)


def test_a_live_chart_is_of_the_last_job_and_the_method_shown(runs: Path, tiny: Subject) -> None:
    run = Run.create(tiny, tasks.load("tiny-colours"), path=runs / "live")
    try:
        run.record(Step("unlearn", 9, 9, "ga", values={"forget_loss": 1.0}), 0.5)
        run.set_status("running", begins=True)  # another job begins
        run.record(Step("unlearn", 1, 2, "npo", values={"forget_loss": 3.0}), 0.1)
        run.record(Step("unlearn", 1, 2, "ga", values={"forget_loss": 2.0, "moved": 7}), 0.2)
        run.record(Step("cad", 1, 2, "ga"), 0.3)
        (step,) = live.steps(run, "ga")
        assert step.values == {"forget_loss": 2.0, "moved": 7}
    finally:
        shutil.rmtree(run.path)


@pytest.mark.parametrize("method", methods.ALL)
def test_every_setting_has_a_widget_words_and_an_argument(method: str) -> None:
    def page(method: str) -> None:
        import streamlit as st

        from app import settings

        st.session_state.changed = settings.form(method)

    app = AppTest.from_function(page, kwargs={"method": method}).run()
    assert not app.exception, app.exception
    assert app.session_state.changed == {}
    known = methods.named(method).options()
    drawn = {w.key.split(" ", 1)[1] for w in [*app.number_input, *app.toggle, *app.selectbox]}
    assert drawn == set(known)
    if not known:
        return
    name = "steps" if "steps" in known else "moves"
    app.number_input(key=f"{method} {name}").set_value(3).run()
    assert app.session_state.changed == {name: 3}
    given = settings.arguments({name: 3})[1::2]
    assert methods.parse_settings(methods.named(method), given) == {name: 3}


def test_every_interval_has_words() -> None:
    fields = set(inspect.signature(Divergences).parameters) - {"scores"}  # drawn as the circuit
    assert fields <= set(words.HELP)
    shown = {f for group in charts.CAD_FIELDS.values() for f in group}
    assert {
        f
        for f in fields
        if f not in ("suppressor_accuracy", "middle_accuracy", "rank_correlation", "over")
    } - shown == {"top_overlap"}


def test_what_a_property_asks_is_told_with_its_limits() -> None:
    asked = {"retention": ("nats", "drift"), "gap": ("gap", "gap_nats"), "erasure": ("relearned",)}
    for name, limits in asked.items():
        for limit in limits:
            value, unit = getattr(Thresholds, limit), LIMITS[limit][1]
            told = f"{100 * value:.0f} points" if unit == "share" else f"{value} nats"
            assert told in words.help(name)


def test_nf4_shows_the_report(runs: Path) -> None:
    report = Run.open(runs / "finished").survival("mansu")
    app = opened("nf4", run="finished", edit="mansu", group="quantized")
    shown = metrics(app)
    assert report.quantized.share == 1.0 and shown["Codes that change"] == "100.00\u00a0%"
    assert shown["Weights moved"] == f"{report.quantized.moved:,}"
    assert len(app.get("plotly_chart")) == 3
    kept = Run.open(runs / "finished").formats("mansu")
    assert numbers.percent(kept["fp4-64"].share, 2) in app.table[0].value.to_string()
    app = opened("nf4", run="finished", edit="graddiff")
    assert "NF4 leaves alone" in app.warning[0].value  # the tied embeddings carry it through
    app.selectbox(key="group").set_value("unquantized").run()
    report = Run.open(runs / "finished").survival("graddiff")
    assert metrics(app)["Weights moved"] == f"{report.unquantized.moved:,}"


def test_nf4_measures_other_formats_and_shows_what_comes_back(runs: Path) -> None:
    run = Run.open(runs / "finished")
    app = opened("nf4", run="finished", edit="mansu")
    (button,) = [b for b in app.button if b.label == "Try other formats"]
    button.click().run()
    assert not app.exception
    try:
        done(run, 100)
        app = opened("nf4", run="finished", edit="mansu")
        assert not [b for b in app.button if b.label == "Try other formats"]
        table = app.table[1].value.set_index("Format")
        for name, found in run.by_format("mansu").items():
            accuracy = found.measured.splits["forget"].accuracy
            assert table.loc[name, "Forget rows"] == numbers.percent(accuracy)
        assert table.index[0] == "nf4-64"
    finally:
        jobs.cancel(run)
        run.file("by_format", "mansu").unlink(missing_ok=True)


def test_the_histogram_has_every_weight_and_the_boundary(runs: Path) -> None:
    survival = Run.open(runs / "finished").survival("graddiff").quantized
    figure = json.loads(str(charts.bin_histogram(survival).to_json()))
    before, after = figure["data"]
    assert len(before["x"]) == len(survival.before) and figure["layout"]["shapes"][0]["x0"] == 0
    assert after["marker"]["pattern"]["shape"]  # not told apart by colour alone
    assert f"{survival.moved:,}" in figure["layout"]["annotations"][0]["text"]


def verdict_cells(app: AppTest) -> pd.DataFrame:
    (table,) = [t.value for t in app.table if "Property" in t.value]
    return table


def test_compare_shows_every_edit_on_the_same_axes(runs: Path) -> None:
    run = Run.open(runs / "finished")
    app = opened("compare", run="finished")
    assert app.multiselect[0].value == ["finished/mansu", "finished/graddiff"]
    assert len(app.get("plotly_chart")) == 4
    table = verdict_cells(app)
    for column, method in zip(table.columns[1:], SHORT, strict=True):
        verdict = run.verdict(method)
        statuses = [*(p.status for p in verdict.properties), verdict.status]
        assert all(s in cell for s, cell in zip(statuses, table[column], strict=True))
        assert verdict.counts in table[column].iloc[-1]  # what "together" hides otherwise
        assert not any(
            words.plain(p.evidence) == c.value for p in verdict.properties for c in app.caption
        )
    for method in SHORT:  # what is closed is not drawn until it is opened
        app.session_state[f"folded The evidence: {words.title(method)}"] = True
    app.run()
    for method in SHORT:
        for p in run.verdict(method).properties:
            assert any(words.plain(p.evidence) == c.value for c in app.caption)
            checks = tables.cells(rows.checks(p))
            assert not p.checks or any(t.value.to_dict("list") == checks for t in app.table)
    sentence = compare([Side(words.title(m), run, m) for m in SHORT]).headline[0]
    assert any(words.plain(sentence) in m.value for m in app.markdown)


def test_compare_takes_any_number_of_edits_and_a_link_restores_them(runs: Path) -> None:
    app = opened("compare", run="finished", edits="finished/graddiff")
    assert app.multiselect[0].value == ["finished/graddiff"]
    assert any("second edit" in i.value for i in app.info)
    shutil.copytree(runs / "finished", runs / "copy")
    manifest = {**Run.open(runs / "copy").manifest, "created": "2020-01-01T00:00:00+00:00"}
    (runs / "copy" / "manifest.json").write_text(json.dumps(manifest))
    try:
        three = ["finished/mansu", "finished/graddiff", "copy/mansu"]
        app = opened("compare", run="finished")
        app.multiselect[0].set_value(three).run()
        assert not app.exception and app.query_params["edits"] == three
        (told,) = [t.value for t in app.table if any(" − " in c for c in t.value.columns)]
        assert all("not told apart" in cell for cell in told.iloc[:, 2])  # its own copy
        app = opened("compare", run="finished", edits=["finished/mansu", "finished/gone"])
        assert "no edit" in app.warning[0].value and "gone" in app.warning[0].value
        assert app.multiselect[0].value == ["finished/mansu"]
    finally:
        shutil.rmtree(runs / "copy")


def test_moved_thresholds_judge_anew_and_live_in_the_link(runs: Path) -> None:
    run = Run.open(runs / "finished")
    app = opened("compare", run="finished")
    slider = app.slider(key="nats of finished")
    assert slider.value == originals(run).nats
    slider.set_value(2.0).run()
    assert not app.exception and app.query_params["nats"] == "2"
    assert any("originally 0.100 nats" in w.value for w in app.warning)
    for cell, method in zip(verdict_cells(app).iloc[1, 1:], SHORT, strict=True):
        moved = judged(run, method, {"nats": 2.0}).retention
        assert moved.status in cell and words.plain(str(moved.worst))[1:] in cell
    assert judged(run, "mansu").to_json() == run.verdict("mansu").to_json()  # nothing was saved
    again = opened("compare", run="finished", nats="2")
    assert verdict_cells(again).equals(verdict_cells(app))
    (back,) = [b for b in again.button if b.label.startswith("Back to")]
    back.click().run()
    assert not again.warning and "nats" not in again.query_params
    again.slider(key="nats of finished").set_value(1.5).run()
    again.query_params["nats"] = "0.5"  # Back, or a link to this page
    again.run()
    assert again.slider(key="nats of finished").value == 0.5
    assert again.query_params["nats"] == ["0.5"] or again.query_params["nats"] == "0.5"
    refused = opened("compare", run="finished", nats="1e9")
    assert not any(box.warning for box in refused.expander)  # it would not be seen there
    assert "The original is used" in refused.warning[0].value
    assert refused.slider(key="nats of finished").value == originals(run).nats


def test_the_share_above_the_boundary_follows_it(runs: Path) -> None:
    survival = Run.open(runs / "finished").survival("graddiff").quantized
    app = opened("compare", run="finished")

    def shown() -> str:
        (table,) = [t.value for t in app.table if "Median update ÷ bin" in t.value]
        return table.iloc[1, 3]

    assert shown() == numbers.percent(survival.share_above(0), 2)
    app.slider(key="boundary").set_value(-2.0).run()
    assert shown() == numbers.percent(survival.share_above(-2), 2) != "0.00\u00a0%"
    assert survival.share_above(-8) == 1 and survival.share_above(3) == 0
    counted = sum(c for c, edge in zip(survival.before, EDGES, strict=False) if edge >= -2)
    assert survival.share_above(-2) == counted / survival.moved


def test_compare_shows_every_divergence_that_was_measured(runs: Path) -> None:
    d = Run.open(runs / "finished").divergences("mansu")
    figure = charts.divergences({"MANSU": d, "again": d})
    drawn = [x for trace in figure.data for x in trace.x]  # type: ignore[attr-defined]
    measured = [v.value for v in d.__dict__.values() if hasattr(v, "low")]
    assert d.signal_middle is not None and d.signal is not None
    measured.append(d.signal_middle)
    assert sorted(drawn) == sorted([*measured, *measured]) and len(drawn) == 20
    assert {f for group in charts.CAD_FIELDS.values() for f in group} <= set(words.CAD)


def test_compare_says_which_suppressor_is_no_control(runs: Path) -> None:
    place = "at the output"
    shutil.copytree(EXAMPLES / "tiny-colours", runs / "hides-little")
    run = Run.open(runs / "hides-little")
    path = run.file("cad", "mansu")
    hides_little = {"suppressor_accuracy": 0.9, "middle_accuracy": 0.25}
    text = json.dumps({**json.loads(path.read_text()), **hides_little})
    path.write_text(resummed(text, {}))
    try:
        assert judged(run, "mansu").erasure.status == "unknown"
        app = opened("compare", run="hides-little")
        (told,) = [c.value for c in app.caption if "no control" in c.value]
        assert told.startswith(f"MANSU: The suppressor {place} is no control: it still answers 90")
        table = rows.divergences({"MANSU": run.divergences("mansu")}, words.CAD).columns
        reached = dict(zip(table["What"], table["MANSU"], strict=True))
        assert reached[f"Forget accuracy of the suppressor {place}, a share"] == "0.9"
        assert reached["Forget accuracy of the suppressor in the middle, a share"] == "0.25"
    finally:
        shutil.rmtree(run.path)


def test_an_edit_stands_between_both_suppressors_that_it_is_judged_by() -> None:
    """In the shipped example it is above the one at the output and below that in the middle."""
    run = Run.open(EXAMPLES / "chemical-symbols")
    d, erasure = run.divergences("mansu"), run.verdict("mansu").erasure
    assert "0.034 (at the output), 0.172 (in the middle)" in erasure.evidence
    figure = charts.divergences({"MANSU": d})
    said = {label: value for trace in figure.data for label, value in trace.customdata}  # type: ignore[attr-defined]
    assert said["Suppressor at the output"].startswith("0.034 [")
    assert said["Suppressor in the middle"] == "0.172"
    table = {what: value for what, value in rows.divergences({"MANSU": d}, words.CAD).rows}
    assert table["Signal CAD: the edit"].startswith("0.113 [")
    assert table["Signal CAD: suppressor in the middle"] == "0.172"
    judged = {c.what: numbers.measured(c.value, c.unit) for c in erasure.checks}
    for place in ("at the output", "in the middle"):
        shown = table[f"Signal CAD: the edit minus the suppressor {place}"]
        assert shown == judged[f"signal CAD above the suppressor's, {place}"]
    assert "above the suppressor in a middle layer" in words.help("signal_suppressor")


def test_no_two_edits_of_a_chart_look_alike() -> None:
    names = [f"edit {i}" for i in range(24)]
    looks = charts.marks([charts.UNEDITED, *names])
    assert len({looks[name] for name in names}) == 24
    assert looks[names[0]] == charts.marks(names)[names[0]]  # with the unedited one and without


def test_compare_survives_an_edit_that_is_half_measured(runs: Path) -> None:
    folder = runs / "finished" / "edits" / "graddiff"
    (folder / "cad.json").rename(folder / "away")
    try:
        app = opened("compare", run="finished")
        assert any("has no CAD by graddiff" in i.value for i in app.info)
        assert "unknown" in verdict_cells(app).iloc[3, 2]
    finally:
        (folder / "away").rename(folder / "cad.json")


def test_compare_opens_on_what_is_judged_and_says_once_what_is_not_measured(runs: Path) -> None:
    run = Run.open(runs / "finished")
    shutil.copytree(run.path, runs / "more")
    more = Run.open(runs / "more")
    new = more.path / "edits" / "mansu-new"
    shutil.copytree(more.path / "edits" / "mansu", new)
    for path in new.iterdir():
        if path.name not in ("edit.safetensors", "history.json"):  # what mansu unlearn makes
            path.unlink()
    try:
        assert more.edits()[:2] == ("mansu", "mansu-new")
        app = opened("compare", run="more")
        assert app.multiselect[0].value == ["more/mansu", "more/graddiff"] and not app.info
        app.multiselect[0].set_value(["more/mansu", "more/mansu-new"]).run()
        assert not app.exception and not app.error
        assert len([i for i in app.info if "mansu-new" in i.value]) == 1
        assert "mansu quantize" in app.info[0].value
        assert list(verdict_cells(app))[1:] == ["MANSU"]
        app.multiselect[0].set_value(["more/mansu-new"]).run()
        assert not app.exception and len(app.info) == 1
    finally:
        shutil.rmtree(more.path)


def test_compare_runs_the_recovery_attacks_and_shows_them(runs: Path) -> None:
    run = Run.open(runs / "finished")
    app = opened("compare", run="finished")
    (button,) = [b for b in app.button if b.label == "Run the attacks"]
    button.click().run()
    assert not app.exception
    try:
        done(run, 200)
        app = opened("compare", run="finished")
        assert not [b for b in app.button if b.label == "Run the attacks"]
        assert len(app.get("plotly_chart")) == 6
        (table,) = [t.value.set_index("Attack") for t in app.table if "Attack" in t.value]
        assert list(table.columns) == ["Unedited", *map(words.title, SHORT)]
        for name, method in zip(table.columns, [None, *SHORT], strict=True):
            found = run.attacks(method)
            assert list(found.scores) == list(words.ATTACKS) == list(ATTACKS)
            for attack in ATTACKS:
                shown = table.loc[words.ATTACKS[attack][0], name]
                assert shown == words.plain(numbers.between(found.accuracy(attack)))
        series = {"edit": run.attacks("mansu")}
        labels = {attack: title for attack, (title, _) in words.ATTACKS.items()}
        (drawn,) = json.loads(str(charts.attacks(series, labels).to_json()))["data"]
        assert drawn["x"] == [series["edit"].accuracy(a).value for a in ATTACKS]
    finally:
        jobs.cancel(run)
        for path in runs.rglob("attacks*.json"):
            path.unlink()


def test_every_page_knows_several_edits_of_one_method_by_their_names(runs: Path) -> None:
    run = Run.open(runs / "finished")
    names.rename(run, "graddiff", "first")
    shutil.copytree(run.path / "edits" / "first", run.path / "edits" / "graddiff-steps-9")
    try:
        app = opened("unlearn", run="finished", method="graddiff", edit="graddiff-steps-9")
        assert app.selectbox(key="edit").options == [
            "first (GradDiff)",
            "GradDiff (steps-9)",
            "a new edit",
        ]
        assert "What GradDiff (steps-9) did" in [h.value for h in app.header]
        (field,) = [x for x in app.text_input if x.value == "graddiff-steps-9"]
        field.set_value("npo")
        (button,) = [b for b in app.button if b.label == "Rename"]
        button.click().run()
        assert "is a method's name" in app.error[0].value
        field.set_value("second")
        button.click().run()
        assert app.query_params["edit"] == "second" and not app.exception
        assert "second" in run.edits() and "graddiff-steps-9" not in run.edits()
        digest = run.digest("second")
        next(b for b in app.main.button if b.label == "Delete").click().run()
        assert "second" not in run.edits() and not app.exception
        assert "no edit “second”" in app.warning[0].value and "trash" in app.warning[0].value
        assert "Deleted edits (1)" in [e.label for e in app.sidebar.expander]
        next(b for b in app.main.button if b.label == "Restore it").click().run()
        assert not app.warning and not app.exception and run.digest("second") == digest
        assert app.query_params["edit"] == "second"  # and it is the one that is shown
        for page, key in (("nf4", "edit"), ("review", "edit"), ("ask", "ask_a")):
            found = opened(page, run="finished", **{key: "second"})
            assert found.selectbox(key=key).value == "second" and not found.exception
        found = opened("compare", run="finished", edits=["finished/second", "finished/first"])
        assert any(m.value.startswith("- first (GradDiff) against second") for m in found.markdown)
    finally:
        shutil.rmtree(run.path / "edits" / "second", ignore_errors=True)
        shutil.rmtree(run.path / "edits" / "graddiff-steps-9", ignore_errors=True)
        names.rename(run, "first", "graddiff")


def test_no_page_changes_what_is_read_once_for_all(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mansu.job.runs.SETTLED", 0.0)
    run = Run.open(runs / "finished")
    shared = [each for each in run.kept() if ARTEFACTS[each[0]].codec.shared]
    held = [run.read(*each) for each in shared]
    for page in ("compare", "review", "nf4", "unlearn"):
        opened(page, run="finished")
    for each, value in zip(shared, held, strict=True):
        assert run.read(*each) is value  # it was this one that the pages were given
        path = run.file(*each)
        saved = path.with_suffix(".copy")
        ARTEFACTS[each[0]].codec.write(saved, value, measured_in(path))
        assert json.loads(saved.read_text()) == json.loads(path.read_text())
        saved.unlink()


def measured_in(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text())
    return {k: v for k, v in found.items() if k.startswith("digest of ") and k != SUM}
