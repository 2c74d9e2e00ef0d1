"""The front door: a run's own numbers, values that come back, one sentence a mistake."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mansu
from mansu import tasks
from mansu.errors import BadInputError
from mansu.job.pipeline import perform, whole
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.progress import Step

PAIRS, STEPS, SEED = 16, 2, 1
FAST: dict[str, Any] = {"steps": 6}  # of MANSU on the tiny subject


@pytest.fixture(scope="module")
def attribution(tiny: mansu.Subject, tiny_task: mansu.Task) -> mansu.Attribution:
    return mansu.attribute(tiny, tiny_task, pairs=PAIRS, steps=STEPS, seed=SEED)


@pytest.fixture(scope="module")
def circuit(
    tiny: mansu.Subject, tiny_task: mansu.Task, attribution: mansu.Attribution
) -> mansu.Circuit:
    return mansu.find_circuit(tiny, tiny_task, attribution, seed=SEED)


@pytest.fixture(scope="module")
def edit(tiny: mansu.Subject, tiny_task: mansu.Task, circuit: mansu.Circuit) -> mansu.Edit:
    return mansu.unlearn(tiny, tiny_task, circuit, method="mansu", seed=SEED, **FAST)


def test_it_gives_what_a_run_gives(
    tiny: mansu.Subject,
    tiny_task: mansu.Task,
    circuit: mansu.Circuit,
    edit: mansu.Edit,
    tmp_path: Path,
) -> None:
    settings = Settings(pairs=PAIRS, steps=STEPS, seed=SEED)
    run = Run.create(tiny, tiny_task, settings, tmp_path / "run")
    perform(Session(run, tiny), whole("mansu", FAST), "mansu")
    assert torch.equal(circuit.kept, run.circuit().kept)
    assert circuit.mask is not None and circuit.mask.size == run.mask().size
    same_edit(edit, run.edit("mansu"))
    assert mansu.evaluate(tiny, tiny_task, seed=SEED).to_json() == run.base(nf4=False).to_json()
    in_nf4 = mansu.evaluate(tiny, tiny_task, edit, nf4=True, seed=SEED)
    assert in_nf4.to_json() == run.measurement("mansu", nf4=True).to_json()
    steps: list[Step] = []
    verdict = mansu.judge(
        tiny, tiny_task, edit, circuit, steps=STEPS, seed=SEED, on_step=steps.append
    )
    assert verdict.to_json() == run.verdict("mansu").to_json()
    assert {step.stage for step in steps} == {"quantize", "cad", "relearning"}
    assert steps[-1].share == 1
    assert [s.done for s in steps if s.stage == "quantize"] == [0, 1, 2, 3, 4]


def same_edit(first: mansu.Edit, second: mansu.Edit) -> None:
    assert first.changes.keys() == second.changes.keys()
    for name, (where, values) in first.changes.items():
        assert torch.equal(where, second.changes[name][0])
        assert torch.equal(values, second.changes[name][1])
    assert (first.label, first.meta) == (second.label, second.meta)


def test_every_value_comes_back_as_it_was(
    tiny: mansu.Subject,
    tiny_task: mansu.Task,
    attribution: mansu.Attribution,
    circuit: mansu.Circuit,
    edit: mansu.Edit,
    tmp_path: Path,
) -> None:
    attribution.save(tmp_path)
    again = mansu.Attribution.load(tmp_path)
    assert torch.equal(again.scores, attribution.scores) and again.layout == attribution.layout
    circuit.save(tmp_path)
    loaded = mansu.Circuit.load(tmp_path)
    assert torch.equal(loaded.kept, circuit.kept)
    assert loaded.mask is not None and circuit.mask is not None
    assert loaded.mask.size == circuit.mask.size
    edit.save(tmp_path / "edit.safetensors")
    same_edit(mansu.Edit.load(tmp_path / "edit.safetensors"), edit)
    measured = mansu.evaluate(tiny, tiny_task, edit)
    measured.save(tmp_path / "full.json")
    assert mansu.Measurement.load(tmp_path / "full.json").to_json() == measured.to_json()
    verdict = mansu.judge(tiny, tiny_task, edit)
    verdict.save(tmp_path / "verdict.json")
    assert mansu.Verdict.load(tmp_path / "verdict.json").to_json() == verdict.to_json()


def test_a_task_keeps_its_title_and_margins(tiny_task: mansu.Task, tmp_path: Path) -> None:
    tiny_task.save(tmp_path / f"{tiny_task.name}.jsonl")
    again = mansu.load_task(str(tmp_path / f"{tiny_task.name}.jsonl"))
    assert again == tiny_task and again.base == tiny_task.base
    for wrong in ('{"marjin": 0.5}', '{"margin": "0.5"}', '{"margin": 5}', "[]"):
        (tmp_path / f"{tiny_task.name}.json").write_text(wrong)
        with pytest.raises(mansu.MansuError, match=r"marjin|margin|no object"):
            mansu.load_task(str(tmp_path / f"{tiny_task.name}.jsonl"))
    with pytest.raises(mansu.MansuError, match=r"end in \.jsonl"):
        tiny_task.save(tmp_path / "task.txt")


def test_values_show_themselves_in_a_line(
    tiny: mansu.Subject,
    tiny_task: mansu.Task,
    attribution: mansu.Attribution,
    circuit: mansu.Circuit,
    edit: mansu.Edit,
) -> None:
    values = (tiny, tiny_task, attribution, circuit, edit, mansu.evaluate(tiny, tiny_task))
    for value in values:
        assert repr(value).startswith(type(value).__name__)
        assert len(repr(value)) < 250 and "tensor(" not in repr(value)
    assert f"{edit.n_moved:,}" in repr(edit) and f"{len(circuit):,}" in repr(circuit)


def test_a_baseline_needs_no_circuit_and_erasure_is_then_unknown(
    tiny: mansu.Subject, tiny_task: mansu.Task
) -> None:
    edit = mansu.unlearn(tiny, tiny_task, method="graddiff", steps=1)
    assert edit.label == "graddiff" and edit.n_moved > 0
    verdict = mansu.judge(tiny, tiny_task, edit)
    assert verdict.erasure.status == "unknown"
    others = (verdict.forgetting, verdict.retention, verdict.gap)
    assert all(p.status != "unknown" for p in others)


def test_mistakes_are_one_sentence(
    tiny: mansu.Subject,
    tiny_task: mansu.Task,
    attribution: mansu.Attribution,
    circuit: mansu.Circuit,
    edit: mansu.Edit,
) -> None:
    with pytest.raises(mansu.MansuError, match="Unknown task"):
        mansu.load_task("no-such-task")
    with pytest.raises(mansu.MansuError, match="Unknown method"):
        mansu.unlearn(tiny, tiny_task, circuit, method="no-such-method")
    with pytest.raises(mansu.MansuError, match="'no_such' is no setting"):
        mansu.unlearn(tiny, tiny_task, circuit, method="graddiff", no_such=1)
    with pytest.raises(mansu.MansuError, match="circuit"):
        mansu.unlearn(tiny, tiny_task, method="mansu")
    with pytest.raises(mansu.MansuError, match="no parameter mask"):
        mansu.judge(tiny, tiny_task, edit, circuit.top(5))
    with pytest.raises(mansu.MansuError, match="raise max_fraction"):
        mansu.find_circuit(tiny, tiny_task, attribution, tau=0.1, max_fraction=1e-9, seed=SEED)
    with pytest.raises(mansu.MansuError, match="other clean–corrupt pairs"):
        mansu.find_circuit(tiny, tiny_task, attribution, seed=SEED + 1)
    for dtype in ("int8", "float64", "matmul"):
        with pytest.raises(mansu.MansuError, match="none of float32, bfloat16, float16"):
            mansu.load("tiny", dtype=dtype)
    with pytest.raises(mansu.MansuError, match=r"give what mansu\.find_circuit"):
        mansu.unlearn(tiny, tiny_task, circuit.top(5))
    for call in (mansu.unlearn, mansu.evaluate):
        with pytest.raises(mansu.MansuError, match="seed"):
            call(tiny, tiny_task, seed=-1)


def test_an_argument_of_another_kind_is_refused_by_name(
    tiny: mansu.Subject,
    tiny_task: mansu.Task,
    attribution: mansu.Attribution,
    circuit: mansu.Circuit,
    edit: mansu.Edit,
    tmp_path: Path,
) -> None:
    front: Any = mansu  # whose types a type checker would not let us break
    wrong: list[tuple[Any, str]] = [
        (lambda: front.load(3), r"load takes .*mansu\.load\('tiny'\), not 3"),
        (lambda: front.load_task(None), "load_task takes .* not None"),
        (lambda: front.attribute(tiny_task, tiny), r"mansu\.load gives as its subject, not what"),
        (lambda: front.find_circuit(tiny, tiny_task, circuit), "attribution, not .*find_circuit"),
        (lambda: front.unlearn(tiny, tiny_task, attribution), "circuit, not .*attribute gives"),
        (lambda: front.unlearn(tiny, tiny_task, circuit=False), "mansu_no_circuit"),
        (lambda: front.evaluate(tiny, tiny_task, circuit), "edit, not what mansu.find_circuit"),
        (lambda: front.judge(tiny, tiny_task, circuit), "unlearn gives as its edit, not what"),
        (lambda: front.judge(tiny, tiny_task, edit, attribution), "as its circuit, not what"),
        (lambda: front.export(tiny, tiny_task, tmp_path / "new"), "as its edit, not what"),
    ]
    for call, sentence in wrong:
        with pytest.raises(BadInputError, match=sentence):
            call()


def test_rows_that_cannot_be_used_are_told_of_once_a_call(
    tiny: mansu.Subject, tiny_task: mansu.Task
) -> None:
    """A row of the forget set that the retain set has, too, and one whose answer is no token."""
    first = next(f for f in tiny_task.facts if f.split == "forget")
    last = max(f.row for f in tiny_task.facts)
    wrong = {f.answer for f in tiny_task.facts if f.split == "forget"} - {first.answer}
    more = (
        replace(first, split="retain", row=last + 1, distractors=tuple(sorted(wrong))[:3]),
        replace(first, answer=" red and blue and green", row=last + 2),
    )
    task = replace(tiny_task, facts=(*tiny_task.facts, *more))
    both, unusable = f"Line {last + 1} of retain also in forget", f"Line {last + 2}"

    def told(call: Callable[[], Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        mine = [w for w in caught if w.filename == __file__]
        assert all(w.category is UserWarning for w in mine)
        return [str(w.message) for w in mine]

    def only(sentences: list[str], *starts: str) -> bool:
        found = [s for s in sentences if s.startswith(starts)]
        return len(sentences) == len(set(sentences)) == len(found) == len(starts)

    edit = mansu.unlearn(tiny, tiny_task, method="graddiff", steps=1)
    assert only(told(lambda: mansu.attribute(tiny, task, pairs=4, steps=1)), unusable)
    unlearn = told(lambda: mansu.unlearn(tiny, task, method="graddiff", steps=1))
    assert only(unlearn, both, unusable)
    assert only(told(lambda: mansu.evaluate(tiny, task, edit)), both, unusable)
    assert only(told(lambda: mansu.judge(tiny, task, edit)), both, unusable)
    assert told(lambda: mansu.evaluate(tiny, tiny_task)) == []


def test_a_model_that_does_not_know_the_task_is_refused(tiny: mansu.Subject) -> None:
    shuffled = _with_answers_in_turn(tasks.load("tiny-colours"))
    with pytest.raises(mansu.MansuError, match="does not know this task"):
        mansu.attribute(tiny, shuffled, pairs=4, steps=1)


def _with_answers_in_turn(task: mansu.Task) -> mansu.Task:
    """The forget set with each fact's answer taken from a later one: nobody knows it."""
    forget = [f for f in task.facts if f.split == "forget"]
    answers = sorted({f.answer for f in forget})
    following = dict(zip(answers, answers[1:] + answers[:1], strict=True))
    facts = [replace(f, answer=following[f.answer]) if f in forget else f for f in task.facts]
    return replace(task, facts=tuple(facts))


def test_an_export_is_a_checkpoint_of_the_edited_model(
    tiny: mansu.Subject, tiny_task: mansu.Task, edit: mansu.Edit, tmp_path: Path
) -> None:
    mansu.export(tiny, edit, tmp_path / "model")
    exported = mansu.load(str(tmp_path / "model"))
    measured = mansu.evaluate(exported, tiny_task).to_json()
    assert measured == {**mansu.evaluate(tiny, tiny_task, edit).to_json(), "drift": None}


def test_importing_mansu_loads_no_torch() -> None:
    code = (
        "import sys, mansu; assert {'load', 'judge', 'Verdict'} <= set(dir(mansu)); "
        "heavy = {'torch', 'transformers', 'numpy', 'streamlit'} & set(sys.modules); "
        "assert not heavy, heavy; mansu.MansuError; assert 'torch' not in sys.modules; "
        "mansu.load; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_takes_the_place_of_a_name_of_the_front_door() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mansu.__path__)}
    assert not modules & set(mansu.__all__)
    assert all(getattr(mansu, name).__name__ == name for name in mansu.__all__)
    with pytest.raises(AttributeError):
        _ = mansu.no_such_name  # type: ignore[attr-defined]


def test_a_circuit_of_another_task_or_seed_is_told(
    tiny: mansu.Subject, tiny_task: tasks.Task, circuit: mansu.Circuit
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mansu.unlearn(tiny, tiny_task, circuit, method="ga", steps=1, seed=SEED)
    with pytest.warns(UserWarning, match="not found on the clean–corrupt pairs of 'tiny-colours'"):
        mansu.unlearn(tiny, tiny_task, circuit, method="ga", steps=1, seed=SEED + 1)
