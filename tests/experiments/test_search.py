"""The search that the methods' defaults come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import search as searching
from mansu import tasks
from mansu.errors import BadInputError
from mansu.evidence.verdict import towards_chance
from mansu.measure.scores import measure
from mansu.methods import Problem, mansu_method, named
from mansu.methods.keep import kept_text
from mansu.progress import Step
from mansu.settings import filled
from mansu.subjects.subject import Subject
from mansu.tasks.facts import CHANCE

ROOT = Path(__file__).parents[2]


def test_halves_put_every_rephrased_fact_in_both(problem: Problem) -> None:
    rows = problem.forget
    one, two = searching.halves(rows, 0)
    assert sorted(one + two) == list(range(len(rows)))
    assert abs(len(one) - len(two)) <= 1
    answers = rows.answer.tolist()
    often = {a for a in answers if answers.count(a) > 1}
    assert often
    assert often <= {answers[i] for i in one} & {answers[i] for i in two}


def test_the_rule_is_the_least_cost_of_what_forgets_within_tolerance() -> None:
    def setting(fall: float, cost: float, *, lost: float = 0.0) -> dict[str, float]:
        return {"fall": fall, "cost": cost, "retain_fall": lost}

    def best(*tried: dict[str, float]) -> Any:
        return searching.best(tried, margin=0.6, tolerance=0.05)

    nearly, deep, gentle = setting(0.59, 0.1), setting(0.7, 3.0), setting(0.6, 2.0)
    too_far = setting(0.75, 0.0, lost=0.06)
    assert best(nearly, deep, gentle, too_far) is gentle
    # Where none forgets, the one that forgets most; of equals, the cheaper.
    less, dearer = setting(0.3, 0.0), setting(0.59, 0.2)
    assert best(less, dearer, nearly, too_far) is nearly
    assert best(setting(0.7, 0.0, lost=0.5), too_far) is too_far
    assert best(setting(0.3, 0.2), less) is less
    # One of 20 is the tolerance and 36 of 60 the margin, though by rounding they miss it.
    one_of_20 = setting((59 / 60 - CHANCE) - (23 / 60 - CHANCE), 0.1, lost=1.0 - 19 / 20)
    assert one_of_20["retain_fall"] > 0.05 and one_of_20["fall"] < 0.6
    assert best(deep, one_of_20) is one_of_20


def test_avoidance_is_not_forgetting(problem: Problem) -> None:
    """Accuracy below chance is as far from it as the same distance above, as in the verdict."""
    split = searching.Split.of(problem.subject, problem.task, 0)
    forget, retain = split.before
    known = forget.correct.mean()
    avoided = dataclasses.replace(forget, correct=forget.correct * 0)
    assert towards_chance(forget, avoided).value == pytest.approx(known - CHANCE - CHANCE)
    judged = split.judged()  # of the unedited model
    assert judged["fall"] == judged["kept_fall"] == judged["retain_fall"] == 0
    assert judged["cost"] == judged["drift"] == pytest.approx(0, abs=1e-6)
    assert judged["forget"] == forget.accuracy and judged["retain"] == retain.accuracy


@pytest.mark.usefixtures("untouched")
def test_the_search_finds_the_rate_that_forgets(problem: Problem, tiny_task: tasks.Task) -> None:
    told: list[Step] = []
    found = searching.search(
        problem.subject,
        tiny_task,
        "graddiff",
        rates=(1.0, 100.0, 5000.0),
        steps=(4, 8),
        batch=16,
        on_step=told.append,
    )
    rates = [t["learning_rate"] for t in found["tried"]]
    assert rates[:4] == pytest.approx([1e-5, 1e-5, 1e-3, 1e-3])
    assert len(found["tried"]) == 5  # 5e-2 wrecks retain, so its run ends at the first measurement
    assert found["tried"][-1]["retain_fall"] > tiny_task.tolerance
    assert found["best"]["learning_rate"] == pytest.approx(1e-3)
    assert found["best"]["forget"] < 0.6 < 0.9 < found["before"]["forget"]
    assert found["within_tolerance"]
    shares = [step.share for step in told]
    assert shares == sorted(shares) and {step.stage for step in told} == {"search"}

    # What was measured is what the method returns at that setting.
    train_rows, valid_rows = searching.halves(problem.forget, 0)
    train_retain, _ = searching.halves(problem.retain, 0)
    train = problem.forget.select(train_rows)
    half = dataclasses.replace(
        problem,
        forget=train,
        retain=problem.retain.select(train_retain),
        text=kept_text(problem.subject, tasks.text(tiny_task, problem.subject), train),
    )
    best = found["best"]
    outcome = named("graddiff")(
        half, learning_rate=best["learning_rate"], steps=best["steps"], batch=16
    )
    with outcome.edit.applied(problem.subject):
        accuracy = measure(problem.subject, problem.forget.select(valid_rows)).accuracy
    assert accuracy == best["forget"]


@pytest.mark.usefixtures("untouched")
def test_a_search_goes_on_past_the_end_of_the_grid_where_the_best_is(
    problem: Problem, tiny_task: tasks.Task
) -> None:
    def rates(task: tasks.Task, *multiples: float) -> list[float]:
        found = searching.search(
            problem.subject, task, "graddiff", rates=multiples, steps=(2, 4), batch=16
        )
        return list(dict.fromkeys(t["learning_rate"] / 1e-5 for t in found["tried"]))

    anything = dataclasses.replace(tiny_task, margin=-1.0)  # forgets, however little moves
    assert rates(anything, 1, 2) == pytest.approx([1, 2, 1 / 2, 1 / 4, 1 / 8])
    nothing = dataclasses.replace(tiny_task, margin=0.99, tolerance=1.0)  # never forgets
    assert rates(nothing, 50, 100) == pytest.approx([50, 100, 200, 400, 800])


def _search(
    monkeypatch: pytest.MonkeyPatch, problem: Problem, fall: Any, cost: Any = lambda rate: 0.0
) -> dict[str, Any]:
    """A search over rates 1, 2 and 4 (times 1e-5) whose settings measure as told."""

    def measured(_: Any, __: Any, given: Any, steps: Any, *___: Any) -> list[dict[str, float]]:
        rate = given["learning_rate"] / 1e-5
        return [
            {"steps": n, "fall": fall(rate), "retain_fall": 0.0, "cost": cost(rate)} for n in steps
        ]

    monkeypatch.setattr(searching, "_of_rate", measured)
    return searching.search(problem.subject, problem.task, "graddiff", steps=(4,))


def test_a_tie_does_not_end_a_search_that_found_nothing(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all fall alike the cheapest is the best, and says nothing of larger rates."""
    found = _search(monkeypatch, problem, lambda rate: 0.7 if rate > 50 else 0.0)
    assert found["best"]["learning_rate"] == pytest.approx(64e-5) and found["forgets"]
    assert not found["ended_at_limit"] and searching._doubt(found) == ""


def test_a_search_that_ends_at_its_limit_says_so(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that does nothing is not given up at 32 times, nor one that costs too much later."""
    idle = _search(monkeypatch, problem, lambda rate: 0.0)
    assert idle["tried"][-1]["learning_rate"] == pytest.approx(4096e-5)
    dear = _search(monkeypatch, problem, lambda rate: rate / 1e4, lambda rate: rate / 100)
    assert dear["tried"][-1]["learning_rate"] == pytest.approx(32e-5)
    for found in (idle, dear):
        assert found["ended_at_limit"] and not found["forgets"]
        assert searching._doubt(found) == (
            " (no setting tried forgets by the margin; the search ended at its limit)"
        )
    less = _search(monkeypatch, problem, lambda rate: 0.1 if rate == 2 else 0.0)
    assert len(less["tried"]) == 3 and not less["ended_at_limit"]
    small = _search(monkeypatch, problem, lambda rate: 0.7, lambda rate: rate)
    assert small["tried"][-1]["learning_rate"] == pytest.approx(1e-5 / 8)
    assert searching._doubt(small) == " (the search ended at its limit)"


def test_the_command_is_a_sweep_and_writes_each_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "results"
    where = ["--subject", "tiny", "--folder", f"{tmp_path}/runs", "--to", str(to), "--threads", "1"]
    command = ["tiny-colours", "ga", "--batch", "4", *where]
    assert searching.main(command) == 0
    record = json.loads((to / "search-ga.json").read_text())
    assert f"ga {json.dumps(record['best'])}\n" == capsys.readouterr().out
    assert record["batch"] == 4 and list(to.iterdir()) == [to / "search-ga.json"]
    (run,) = (tmp_path / "runs").glob("*/search.json")
    before = run.stat().st_mtime_ns
    (to / "search-ga.json").unlink()
    assert searching.main(command) == 0  # what is done is not done again
    assert run.stat().st_mtime_ns == before
    assert json.loads((to / "search-ga.json").read_text()) == record
    assert searching.main(["no-such-task", "ga", *where]) == 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments/results").glob("search-*.json")), ids=str
)
def test_defaults_are_what_the_search_found(path: Path) -> None:
    record = json.loads(path.read_text())
    method = named(record["method"])
    default = {name: setting.default for name, setting in method.options().items()}
    chosen = record["best"]
    assert (
        searching.best(record["tried"], **{n: record[n] for n in ("margin", "tolerance")}) == chosen
    )
    if method.name == "mansu":  # whose default is another of those tried: see the module
        rate = mansu_method.RATE
        (chosen,) = [
            t
            for t in record["tried"]
            if (t["learning_rate"], t["steps"]) == (pytest.approx(rate), default["steps"])
        ]
    else:
        rate = method.settings.RATE
        default["steps"] = filled(method.configure({}), toy=False).steps
        assert default["batch"] == record["batch"]
    assert (chosen["learning_rate"], chosen["steps"]) == (pytest.approx(rate), default["steps"])
    assert method.search is not None
    assert record["tried"][0]["learning_rate"] == pytest.approx(method.search.origin)
    assert record["tried"][0]["steps"] == method.search.steps[0]


def test_mansu_goes_through_the_same_search(
    problem: Problem, tiny_task: tasks.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number of steps is a run of its own, and measured as what it returns."""
    monkeypatch.setattr(searching, "GROWTH", 1)
    monkeypatch.setattr(searching, "CHEAP_GROWTH", 1)
    told: list[Step] = []
    found = searching.search(
        problem.subject, tiny_task, "mansu", rates=(8.0,), steps=(3, 6), on_step=told.append
    )
    tried = found["tried"]
    assert [t["steps"] for t in tried[:2]] == [3, 6]
    assert [t["learning_rate"] for t in tried[:2]] == pytest.approx([0.24, 0.24])
    assert found["best"]["forget"] < found["before"]["forget"]
    shares = [step.share for step in told]
    assert shares == sorted(shares)
    split = searching.Split.of(problem.subject, tiny_task, 0)
    half = dataclasses.replace(split.problem, mask=searching._mask(split.problem).tensors())
    edit = named("mansu")(half, rate=0.24, steps=3).edit
    with edit.applied(problem.subject):
        assert split.judged().items() <= tried[0].items()


def test_the_circuit_of_the_search_knows_the_training_rows_only(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = searching.halves(problem.forget, 0)
    half = dataclasses.replace(problem, forget=problem.forget.select(train))
    seen: set[int] = set()
    real = searching.attribute

    def watch(subject: Subject, pairs: tasks.Pairs) -> Any:
        seen.update(pairs.rows)
        return real(subject, pairs)

    monkeypatch.setattr(searching, "attribute", watch)
    searching._mask(half)
    assert seen
    assert seen <= set(half.forget.rows)


def test_an_unknown_method_is_named(problem: Problem, tiny_task: tasks.Task) -> None:
    with pytest.raises(BadInputError, match="Unknown method 'magic'"):
        searching.search(problem.subject, tiny_task, "magic")
    with pytest.raises(BadInputError, match="random_moves has nothing to search for"):
        searching.search(problem.subject, tiny_task, "random_moves")
