"""What every page shares: the run in the sidebar, the bar of jobs, the form for a new run."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import charts, graph_view, jobs, links, state, words
from app.lesson import figures
from mansu import methods, tasks
from mansu.evidence import strengths
from mansu.evidence.tradeoff import Cell
from mansu.job import library, lock, queue
from mansu.job.library import Label
from mansu.job.lock import hold
from mansu.job.runs import Run, examples, listed
from mansu.job.settings import Settings
from mansu.job.working import Work
from mansu.progress import Step
from mansu.report import compare
from mansu.show.numbers import duration
from mansu.statistics import Interval
from mansu.subjects import Subject
from mansu.subjects.shipped import TINY
from mansu.tasks import Task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two(
    tiny: Subject, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Run, Run]:
    """Two runs, the newer one first."""
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    made = []
    for n, name in enumerate(("old", "new")):
        run = Run.create(tiny, replace(tiny_task, title=f"The {name} one"), path=tmp_path / name)
        manifest = json.loads(run.manifest_file.read_text())
        manifest["created"] = f"2026-11-2{n}T10:00:00+00:00"
        run.manifest_file.write_text(json.dumps(manifest))
        made.append(Run.open(run.path))
    return made[1], made[0]


def page(name: str, **query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    at.query_params |= query
    at.run()
    assert not at.exception, at.exception
    return at


def button(at: AppTest, label: str) -> AppTest:
    (found,) = [b for b in at.button if b.label == label]
    at = found.click().run()
    assert not at.exception, at.exception
    return at


def said(at: AppTest) -> str:
    return " ".join(e.value for e in [*at.warning, *at.info, *at.error, *at.caption, *at.markdown])


@pytest.mark.parametrize("name", ["attribution", "circuit", "unlearn", "nf4", "compare"])
def test_a_dead_link_shows_no_other_runs_numbers(two: tuple[Run, Run], name: str) -> None:
    at = page(name, run="gone")
    assert "no run “gone”" in at.warning[0].value
    assert at.sidebar.selectbox[0].value is None
    assert not at.metric and not at.get("plotly_chart") and "The new one" not in said(at)
    assert at.query_params["run"] == "gone"  # nor does the address name another one
    at.sidebar.selectbox[0].set_value("old").run()
    assert not at.warning and "The old one" in said(at) and at.query_params["run"] == "old"


def test_a_link_wins_over_what_was_chosen_before(two: tuple[Run, Run]) -> None:
    at = page("unlearn", run="old")
    assert at.sidebar.selectbox[0].value == "old"
    at.query_params["run"] = "new"  # Back, or a link within the session
    assert at.run().sidebar.selectbox[0].value == "new"
    at.sidebar.selectbox[0].set_value("old").run()
    assert at.query_params["run"] == "old"
    at.query_params["run"] = "gone"
    assert at.run().sidebar.selectbox[0].value is None


def test_a_label_says_subject_methods_and_state(two: tuple[Run, Run], tiny: Subject) -> None:
    new, old = two
    at = page("unlearn")
    assert at.sidebar.selectbox[0].options == [
        f"The {name} one · tiny · MANSU · not done" for name in ("new", "old")
    ]
    library.describe(old, Label("The new one"))
    with hold(new.path):
        new.set_status("running", 0.4)
        at = page("unlearn")
    assert at.sidebar.selectbox[0].options == [
        "The new one · tiny · MANSU · at work",
        "The new one · tiny · MANSU · not done",
    ]
    new.set_status("failed")
    old.set_status("failed")
    first, second = page("unlearn").sidebar.selectbox[0].options
    assert first != second and "failed" in first  # or Streamlit takes them for one


def test_a_run_is_named_in_the_sidebar(two: tuple[Run, Run]) -> None:
    at = page("unlearn", run="old")
    at.sidebar.text_input[0].set_value("*Mine*")
    at.sidebar.text_area[0].set_value("Some notes.")
    at = button(at, "Save")
    assert library.label(two[1]) == Label("*Mine*", "Some notes.")
    assert r"\*Mine\*" in said(at) and "Some notes." in said(at)
    at.sidebar.text_input[0].set_value("x" * 99)
    assert "80 at most" in button(at, "Save").error[0].value


def test_a_run_is_deleted_and_restored(two: tuple[Run, Run]) -> None:
    at = button(page("unlearn", run="old"), "Delete")
    assert [run.name for run in listed()] == ["new"]
    assert "no run “old”" in at.warning[0].value and "The new one" not in said(at)
    at = button(at, "Restore it")
    assert len(listed()) == 2 and at.sidebar.selectbox[0].value == "old" and not at.warning


def test_an_example_is_opened_by_its_link_beside_one_s_own_runs(two: tuple[Run, Run]) -> None:
    example = examples()[0]
    at = page("unlearn", run=example.name)
    assert at.sidebar.selectbox[0].value == example.name and not at.warning
    assert "An example that comes with MANSU" in said(at)
    at.sidebar.selectbox[0].set_value("new").run()
    assert at.sidebar.selectbox[0].value == "new" and at.query_params["run"] == "new"


def test_an_example_does_not_stand_for_a_run_in_the_trash(two: tuple[Run, Run]) -> None:
    name = examples()[0].name
    library.trash(Run.open(two[1].path.rename(two[1].path.with_name(name))))
    at = page("unlearn", run=name)
    assert f"no run “{name}”" in at.warning[0].value and state.DELETED in said(at)


def test_a_run_at_work_is_not_deleted(two: tuple[Run, Run]) -> None:
    with hold(two[1].path):
        two[1].set_status("running", 0.4)
        at = page("unlearn", run="old")
    assert next(b for b in at.button if b.label == "Delete").disabled


def test_a_copy_begins_as_the_run_was_made(
    two: tuple[Run, Run], tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(pairs=9, steps=3, tau=0.7, seed=5)
    own = replace(two[0].task(), facts=two[0].task().facts[:-1], title="Mine")
    run = Run.create(tiny, own, settings, tmp_path / "mine", asked=("mansu", "npo"))
    at = page("attribution", **links.copied(run))
    assert at.selectbox(key="subject").value == TINY
    assert at.selectbox(key="baseline").value == "npo"
    started: list[list[str]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, run: started.append([*arguments]))
    at.number_input(key="steps").set_value(4).run()
    at = button(at, "Run the whole job")
    assert not at.error
    (copy,) = {r.name: r for r in listed()}.keys() - {"old", "new", "mine"}
    made = Run.open(tmp_path / copy)
    assert made.settings == replace(settings, steps=4)
    assert made.task().digest == own.digest and made.asked == ("mansu", "npo")
    assert started == [["run", "--folder", str(made.path), "--method", "mansu", "--method", "npo"]]


def test_a_job_on_another_run_is_shown_with_the_time_left_and_a_way_to_it(
    two: tuple[Run, Run],
) -> None:
    def pages() -> None:
        from app import bar, state

        bar.draw()
        state.begin("Page", "Which?")

    at = AppTest.from_function(pages, default_timeout=60)
    at.query_params["run"] = "old"
    assert not [b for b in at.run().button if b.label == "Show"]
    two[0].record(Step("base", 0, 1), 0.0)
    with hold(two[0].path):
        two[0].set_status("running", 0.25)
        at.run()
        (progress,) = at.get("progress")
        assert "The new one" in progress.proto.text and "25\u00a0%" in progress.proto.text
        assert at.sidebar.selectbox[0].value == "old"
        assert button(at, "Show").sidebar.selectbox[0].value == "new"


def test_the_time_left_is_one_number_wherever_it_is_read(
    two: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pages() -> None:
        from app import bar, jobs, state

        bar.draw()
        jobs.panel(state.begin("Page", "Which?"))

    run, begun = two[0], time.time() // jobs.MOMENT * jobs.MOMENT - 100
    monkeypatch.setattr(time, "time", lambda: begun)
    with hold(run.path):
        run.set_status("running", begins=True)
        monkeypatch.setattr(time, "time", lambda: begun + 1)
        run.record(Step("base", 0, 1), 0.0)
        monkeypatch.setattr(time, "time", lambda: begun + 101)
        run.set_status("running", 0.685)
        said = []
        for later in (101.0, 104.9):  # a bar and a panel are drawn at their own moments
            monkeypatch.setattr(time, "time", lambda later=later: begun + later)
            at = AppTest.from_function(pages, default_timeout=60)
            at.query_params["run"] = run.name
            at.run()
            said += [p.proto.text for p in at.get("progress")] + [c.value for c in at.main.caption]
        found = [text[text.index("about") :].split(" left")[0] for text in said if "about" in text]
        assert found == ["about 50 s"] * 4


def test_the_wait_in_the_queue_is_no_part_of_a_jobs_clock(
    two: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def panel() -> None:
        from app import jobs, state

        jobs.panel(state.begin("Page", "Which?"))

    def shown() -> str:
        at = AppTest.from_function(panel, default_timeout=60).run()
        (progress,) = at.get("progress")
        return " ".join([progress.proto.text, *(c.value for c in at.main.caption)])

    monkeypatch.setenv("MANSU_JOBS", "1")
    run, other = two
    with queue.ticket(other.path.parent, other.path):  # a job at work
        jobs.start(["attribute", "--folder", str(run.path)], run.path)
        assert "waits for its turn" in shown() and "one job at a time" in shown()
        who = lock.holder(run.path)
        process = who and who.process
        assert process is not None
        process.suspend()  # so that it does not begin before it was looked at
    try:
        later = time.time() + 100
        monkeypatch.setattr(time, "time", lambda: later)
        said = shown()
        assert jobs.place(run) == 0 and "starting" in said
        assert "so far" not in said and "may leave" in said
    finally:
        process.kill()
        process.wait()
    work = Work(run)
    with work.held():
        assert "so far" not in shown()
        work.on_step(Step("load", 0, 1, part=run.subject))
        assert f"loading: {run.subject}" in shown() and f"{duration(0)} so far" in shown()


def test_every_bad_line_of_an_upload_is_named_at_once(two: tuple[Run, Run]) -> None:
    query = {"view": links.NEW, "subject": TINY, "task": links.OWN_TASK}
    at = page("attribution", **query)
    good = '{"prompt": "a", "answer": " b", "split": "forget"}'
    at.file_uploader[0].upload("mine.jsonl", f"{good}\nnonsense\n{good}\n[]\n".encode()).run()
    (error,) = at.error
    assert all(f"Line {n} " in error.value for n in (2, 4)) and "retain set" in error.value
    assert next(b for b in at.button if b.label == "Run the whole job").disabled
    at = page("attribution", **query)
    at.text_area(key="pasted").set_value("nonsense").run()
    assert "Line 1 " in at.error[0].value


def test_what_the_model_knows_of_an_upload_comes_first(two: tuple[Run, Run], tiny: Subject) -> None:
    query = {"view": links.NEW, "subject": TINY, "task": links.OWN_TASK}
    at = page("attribution", **query)
    sample = tasks.load("tiny-colours").sample(8)
    at.file_uploader[0].upload("../mine.csv", sample.to_csv().encode()).run()
    assert not at.exception and not at.error
    table = at.main.table[0].value
    assert "100.0\u00a0%" in table.to_string() and "Forget" in table.to_string()
    whole = next(b for b in at.button if b.label == "Run the whole job")
    assert not whole.disabled and not at.main.warning
    odd = json.dumps(
        {"prompt": "The colour of a fox is", "answer": " qxzjw vkpy", "split": "forget"}
    )
    at.file_uploader[0].upload("mine.jsonl", (sample.to_jsonl() + odd).encode()).run()
    line = len(sample.to_jsonl().splitlines()) + 1
    (warning,) = at.main.warning  # what is left out is said, by line
    assert f"Line {line} left out" in warning.value
    answers = sorted({f.answer for f in sample.split("forget")})
    other = dict(zip(answers, (*answers[1:], answers[0]), strict=True))
    facts = (replace(f, answer=other.get(f.answer, f.answer)) for f in sample.facts)
    wrong = replace(sample, facts=tuple(facts))
    at.file_uploader[0].upload("mine.jsonl", wrong.to_jsonl().encode()).run()
    assert any("does not know this task" in e.value for e in at.error)
    assert next(b for b in at.button if b.label == "Run the whole job").disabled


def test_the_lines_of_one_panel_have_different_colours_and_no_two_panels_share_one() -> None:
    keys = ("forget_loss", "retain_loss", "forget_accuracy", "forget_accuracy_nf4", "moved")
    figure = charts.history([Step("unlearn", 1, 1, values=dict.fromkeys(keys, 1.0))])
    colours = [trace["line"]["color"] for trace in json.loads(str(figure.to_json()))["data"]]
    assert len(colours) == len(keys) == len(set(colours))


def test_progress_is_a_word_also_of_a_damaged_run(two: tuple[Run, Run]) -> None:
    (two[0].path / "status.json").write_text("{")
    assert state.progress(two[0]) == "failed, not done"
    assert "status.json is damaged" in two[0].status().error
    assert jobs.working() == []


def test_every_run_at_work_is_found_and_no_other_is_opened(
    two: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = two
    with hold(old.path):  # as an earlier job leaves its file there
        pass
    with hold(new.path):
        opened: list[Path] = []
        real = Run.open
        monkeypatch.setattr(Run, "open", lambda path: opened.append(path) or real(path))
        assert jobs.working() == [new] and opened == [new.path]
        with hold(old.path):
            assert jobs.working() == [new, old]
        new.manifest_file.write_text("{")
        assert jobs.working() == []


def test_what_people_write_is_never_a_directive() -> None:
    assert words.plain(":red[x] a::b-badge[c]") == r"\:red\[x\] a:\:b-badge\[c\]"
    assert words.plain(":smile: :material/x:") == (
        f"\\:{words.JOINER}smile: \\:{words.JOINER}material/x:"  # a backslash keeps no icon away
    )
    assert words.plain("at 10:30:15+00:00") == "at 10:30:15+00:00"
    assert words.plain("a\u202eb\u2066c\u200fd\u061ce") == "abcde"  # nothing is turned around
    assert words.plain("Task: at 10:30, Q4_0") == "Task: at 10:30, Q4_0"
    assert words.plain("_a_ __b__") == r"\_a\_ \_\_b\_\_"
    assert words.plain("run `mansu *`, [x]") == r"run `mansu *`, \[x\]"  # a pair is code
    for alone in ("a ` ![p](x)", "`` ![p](x) `", "`\n\n![p](x)\n\n`"):
        assert r"!\[p\](x)" in words.plain(alone)
    for text, shown in (("- ,", r"\- ,"), ("+ a", r"\+ a"), ("12. of\n1) a", "12\\. of\n1\\) a")):
        assert words.plain(text) == shown  # tokens and titles may begin as a list does
    assert words.plain("-0.3 to +0.3, 4.") == "-0.3 to +0.3, 4."


def test_every_setting_of_a_method_has_a_plain_name() -> None:
    names = {name for method in methods.ALL for name in methods.named(method).options()}
    assert names == set(words.SETTINGS)


def test_rows_of_a_data_set_become_a_task(two: tuple[Run, Run], tmp_path: Path) -> None:
    facts = tasks.load("tiny-colours").sample(8).facts
    rows = [
        {"question": f.prompt, "answer": f.answer.strip(), "subject": f.split}
        for f in facts
        if f.split in ("forget", "retain")
    ]
    copy = tmp_path / "set" / "all"
    copy.mkdir(parents=True)
    (copy / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    query = {"view": links.NEW, "subject": TINY, "task": links.OWN_TASK}
    at = page("attribution", **query, hub="nobody/nothing")
    at = button(at, "Read the rows")
    (sentence,) = [e.value for e in at.error if "nobody/nothing" in e.value]
    assert "cannot be read" in sentence and "\n" not in sentence
    at.text_input(key="hub").set_value(str(tmp_path / "set"))
    at.text_input(key="hub_config").set_value("all").run()
    at = button(at, "Read the rows")
    assert not at.error and "Choose what is to be forgotten" in said(at)
    (written,) = [x for x in at.text_input if x.label == "How it is asked"]
    written.set_value("{}")
    at.multiselect(key="hub_forget").set_value(["forget"]).run()
    assert not at.exception and not at.error
    assert not next(b for b in at.button if b.label == "Run the whole job").disabled
    assert "100.0\u00a0%" in at.main.table[0].value.to_string()
    place = {"hub": str(tmp_path / "set"), "hub_config": "all", "hub_forget": "forget"}
    linked = page("attribution", **query, **place, hub_written="{}", hub_answer="<b>")
    assert not linked.multiselect  # nothing is read before it is asked for
    linked = button(linked, "Read the rows")
    assert linked.multiselect(key="hub_forget").value == ["forget"]
    assert not next(b for b in linked.button if b.label == "Run the whole job").disabled


def luminance(colour: str) -> float:
    """By WCAG, of ``#rrggbb``, which is opaque."""
    assert re.fullmatch("#([0-9a-f]{3}){1,2}", colour)
    wide = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = (int(wide[i : i + 2], 16) / 255 for i in (0, 2, 4))
    linear = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_numbers_in_a_heat_map_are_read_on_each_of_its_colours() -> None:
    (tiny,) = [run for run in examples() if run.subject == TINY]
    cells = [Cell(n, d, 0.5, 0.1, 0.5) for n in (1, 2) for d in (0.5, 1.0)]
    for figure in (
        graph_view.heat_map(tiny.attribution()),
        figures.tradeoff(cells, [], cells[0], None),
    ):
        heat = figure.to_dict()["data"][0]
        ink = luminance(heat["textfont"]["color"])
        for _, colour in heat["colorscale"]:  # between two, it is between them
            dark, pale = sorted((ink, luminance(colour)))
            assert (pale + 0.05) / (dark + 0.05) >= 4.5, colour


def test_each_permanence_says_which_of_the_two_it_is() -> None:
    point, certain = strengths.Point(1.0, 0.6, 0.87, 0.0, 0.3, 0.3), Interval(0.1, 0.0, 0.2)
    spot = compare.Spot("forget rows", certain, certain)
    assert strengths.PERMANENCE in strengths.Strengths(True, (point,)).table().head
    for name, figure in (
        (strengths.PERMANENCE, charts.tradeoff({"MANSU": [point]}, 0.05)),
        (compare.PERMANENCE, charts.forgetting_permanence({"MANSU": [spot]})),
    ):
        drawn = figure.to_dict()
        assert drawn["layout"]["yaxis"]["title"]["text"].startswith(name)
        assert f"{name}: " in drawn["data"][0]["hovertemplate"]
    assert "words" in strengths.PERMANENCE and "choices" in compare.PERMANENCE
