"""The lesson: what it says follows from what is measured, and a student can walk through it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from streamlit.testing.v1 import AppTest

from app import words
from app.lesson import STEPS, bench, edits, figures, lasting, real, sheet, view, where
from app.lesson.answers import PREFIX
from app.lesson.bench import Bench
from app.lesson.step import Answer, Step, apart
from app.lesson.tally import Board, board
from mansu import tasks
from mansu.evidence import cad
from mansu.evidence.relearning import halves, relearn, relearning
from mansu.job import runs
from mansu.job.pipeline import CIRCUIT, QUANTIZE, perform, unlearning
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.quant import quantize
from mansu.subjects import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

ROOT = Path(__file__).parents[2]
SAID: dict[str, Answer] = {
    "line": (0.4,),
    "block": (0.1, 0.0),
    "reach": (5.0,),
    "flip": ("gentle", 0.0),
    "deploy": (0.3,),
    "grid": (2.0, 4.0),
    "nodes": (1.0, 2.0, 5.0),
    "floor": (0.5, 0.6, 0.7),
    "hidden": ("mansu", "A"),
    "sign": ("mansu", "passed", "passed", "passed", "failed"),
}
BY_KEY = {step.key: step for step in STEPS}


@pytest.fixture(scope="module")
def made() -> Bench:
    return view.shared()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No runs here, and nobody has answered."""
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    monkeypatch.setattr(runs, "EXAMPLES", tmp_path / "none")
    board().clear()
    yield
    board().clear()


def page(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "pages" / "learn.py"), default_timeout=120)
    at.query_params |= query
    at.run()
    assert not at.exception, at.exception
    return at


def said(*keys: str) -> dict[str, str]:
    return {PREFIX + key: ",".join(map(str, SAID[key])) for key in keys}


# What it says.


def test_twenty_minutes_in_ten_steps() -> None:
    assert len(STEPS) == len({step.key for step in STEPS}) == 10
    assert sum(step.minutes for step in STEPS) <= 20
    assert SAID.keys() == BY_KEY.keys()


NAMES = r"NF4|FP4|int8|4 bits|4-bit|8 bits|step 1|arXiv \d+\.\d+"


@pytest.mark.parametrize("name", ["weights", "edits", "where", "lasting", "real", "view", "bench"])
def test_no_number_is_written_in(name: str) -> None:
    """No text of the lesson holds a digit, but for names and the number of the first step."""
    tree = ast.parse((ROOT / "app" / "lesson" / f"{name}.py").read_text())
    skip: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec:
            skip |= {id(part) for part in ast.walk(node.format_spec)}
        if isinstance(node, ast.Expr):  # a docstring
            skip |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Constant)}
            skip -= {id(p) for c in ast.walk(node) if isinstance(c, ast.Call) for p in ast.walk(c)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip
    ]
    prose = [text for text in texts if " " in text and "%" not in text and "<style>" not in text]
    assert not [text for text in prose if re.search(r"\d", re.sub(NAMES, "", text))]


def test_every_number_follows_what_is_measured(
    made: Bench, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another weight, another training, fewer of the grid: other numbers, in every step."""
    before = {step.key: step.outcome(made, SAID[step.key]) for step in STEPS}
    monkeypatch.setattr(bench, "PLACE", ("model.layers.0.mlp.up_proj.weight", 777))
    monkeypatch.setattr(bench, "GENTLE", {"learning_rate": 1e-5, "steps": 6})
    monkeypatch.setattr(bench, "STRONG", {"learning_rate": 2e-4, "steps": 8})
    monkeypatch.setattr(bench, "SILENCED", 2)
    monkeypatch.setattr(bench, "DRAWS", 3)
    other = Bench(made.subject, tiny_task)
    other._made["edit mansu"] = made.edit("mansu").thinned(0.5)
    other._made["grid"] = tuple(replace(c, moved=2 * c.moved) for c in made.grid())
    other._made["circuit"], other._made["scores"] = made.circuit(), made._made["scores"].flip(0)
    other._made["verdict mansu"] = made.verdict("retrained")
    for step in STEPS:
        after = step.outcome(other, SAID[step.key])
        assert (after.truth, after.lesson) != before[step.key][1:4:2], step.key


def test_the_followed_weight_is_one_that_mansu_moves(made: Bench) -> None:
    moved = made.moved_to(made.edit("mansu"))
    assert moved is not None and not made.bin.low <= moved <= made.bin.high
    assert f"code {made.bin.code}" in lasting.followed(made)
    name, place = bench.PLACE
    weight = made.subject.parameters[name].detach()
    with made.edit("mansu").applied(made.subject):
        now = int(quantize(weight).codes[place])
    assert f"code {now} lies" in lasting.followed(made)


def test_the_measured_shares_are_those_of_the_edits(made: Bench) -> None:
    step = BY_KEY["deploy"]
    asked = made.asked("concealed")
    assert asked.nf4["forget"].accuracy > asked.full["forget"].accuracy + 0.5
    assert f"{100 * asked.nf4['forget'].accuracy:.0f}\u00a0%" in step.outcome(made, (0.3,)).truth
    assert all(kept.share == 1.0 for kept in made.kept("mansu").values())
    found = BY_KEY["hidden"].outcome(made, ("suppressor", "A"))
    assert found.truth.endswith("a suppressor") and found.said == found.truth
    assert found.difference == "right" and not found.caught


def test_the_suppressor_is_the_one_of_the_verdict_beside_it(made: Bench) -> None:
    """The charts of a step show its accuracy, its curve and its signal CAD under one name."""
    mansu, found = (made.asked(name).full["forget"].accuracy for name in lasting.MODELS)
    told = made.verdict("mansu").erasure.details
    assert found == pytest.approx(told["suppressor_accuracy"], abs=1e-4)
    assert abs(found - mansu) < 0.1  # "about as many"
    circuit = made.circuit()
    signals = cad.Signals(made.subject, tasks.pairs(made.task, made.subject, n=circuit.n_pairs))
    hiding = signals.signal_of(made.edit("suppressor")).signal
    signal = cad.cad(signals.base[:, circuit.edge_mask], hiding[:, circuit.edge_mask])
    assert signal.value == pytest.approx(told["signal_suppressor"][0], rel=1e-4)


def test_the_teacher_is_told_why_the_suppressors_curve_falls_again(made: Bench) -> None:
    notes = BY_KEY["hidden"].notes
    assert "falls again, though the taught half stays wholly right" in notes
    curve = [scores.accuracy for scores in made.relearned("suppressor").curve]
    assert max(curve) - curve[-1] > 0.2 and curve.index(max(curve)) == 1
    known, asked = halves(made.task, made.subject)
    assert not {*known.answer.tolist()} & {*asked.answer.tolist()}
    with made.edit("suppressor").applied(made.subject):
        taught = relearn(made.subject, made.task, known, known)
    assert {scores.accuracy for scores in taught[1:]} == {1.0}
    unedited = relearning(made.subject, made.task, Edit({}, "unedited"), (known, asked))
    assert {scores.accuracy for scores in unedited.curve} == {1.0}


def test_whether_a_model_hides_follows_from_what_it_relearns(made: Bench) -> None:
    """On the toy both bring the colours back, and nobody is told that only one of them hides."""
    known = {name: made.relearned(name).before / 2 for name in lasting.MODELS}
    for name in lasting.MODELS:
        assert max(s.accuracy for s in made.relearned(name).curve) >= known[name]
    assert max(s.accuracy for s in made.relearned("ablation").curve) < min(known.values())
    outcome = BY_KEY["hidden"].outcome(made, ("mansu", "A"))
    for text in (outcome.lesson, outcome.caught):
        assert "come back in both, in one (a suppressor) sooner: on this toy they are gone" in text
        assert "only one of them hides" not in text and "qual answers" not in text
    for name in lasting.MODELS:
        share = made.asked(name).full["forget"].accuracy
        assert f"{100 * share:.1f}\u00a0%" in outcome.lesson


@pytest.mark.parametrize(
    ("hiding", "sooner", "says"),
    [
        (["mansu", "suppressor"], "same", "the colours come back in both: on this toy"),
        (["suppressor"], "suppressor", "only one of them hides the colours: a suppressor"),
        ([], "same", "neither relearns the colours sooner"),
    ],
)
def test_what_relearning_tells_is_said(hiding: list[str], sooner: str, says: str) -> None:
    assert lasting.hidden(hiding, sooner).startswith(says)


def test_the_tally_puts_answers_to_different_choices_on_one_scale(made: Bench) -> None:
    """Four growths and two edits are asked about: what is counted is how far off an answer was."""
    for growth in (0.05, 0.4):
        truth = float(BY_KEY["block"].outcome(made, (growth, 0.0)).truth.split(" of ")[0])
        assert BY_KEY["block"].said(made, (growth, truth)) == 0
    for name in ("gentle", "ordinary"):
        share = made.report(name).quantized.share or 0.0
        assert BY_KEY["flip"].said(made, (name, share + 0.1)) == pytest.approx(10)
        assert edits.TITLES[name] in BY_KEY["flip"].outcome(made, (name, share)).said
    by = where.cells(made)
    assert BY_KEY["grid"].said(made, (2.0, 4.0)) == f"{by[2, 4].moved:,} weights, 2 bins each"
    for step in STEPS:
        assert step.signed == ("of zero" in step.counted), step.key
        counts = isinstance(step.said(made, SAID[step.key]), float)
        assert bool(step.counted) == counts, step.key


def test_a_model_keeps_its_letter_after_a_reload(made: Bench) -> None:
    step = BY_KEY["hidden"]
    for letter, other in (("A", "B"), ("B", "A")):  # of MANSU, as the student saw it
        assert step.outcome(made, ("mansu", letter)).said == f"model {letter}: MANSU"
        assert step.outcome(made, ("suppressor", letter)).said == f"model {other}: a suppressor"


def test_a_place_that_does_not_forget_is_not_praised(made: Bench) -> None:
    by = where.cells(made)
    for place, cell in by.items():
        told = BY_KEY["grid"].outcome(made, tuple(map(float, place))).difference
        assert told.startswith("not forgotten") == (cell.forget > made.forgotten())


def test_a_difference_says_to_which_side() -> None:
    assert apart(35.0, 100.0, "points") == "65 points too low"
    assert apart(30.0, 1.4, "points", 1) == "28.6 points too high"
    assert apart(21, 24, "", way="many few") == "3 too few"
    assert apart(24.2, 24.0, "points") == "exactly"


def test_mistakes_are_caught_and_good_answers_are_not(made: Bench) -> None:
    good: dict[str, Answer] = {
        "block": (0.1, 16.0),
        "flip": ("gentle", 0.014),
        "hidden": ("suppressor", "A"),
    }
    for key, answer in good.items():
        assert BY_KEY[key].outcome(made, SAID[key]).caught
        assert not BY_KEY[key].outcome(made, answer).caught


def test_nobody_is_told_of_a_mistake_that_the_answer_is_not(made: Bench) -> None:
    """A student who says too little has not said none, nor is "at the same time" a model."""
    flip, block, hidden = (BY_KEY[key].outcome for key in ("flip", "block", "hidden"))
    share = made.report("ordinary").quantized.share or 0.0
    assert share > 0.2 and not flip(made, ("ordinary", 0.1)).caught
    none = flip(made, ("ordinary", 0.0)).caught
    assert none == flip(made, ("gentle", 0.0)).caught and "few" not in none  # the tally's one line
    assert not block(made, (0.1, 5.0)).caught
    same = hidden(made, ("same", "A"))
    assert same.difference == "not at the same time" and not same.caught
    assert hidden(made, ("mansu", "A")).difference == "the other way"


def test_a_model_named_where_both_are_as_soon_is_not_the_other_way(
    made: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "_sooner", lambda _: "same")
    assert BY_KEY["hidden"].outcome(made, ("mansu", "A")).difference == "neither was sooner"
    assert BY_KEY["hidden"].outcome(made, ("same", "A")).difference == "right"


def test_more_is_no_mistake_before_the_colours_are_gone(made: Bench) -> None:
    for place, cell in where.cells(made).items():
        caught = BY_KEY["grid"].outcome(made, tuple(map(float, place))).caught
        assert not caught or cell.forget <= made.forgotten(), place


def test_kind_and_strict_are_told_apart(made: Bench) -> None:
    verdict = made.verdict("retrained")
    assert verdict.status == "passed"
    assert lasting.compared(verdict, ("passed",) * 4) == (4, 0, 0)
    assert lasting.compared(verdict, ("failed", "undecided", "passed", "passed")) == (2, 0, 2)


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("line", (2.0,)),
        ("line", ()),
        ("block", (0.1, 64.0)),
        ("flip", ("other", 0.5)),
        ("grid", (9.0, 0.0)),
        ("nodes", (1.0, 1.0, 2.0)),
        ("nodes", (1.0, 2.0, 16.0)),
        ("hidden", ("neither", "A")),
        ("hidden", ("mansu", "C")),
        ("sign", ("mansu", "passed", "passed", "passed")),
        ("reach", (float("nan"),)),
    ],
)
def test_nonsense_is_no_answer(key: str, answer: Answer) -> None:
    assert BY_KEY[key].accepts(SAID[key])
    assert not BY_KEY[key].accepts(answer)


def test_the_subject_is_left_as_it_was(made: Bench, tiny: Subject) -> None:
    for name, parameter in made.subject.parameters.items():
        assert torch.equal(parameter, tiny.parameters[name]), name


# The class.


def test_a_person_counts_once_and_mistakes_are_counted() -> None:
    found = Board()
    found.put("line", "a", 0.5)
    found.put("line", "b", 0.7, "a mistake")
    found.put("line", "a", 0.6)
    assert found.answers("line") == [0.6, 0.7]
    assert found.caught("line") == {"a mistake": 1}
    assert found.counts() == {"line": 2}
    found.clear()
    assert not found.counts() and not found.answers("line")


@pytest.mark.parametrize(
    ("said", "middle"),
    [
        ([7.0], "1 answer, without names; the one in the middle is 7."),
        ([21.0, 9.0], "2 answers, without names; the two in the middle are 9 and 21."),
        ([21.0, 9.0, 10.0], "the one in the middle is 10."),
        ([9.0, 9.0], "the one in the middle is 9."),
    ],
)
@pytest.mark.usefixtures("alone")
def test_what_stands_in_the_middle_is_what_somebody_said(said: list[float], middle: str) -> None:
    for person, number in enumerate(said):
        board().put("deploy", str(person), number)
    assert any(c.value.endswith(middle) for c in page(view="Teacher").caption)


@pytest.mark.parametrize("said", [[-16.0, -3.0], [2.0, 8.0], [-1.0, 1.0], [0.0]])
def test_zero_is_on_the_axis_of_differences(said: list[float]) -> None:
    layout = figures.class_answers(said, "more (right of zero)", zero=True).to_dict()["layout"]
    low, high = layout["xaxis"]["range"]
    assert low < min(0, *said) <= max(0, *said) < high
    assert [shape["x0"] for shape in layout["shapes"]] == [0]
    assert "shapes" not in figures.class_answers(said, "%").to_dict()["layout"]


# The page.


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.key)
def test_a_step_asks_first_and_then_shows(step: Step, made: Bench) -> None:
    place = str(STEPS.index(step) + 1)
    at = page(step=place)
    assert not at.error and not at.success  # nothing is told before the prediction
    assert any(step.question in header.value for header in at.header)
    at = page(step=place, **said(step.key))
    outcome = step.outcome(made, SAID[step.key])
    assert at.success[0].value == outcome.lesson
    assert "*" not in outcome.lesson  # it is printed, too
    shown = " ".join(markdown.value for markdown in at.markdown)
    assert outcome.difference.split(",")[0] in shown.replace("\\", "")
    assert [w.value for w in at.warning] == ([outcome.caught] if outcome.caught else [])
    assert any("There is no run of this model" in c.value for c in at.caption)


@pytest.mark.usefixtures("alone")
def test_a_property_is_shown_with_what_decides_it_before_it_is_judged(made: Bench) -> None:
    """Its value with the interval and the threshold: else nobody can tell what is undecided."""
    at = page(step=str(STEPS.index(BY_KEY["sign"]) + 1))
    shown = " ".join(c.value for c in at.caption)
    for p in made.verdict("mansu").properties:
        assert p.worst is not None and words.plain(p.evidence) in shown
        assert f"decided by:** {words.plain(str(p.worst))}" in shown
    assert not any(c.value for c in at.success)


@pytest.mark.usefixtures("alone")
def test_the_curves_of_the_half_not_taught_say_so(made: Bench) -> None:
    at = page(step=str(STEPS.index(BY_KEY["hidden"]) + 1), **said("hidden"))
    drawn = (json.loads(c.proto.spec) for c in at.get("plotly_chart"))
    (layout,) = [c["layout"] for c in drawn if "Steps" in c["layout"]["xaxis"]["title"]["text"]]
    assert layout["xaxis"]["title"]["text"].startswith("Steps of teaching one half")
    assert layout["yaxis"]["title"]["text"] == "Accuracy on the other half"
    whole = {name: made.asked(name).full["forget"] for name in lasting.MODELS}
    halves = {name: made.relearned(name).curve[0] for name in lasting.MODELS}
    assert all({*halves[n].rows} < {*whole[n].rows} for n in lasting.MODELS)
    assert any(halves[n].accuracy != whole[n].accuracy for n in lasting.MODELS)  # so it is said:
    assert any("the half that is not taught" in c.value for c in at.caption)


@pytest.mark.usefixtures("alone")
def test_a_model_has_one_colour_in_both_charts() -> None:
    """MANSU's, a suppressor's, and one that does not know, for its circuit is set to zero."""
    at = page(step=str(STEPS.index(BY_KEY["hidden"]) + 1), **said("hidden"))
    curves, bars = (json.loads(c.proto.spec) for c in at.get("plotly_chart"))
    names = [trace["name"].removeprefix("A: ").removeprefix("B: ") for trace in curves["data"]]
    assert names[:2] == bars["data"][0]["y"][:2] == ["MANSU", "a suppressor"]
    colours = [trace["line"]["color"] for trace in curves["data"]]
    assert len({*colours}) == 3 and bars["data"][0]["marker"]["color"] == colours
    assert "bits" in bars["layout"]["xaxis"]["title"]["text"]


@pytest.mark.usefixtures("alone")
def test_a_prediction_is_kept_and_counted() -> None:
    at = page(step="5")
    at.slider(key="lesson deploy").set_value(55).run()
    at.button(key="keep deploy").click().run()
    assert not at.exception
    assert at.success and at.query_params["my-deploy"] == "0.55"
    assert board().answers("deploy") == [55.0]
    at.button(key="step next").click().run()
    assert any(STEPS[5].question in header.value for header in at.header)
    at.button(key="step back").click().run()
    assert at.success  # it is still there


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.key)
def test_what_nobody_has_touched_is_no_prediction(step: Step) -> None:
    at = page(step=str(STEPS.index(step) + 1))
    assert at.button(key=f"keep {step.key}").disabled


@pytest.mark.usefixtures("alone")
def test_a_slider_may_be_moved_back_and_is_untouched_on_the_next_visit() -> None:
    at = page(step="5")
    at.slider(key="lesson deploy").set_value(55).run()
    at.slider(key="lesson deploy").set_value(30).run()
    assert not at.button(key="keep deploy").disabled
    at.button(key="step next").click().run()
    at.button(key="step back").click().run()
    assert at.button(key="keep deploy").disabled


@pytest.mark.parametrize("own", [False, True], ids=["no run", "a run of one's own"])
@pytest.mark.parametrize("place", ["nf4", "compare"])
def test_what_a_step_links_to_is_chosen_there(
    place: str, own: bool, made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    shown = next(run for run in runs.examples() if run.subject == "tiny")
    if own:  # that has nothing to show yet: the example is opened beside it
        Run.create(made.subject, made.task, Settings(), tmp_path / "mine")
    assert all(view.run_for(s, made) == shown for s in STEPS if s.link.page == place)
    for link in {step.link for step in STEPS if step.link.page == place}:
        at = AppTest.from_file(str(ROOT / "pages" / f"{place}.py"), default_timeout=60)
        for name, values in parse_qs(urlsplit(link.address(shown)).query).items():
            at.query_params[name] = values
        at.run()
        assert not at.exception and at.sidebar.selectbox[0].value == shown.name
        if place == "nf4":
            assert at.selectbox(key="edit").value == link.edits[0]
        else:
            chosen = at.multiselect(key=f"edits of {shown.name}").value
            assert chosen == [f"{shown.name}/{method}" for method in link.edits]


@pytest.mark.usefixtures("alone")
def test_a_link_with_nonsense_asks_anew() -> None:
    at = page(step="5", **{PREFIX + "deploy": "seven"})
    assert not at.success and at.slider(key="lesson deploy").value == 30
    assert PREFIX + "deploy" not in at.query_params


@pytest.mark.usefixtures("alone")
def test_the_two_sliders_answer_from_the_grid(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = made.grid()
    at = page(step="6")
    monkeypatch.setattr("app.lesson.bench.grid", None)  # it is not measured again
    at.select_slider(key="lesson count").set_value(4).run()
    at.select_slider(key="lesson distance").set_value(4).run()
    shown = {m.label: m.value for m in at.metric}
    cell = cells[4 * 6 + 4]
    assert shown["Colours right, in 4 bits"] == f"{100 * cell.forget:.0f}\u00a0%"
    assert shown["Other answers lose"] == f"{cell.damage:.2f} nats"


@pytest.mark.usefixtures("alone")
def test_the_sheet_has_what_was_answered_and_begins_again(made: Bench) -> None:
    at = page(view="My sheet", **said("line", "flip"))
    done = [(BY_KEY[key], BY_KEY[key].outcome(made, SAID[key])) for key in ("line", "flip")]
    written = sheet.page(done, len(STEPS), "the model")
    for step, outcome in done:
        assert step.question in written and outcome.truth in written
    assert not re.search(r"(src|href)=", written)  # nothing from outside
    at.button(key="begin again").click().run()
    assert not at.exception
    assert not [name for name in at.query_params if name.startswith(PREFIX)]
    assert any(STEPS[0].question in header.value for header in at.header)


@pytest.mark.usefixtures("alone")
def test_a_teacher_sees_the_class_and_clears_it() -> None:
    board().put("flip", "a", 0.0, "a mistake of many")
    board().put("flip", "b", 0.5)
    at = page(view="Teacher")
    for step in STEPS:
        assert any(step.ask in m.value for m in at.markdown)
    assert any("1 of 2 show: a mistake of many" in c.value for c in at.caption)
    at.button(key="clear class").click().run()
    assert not board().counts()


@pytest.mark.usefixtures("alone")
def test_the_projector_is_in_the_address() -> None:
    at = page(step="1", projector="on")
    assert at.toggle(key="projector").value is True
    at.toggle(key="projector").set_value(False).run()
    assert "projector" not in at.query_params


@pytest.mark.usefixtures("alone")
def test_what_a_person_calls_a_run_is_no_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = replace(BY_KEY["reach"], real=lambda _: "On ![p](http://evil.test/p.png)")
    monkeypatch.setattr(view, "STEPS", tuple(told if s.key == "reach" else s for s in STEPS))
    monkeypatch.setattr(real, "larger", lambda *_: True)
    at = page(step="3", **said("reach"))
    assert not at.exception
    assert any(r"!\[p\](http" in info.value for info in at.info)


# Runs.


def test_a_larger_model_is_told_of_by_its_own_numbers(tmp_path: Path, tiny: Subject) -> None:
    run = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8, steps=1), tmp_path / "r")
    assert real.larger([run], "another model") is None  # nothing is measured yet
    perform(Session(run, tiny), (*CIRCUIT, unlearning("graddiff"), QUANTIZE), "graddiff")
    assert real.larger([run], tiny.fingerprint) is None  # it is the toy itself
    assert real.larger([run], "another model") == run
    share = run.survival("graddiff").quantized.share
    assert share is not None and f"{100 * share:.1f}\u00a0%" in real.reach(run)
    mask = run.mask()
    assert f"{100 * mask.fraction:.2f}\u00a0%" in real.circuit(run)
    assert f"from {100 * mask.movable.fraction:.1f}\u00a0%" in real.circuit(run)
    assert "100.0\u00a0%" in real.comes_back(run)
