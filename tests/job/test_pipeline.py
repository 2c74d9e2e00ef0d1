"""The table of stages: what is there is not done again, what is missing or of others is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices import moved, needs_cuda
from made import one_fact

from mansu import tasks
from mansu.errors import MismatchError, NotMeasuredError
from mansu.evidence import cad, controls
from mansu.evidence.cad import PLACES
from mansu.job import names, pipeline
from mansu.job.artefacts import ARTEFACTS
from mansu.job.pipeline import (
    JUDGE,
    MEASURE,
    REFERENCE,
    RELEARNING,
    Plan,
    perform,
    unlearning,
    whole,
)
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.measure.scores import measure
from mansu.progress import Step
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

GIVEN = {"steps": 2, "learning_rate": 1e-3}
EVERY = (
    *whole("ga"),
    pipeline.TRUST,
    *pipeline.RECOVERY,
    pipeline.STRENGTHS,
    pipeline.BY_FORMAT,
)


@pytest.fixture(scope="module")
def told() -> list[Step]:
    return []


@pytest.fixture(scope="module")
def session(tiny: Subject, told: list[Step], tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("runs") / "run"
    run = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8, steps=1), path)
    session = Session(run, tiny)
    perform(session, whole("ga", GIVEN), "ga", told.append)
    return session


def test_the_table_names_what_exists_and_needs_what_is_made_before() -> None:
    made: set[str] = set()
    for stage in EVERY:
        assert set(stage.needs) <= made, stage.name
        assert len({ARTEFACTS[kind].of_edit for kind in stage.makes}) == 1
        made |= set(stage.makes)


def test_steps_name_their_stage_and_method(session: Session, told: list[Step]) -> None:
    stages = list(dict.fromkeys(step.stage for step in told))
    assert stages == [stage.name for stage in whole("ga")]
    assert {s.method for s in told if s.stage in ("base", "circuit", "base_nf4")} == {None}
    assert {s.method for s in told if s.stage in ("unlearn", "cad", "verdict")} == {"ga"}
    assert all(0 <= step.done <= step.total for step in told)


def test_the_share_of_a_plan_never_falls_and_ends_at_one(
    session: Session, told: list[Step], tiny: Subject, tmp_path: Path
) -> None:
    fresh = Run.create(tiny, tasks.load("tiny-colours"), path=tmp_path / "fresh")
    plan = Plan.of(Session(fresh, tiny), [("ga", whole("ga")), ("npo", whole("npo"))])
    shares = [plan.share(step) for step in told]
    assert None not in shares
    assert shares == sorted(shares)  # type: ignore[type-var]
    names = [part[:2] for part in plan.parts]
    assert names.count(("circuit", None)) == 1 and ("cad", "npo") in names
    last = Step(plan.parts[-1][0], 1, 1, plan.parts[-1][1])
    assert plan.share(last) == pytest.approx(1.0)
    assert plan.share(Step("elsewhere", 1, 2)) is None


def test_what_is_there_is_not_done_again(session: Session) -> None:
    def seen() -> dict[Path, int]:
        files = session.run.path.rglob("*.*")
        return {p: p.stat().st_mtime_ns for p in files if p.stem not in ("verdict", "timings")}

    before, told = seen(), []
    perform(session, whole("ga", GIVEN), "ga", told.append)
    assert seen() == before and [step.stage for step in told] == ["verdict"]


def test_a_job_killed_between_a_result_and_its_time_leaves_no_result_without_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is done, and what it took is lost from all that a leaderboard adds up."""
    subject, task = session.subject, session.task
    run = Run.create(subject, task, Settings(pairs=8, steps=1), tmp_path / "run")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "add_timing", killed)
    with pytest.raises(KeyboardInterrupt):
        perform(Session(run, subject), [pipeline.BASE])
    assert not run.has("base")
    monkeypatch.undo()
    perform(Session(run, subject), [pipeline.BASE])
    assert run.has("base") and "base" in run.seconds()


def test_what_a_stage_needs_is_named_with_its_command(tiny: Subject, tmp_path: Path) -> None:
    run = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8), tmp_path / "run")
    session = Session(run, tiny)
    for stages, command in (
        ([unlearning("ga")], "mansu circuit"),
        (MEASURE[1:], "mansu unlearn .* --method ga"),
        (JUDGE, "mansu circuit"),
    ):
        with pytest.raises(NotMeasuredError, match=command):
            perform(session, stages, "ga")
    assert not run.edits()


def test_what_a_later_stage_lacks_is_said_before_the_work_of_the_first(
    session: Session, tmp_path: Path
) -> None:
    copy = Run.open(shutil.copytree(session.run.path, tmp_path / "copy"))
    copy.file("base_nf4").unlink()
    copy.file("cad", "ga").unlink()
    with pytest.raises(NotMeasuredError, match="mansu quantize"):
        perform(Session(copy, session.subject), JUDGE, "ga")
    assert not copy.has("cad", "ga")


def test_other_weights_are_refused_at_any_step(session: Session, tiny: Subject) -> None:
    other = Subject("tiny", tiny.bridge, tiny.tokenizer, {}, dict(tiny.parameters))
    name = tiny.quantized_names[0]
    with Edit({name: (torch.tensor([0]), torch.tensor([9.0]))}).applied(tiny):
        assert other.fingerprint != tiny.fingerprint
    with pytest.raises(MismatchError, match="is not the one that the run run measured"):
        Session(session.run, other)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"learning_rate": 0.9}, "learning_rate = 0.001, not 0.9"),
        ({"steps": 3}, "steps = 2, not 3"),
    ],
)
def test_other_settings_than_the_edit_s_are_refused(
    session: Session, given: dict[str, float], sentence: str
) -> None:
    names.refuse_other(session.run, "ga", "ga", {})
    names.refuse_other(session.run, "ga", "ga", GIVEN)
    names.refuse_other(session.run, "npo", "npo", given)  # there is no such edit
    with pytest.raises(MismatchError, match=f"{sentence}.*--again"):
        names.refuse_other(session.run, "ga", "ga", given)


def test_a_session_makes_what_is_shared_once(session: Session) -> None:
    assert session.signals() is session.signals() and session.nf4 is session.nf4
    assert session.rows("forget") is session.rows("forget") and session.pairs is session.pairs
    assert all(session.suppression(p) is session.suppression(p) for p in PLACES)
    signals, nf4, suppression = session.signals(), session.nf4, session.suppression(PLACES[0])
    session.release()  # of what is large; an edit's CAD comes after, and needs the signals
    assert session.signals() is signals
    assert session.nf4 is not nf4 and session.suppression(PLACES[0]) is suppression


def test_divergences_are_those_of_the_definition(session: Session) -> None:
    """CAD and its controls, measured here without the session's caches."""
    run, subject = session.run, session.subject
    found, circuit = run.divergences("ga"), run.circuit().edge_mask
    signals = cad.Signals(subject, session.pairs, steps=1)
    zeroed = signals.of(controls.ablation(subject, run.mask().tensors()))
    edited = signals.of(run.edit("ga"))
    assert found.edited == cad.cad(signals.base, edited.plain)
    assert found.ablation == cad.cad(signals.base, zeroed.plain)
    assert found.signal == cad.cad(signals.base[:, circuit], edited.signal[:, circuit])
    accuracy = run.measurement("ga", nf4=False).splits["forget"].accuracy
    assert found.suppressor_accuracy is not None and found.suppressor_accuracy <= accuracy
    percent = controls.suppressed_percent(accuracy)
    for place in PLACES:
        with session.suppression(place).reaching(percent / 100).applied(subject):
            reached = measure(subject, session.rows("forget")).accuracy
        assert found.reached[place] == pytest.approx(reached)


@pytest.mark.parametrize("untold", ["rows", "facts"])
def test_a_control_that_an_earlier_mansu_made_otherwise_is_made_anew(
    session: Session, untold: str
) -> None:
    """On a part of the rows, or with each pair dealt alone, so that it told of none."""
    run = session.run
    found = run.divergences("ga")
    part = (
        f"{controls.suppressed_percent(run.measurement('ga', nf4=False).splits['forget'].accuracy)}"
    )
    had = run.read("suppressor", part=f"{part}-middle")
    assert had.about["rows"] == len(session.rows("forget"))

    def earlier(scored: cad.Scored) -> cad.Scored:
        about = {name: value for name, value in scored.about.items() if name != untold}
        return replace(scored, signal=0.5 * scored.signal, about={**about, "accuracy": 0.99})

    assert run.divergences("ga").reached and had.about["facts"] == session.signals().facts
    if untold == "facts":
        run.save({"ablation": earlier(run.read("ablation"))})
    run.save({"suppressor": earlier(had)}, part=f"{part}-middle")
    run.file("cad", "ga").unlink()
    perform(session, JUDGE[:1], "ga")
    assert run.divergences("ga") == found


@needs_cuda
@pytest.mark.parametrize("method", ["mansu", "graddiff"])
def test_every_stage_runs_on_a_gpu(tiny: Subject, tmp_path: Path, method: str) -> None:
    subject = moved(tiny, "cuda")
    start = {n: p.detach().clone() for n, p in subject.parameters.items()}
    run = Run.create(subject, tasks.load("tiny-colours"), Settings(pairs=16), tmp_path / "run")
    session = Session(run, subject)
    others = (pipeline.TRUST, *pipeline.RECOVERY, pipeline.STRENGTHS)
    stages = (*whole(method, {"steps": 12}), *others)
    perform(session, stages, method)
    assert all(stage.is_done(run, method) for stage in stages if not stage.always)
    print(run.timings(), run.verdict(method), sep="\n")
    for name, parameter in subject.parameters.items():
        assert torch.equal(parameter.view(torch.int32), start[name].view(torch.int32)), name


def test_of_one_fact_nothing_is_relearned_and_erasure_is_unknown(
    tiny: Subject, tmp_path: Path
) -> None:
    task = one_fact(tasks.load("tiny-colours"))
    run = Run.create(tiny, task, Settings(pairs=2, steps=1), tmp_path / "run")
    session = Session(run, tiny)
    planned = [name for name, _, _ in Plan.of(session, [("ga", whole("ga", GIVEN))]).parts]
    assert planned == [s.name for s in whole("ga") if s not in (REFERENCE, RELEARNING)]
    perform(session, whole("ga", GIVEN), "ga")
    assert run.verdict("ga").erasure.status == "unknown" and not run.has("relearned", "ga")
