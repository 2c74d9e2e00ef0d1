"""Edits against each other: paired by row of the task, and said the right way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import CHANCE, changed, run_of

from mansu.errors import MismatchError, NotMeasuredError
from mansu.evidence.relearning import Relearned
from mansu.job.runs import Run
from mansu.measure.scores import Measurement, Scores, measure_task
from mansu.report.compare import QUANTITIES, Rows, Side, compare, sizes, spots
from mansu.statistics import bootstrap
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


def shuffled(scores: Scores) -> Scores:
    order = np.random.default_rng(0).permutation(len(scores.rows))
    arrays = {n: v[order] for n, v in scores.__dict__.items() if isinstance(v, np.ndarray)}
    texts = {n: tuple(v[i] for i in order) for n, v in scores.__dict__.items() if n in TEXTS and v}
    return Scores(**{**scores.__dict__, **arrays, **texts})


TEXTS = ("groups", "rows", "facts")


@pytest.fixture(scope="module")
def base(tiny: Subject, tiny_task: Task) -> Measurement:
    return measure_task(tiny, tiny_task)


@pytest.fixture
def run(tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement) -> Run:
    retain = base.splits["retain"].log_probability
    good = changed(base, forget={"correct": CHANCE, "spread": 0.1}, paraphrase={"correct": CHANCE})
    harsh = changed(base, forget={"correct": 0.0, "spread": 2.0, "log_probability": -24.0})
    worse = replace(base.splits["retain"], log_probability=retain - 0.5)
    harsh = Measurement({**harsh.splits, "retain": worse}, base.text_loss, (0.01,) * 8)
    return run_of(tmp_path / "run", tiny, tiny_task, base, {"mansu": good, "graddiff": harsh})


def sides(run: Run) -> list[Side]:
    return [Side("MANSU", run, "mansu"), Side("GradDiff", run, "graddiff")]


def test_what_separates_two_edits_is_said_the_right_way_round(run: Run) -> None:
    (found,) = compare(sides(run)).differences
    says = {d.quantity.title.split(",")[0]: (d.says, d.value.value) for d in found}
    assert says["Forget rows: accuracy"] == (
        "worse",
        pytest.approx(0.25),
    )  # below chance is no good
    assert says["Rephrasings: accuracy"][0] == "worse"
    assert says["Forget rows: the four choices' KL from uniform"] == ("worse", pytest.approx(1.9))
    assert says["Forget rows: log-probability of the answer"][0] == "lower"  # neither good nor bad
    assert says["Kept: change of log-probability"][0] == "worse"
    assert says["Comes back in NF4: the answer among its choices"][0] == "not told apart"
    (sentence,) = compare(sides(run)).headline
    assert sentence.startswith("GradDiff against MANSU. Worse: 25.0 [")
    assert "farther from chance on the forget rows" in sentence
    assert "less left of the kept answers" in sentence and "Better" not in sentence
    (turned,) = compare(sides(run)[::-1]).headline
    assert turned.startswith("MANSU against GradDiff. Better: 25.0 [")


def test_rows_are_paired_by_identity_and_not_by_position(
    run: Run, tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement
) -> None:
    forget = base.splits["forget"]
    values = -np.arange(len(forget.rows)) / len(forget.rows)
    one = replace(forget, log_probability=values, choice=0 * values)
    other = replace(one, log_probability=-(values**2))
    paired = [
        Measurement({**base.splits, "forget": scores}, base.text_loss, (0.0,) * 8)
        for scores in (one, other, shuffled(other))
    ]
    edits: dict[str, Measurement] = dict(zip(("mansu", "ga", "npo"), paired, strict=True))
    made = run_of(tmp_path / "paired", tiny, tiny_task, base, edits)
    named = [Side(m, made, m) for m in edits]
    straight, mixed = compare(named).differences
    title = "Forget rows: log-probability of the answer"
    a, b = (next(d for d in f if d.quantity.title == title) for f in (straight, mixed))
    assert a.value == b.value and a.rows == b.rows == len(values)
    expected = bootstrap(-(values**2) - values, clusters=forget.clusters)
    assert (a.value.value, a.value.low) == pytest.approx((expected.value, expected.low), abs=1e-4)


def test_all_kept_rows_are_compared_where_splits_share_a_group(
    tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement
) -> None:
    held = base.splits["holdout"]
    one = replace(held, groups=(base.splits["retain"].groups[0],) * len(held.rows))
    alike = Measurement({**base.splits, "holdout": one}, base.text_loss)
    edits = {m: Measurement(alike.splits, base.text_loss, (0.0,) * 8) for m in ("mansu", "ga")}
    made = run_of(tmp_path / "alike", tiny, tiny_task, alike, edits)
    (found,) = compare([Side(m, made, m) for m in edits]).differences
    rows = {d.rows for d in found if d.quantity.title.startswith("Kept")}
    kept = ("retain", "holdout", "neighbour")
    assert rows == {sum(len(base.splits[split].rows) for split in kept)}


def test_one_fact_alone_tells_no_edits_apart(run: Run, tiny: Subject, tiny_task: Task) -> None:
    found = []
    for method in ("mansu", "graddiff"):
        measured = run.measurement(method, nf4=False)
        rows = measured.splits["forget"]
        one = replace(rows, facts=("the one",) * len(rows.rows))
        found.append(replace(measured, splits={**measured.splits, "forget": one}))
    made = run_of(
        run.path.parent / "one",
        tiny,
        tiny_task,
        run.base(nf4=False),
        dict(zip(("mansu", "graddiff"), found, strict=True)),
    )
    (differences,) = compare(sides(made)).differences
    forget = [d for d in differences if d.quantity.title.startswith("Forget rows")]
    assert len(forget) == 3 and {d.says for d in forget} == {"not told apart"}


def test_what_cannot_be_paired_is_refused() -> None:
    def rows(*lines: int) -> Rows:
        return Rows(np.array(lines), np.zeros(len(lines)), np.array(lines))

    with pytest.raises(MismatchError, match="twice"):
        rows(1, 1, 2).paired(rows(1, 2, 3))
    with pytest.raises(MismatchError, match="other rows"):
        rows(1, 2).paired(rows(3, 4))
    pairs, clusters = rows(3, 1, 2).paired(rows(2, 3, 9))
    assert len(pairs) == 2 and clusters.tolist() == [2, 3]


def test_edits_of_other_tasks_are_not_subtracted(
    run: Run, tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement
) -> None:
    other = replace(tiny_task, facts=tiny_task.facts[:-1])
    far = run_of(tmp_path / "far", tiny, other, base, {"mansu": base})
    found = compare([sides(run)[0], Side("elsewhere", far, "mansu")])
    assert found.differences == [[]] and "do not compare" in found.headline[0]
    assert found.values[1]  # its own values stand


def test_spots_and_sizes_are_those_of_the_measurements(run: Run, base: Measurement) -> None:
    forget, rephrased = spots(sides(run)[0])
    fall = abs(base.splits["forget"].accuracy - CHANCE)
    assert forget.of == "forget rows" and forget.forgetting.value == pytest.approx(fall)
    assert forget.permanence.value == 0 and rephrased.of == "rephrasings"
    table = sizes(sides(run))
    assert table.columns["MANSU"][0].startswith(f"{base.text_loss:.3g}")


def test_relearning_that_was_cut_short_is_not_compared(
    run: Run, base: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only curve is of no step, and the other's the mean over all."""
    curve = (base.splits["forget"],) * 9
    found = {
        "mansu": Relearned("the edited model", 1.0, curve, {"steps": 8}),
        "graddiff": Relearned("the edited model", 1.0, curve[:1], {"steps": 8}),
    }

    def read(self: Run, kind: str, method: str) -> Relearned:
        assert kind == "relearned"
        return found[method]

    monkeypatch.setattr(Run, "read", read)
    quantity = next(q for q in QUANTITIES if "elearn" in q.title)
    assert len(quantity.read(run, "mansu").values) == len(curve[0].rows)
    with pytest.raises(NotMeasuredError, match="after 0 steps of 8"):
        quantity.read(run, "graddiff")
