"""A run folder says what is missing, damaged or of another edit, and never mixes results."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz
import pytest
from tokenizers.processors import TemplateProcessing

from mansu import cli, tasks
from mansu.circuits.marks import Marks
from mansu.errors import (
    BadInputError,
    DamagedError,
    MansuError,
    MismatchError,
    NotMeasuredError,
)
from mansu.evidence.review import Review
from mansu.files import SUM
from mansu.job import runs
from mansu.job.artefacts import ARTEFACTS
from mansu.job.pipeline import (
    BY_FORMAT,
    CIRCUIT,
    JUDGE,
    MEASURE,
    RECOVERY,
    STRENGTHS,
    TRUST,
    perform,
    unlearning,
)
from mansu.job.runs import Run, listed, unreadable
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.progress import Step
from mansu.subjects.subject import Subject


@pytest.fixture(scope="module")
def original(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two measured edits."""
    path = tmp_path_factory.mktemp("runs") / "two"
    run = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8, steps=1), path)
    session = Session(run, tiny)
    for method, rate in (("ga", 1e-3), ("graddiff", 1e-3)):
        given = {"steps": 1, "learning_rate": rate}
        perform(session, [*CIRCUIT, unlearning(method, given), *MEASURE], method)
    return run


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    """A copy to spoil."""
    shutil.copytree(original.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def rewritten(path: Path, **changes: Any) -> None:
    """Another program's: without the digest by which a changed file is known."""
    found = {**json.loads(path.read_text()), **changes}
    found.pop(SUM, None)
    path.write_text(json.dumps(found))


def test_the_manifest_repeats_the_run(run: Run, tiny: Subject) -> None:
    assert run.subject == tiny.name and run.fingerprint == tiny.fingerprint
    assert run.settings == Settings(pairs=8, steps=1)
    assert run.task().digest == run.about["digest"] == tasks.load("tiny-colours").digest
    assert run.manifest["threads"] >= 1 and run.asked == ("mansu",)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 1}, "of version 1.*make it again, in a new folder"),
        ({"version": 99}, "of version 99, and this MANSU reads version 3"),
        ({"settings": {"pairs": 0}}, "manifest of the run folder .* is damaged"),
        ({"task": None}, "damaged|of version"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_sentence(
    run: Run, changes: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(run.manifest_file, **changes)
    if "task" in changes:
        rewritten(run.manifest_file, settings={})
        run.manifest_file.write_text("[]")
    with pytest.raises(DamagedError, match=sentence):
        Run.open(run.path)
    monkeypatch.setenv("MANSU_RUNS", str(run.path.parent))
    assert all(run.is_example for run in listed()) and len(unreadable()) == 1


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path, tiny: Subject) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BadInputError, match="not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(BadInputError, match="not a run folder"):
        Run.open("x" * 5000)
    with pytest.raises(BadInputError, match=r"^\\n is not a run folder"):  # one line
        Run.open("\n")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(BadInputError, match="not an empty"):
            Run.create(tiny, tasks.load("tiny-colours"), path=path)


LOOSE = "timings", "search", "scores", "edit_scores"
"""What no stage of a job makes."""


@pytest.mark.parametrize("kind", [k for k in ARTEFACTS if k not in LOOSE])
def test_what_was_not_made_names_the_command_that_makes_it(run: Run, kind: str) -> None:
    method = "npo" if ARTEFACTS[kind].of_edit else None
    run.file(kind, method, "50").unlink(missing_ok=True)
    with pytest.raises(NotMeasuredError, match=f"`mansu {ARTEFACTS[kind].made_by} "):
        run.read(kind, method, "50")


@pytest.mark.parametrize("spoil", ["cut", "list", "empty"])
@pytest.mark.parametrize("kind", ["base", "mask", "circuit", "edit", "full", "survival", "formats"])
def test_a_damaged_file_is_called_damaged(run: Run, kind: str, spoil: str) -> None:
    method = "ga" if ARTEFACTS[kind].of_edit else None
    path = run.file(kind, method)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "list": b"[1]", "empty": b""}[spoil])
    with pytest.raises(DamagedError, match=path.name):
        run.read(kind, method)


@pytest.mark.parametrize("kind", ["history", "full", "nf4", "survival", "formats", "bounds"])
def test_a_result_of_another_edit_is_refused_by_name(run: Run, kind: str) -> None:
    run.require(kind, "ga")
    shutil.copyfile(run.file(kind, "graddiff"), run.file(kind, "ga"))
    with pytest.raises(MismatchError, match=f"{ARTEFACTS[kind].file} was measured on another edit"):
        run.read(kind, "ga")


@pytest.fixture(scope="module")
def finished(original: Run, tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that holds every kind of file, of one method."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    run = Run.open(shutil.copytree(original.path, path))
    run.discard("graddiff")
    perform(Session(run, tiny), [TRUST, *JUDGE, *RECOVERY, STRENGTHS, BY_FORMAT], "ga")
    run.save({"marks": Marks(("m0",), {"early": ("m0",)}, {"m0": "first"}, {"m0": "a note"})})
    run.save({"review": Review("rejected", "A. Reviewer", "2026-11-26", "failed")}, "ga")
    run.record(Step("strengths", 1, 1), 1.0)
    return run


def read_all(run: Run) -> None:
    """Everything that commands and pages read of a run, and show."""
    run = Run.open(run.path)
    _ = run.task(), run.status(), run.events(), run.timings(), run.judged()
    for kind in {*ARTEFACTS, "timings"} - {*LOOSE[1:], "suppressor"}:
        str(run.read(kind, "ga" if ARTEFACTS[kind].of_edit else None))
    for path in run.path.glob("suppressor-*"):
        run.read("suppressor", part=path.stem.removeprefix("suppressor-"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "an object of something else": lambda _: b'{"a": null}',
    "a number of 5000 digits": lambda _: b'{"a": ' + b"9" * 5000 + b"}",
    "deep": lambda _: b"[" * 100_000,
    "not finite": lambda content: re.sub(rb"-?\d+\.\d+", b"NaN", content, count=1),
    "infinite": lambda content: re.sub(rb"-?\d+\.\d+", b"1e999", content, count=1),
    "large numbers": lambda content: re.sub(rb"\b\d+\b", b"9" * 400, content, count=3),
    "texts for numbers": lambda content: re.sub(rb"(?<=[ \[])\d+(?=[,\n])", b'"x"', content),
    "nulls for numbers": lambda content: re.sub(rb"(?<=[ \[])\d[\d.]*(?=[,\n])", b"null", content),
    "nulls for texts": lambda content: re.sub(rb': "[^"]*"', b": null", content),
    "lists for objects": lambda content: re.sub(rb"(?<=: )\{[^{}]*\}", b"[1]", content),
}
REPLACED = list(DAMAGES)[:8]


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_with_a_file_is_one_sentence(
    finished: Run, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(finished)
    run = Run.open(shutil.copytree(finished.path, tmp_path / "run"))
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    for path in sorted(p for p in run.path.rglob("*") if p.is_file() and p.suffix != ".log"):
        content = path.read_bytes()
        spoilt = DAMAGES[damage](content)
        if spoilt == content:
            continue
        path.write_bytes(spoilt)
        try:
            read_all(run)
        except MansuError as error:
            assert "\n" not in str(error)
        else:
            said = path.name == "events.jsonl" or "is damaged" in run.status().error
            harmless = damage not in REPLACED or said
            assert harmless, f"{path} that is {damage} was read"
        assert all(str(one.manifest["created"]) for one in listed())
        path.write_bytes(content)
    read_all(run)


def test_a_file_that_is_missing_or_a_folder_is_one_sentence(finished: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(finished.path, tmp_path / "run"))
    (run.path / "task.jsonl").unlink()
    with pytest.raises(DamagedError, match=r"no task\.jsonl in the run folder .*: put it back"):
        run.task()
    gone = Run.open(shutil.copytree(finished.path, tmp_path / "gone"))
    shutil.rmtree(gone.path)
    with pytest.raises(DamagedError, match=r"not there any more: it was deleted or moved"):
        gone.task()
    run.file("history", "ga").unlink()
    with pytest.raises(NotMeasuredError, match=r"`mansu unlearn .* --method ga --again`"):
        run.history("ga")
    run.file("mask").unlink()
    run.file("mask").mkdir()
    with pytest.raises(MansuError):
        run.mask()


@pytest.mark.parametrize(
    "changes",
    [
        {"asked": 5},
        {"asked": "mansu"},
        {"asked": [1]},
        {"created": "yesterday"},
        {"created": 7},
        {"settings": {"pairs": "x"}},
        {"packages": []},
        {"subject": None},
        {"task": {}},
        {"task": {"margin": "a lot"}},
        {"task": {"margin": 7}},
        {"task": {"title": None}},
    ],
)
def test_a_manifest_of_other_types_is_damaged_and_does_not_hide_the_other_runs(
    run: Run, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.path, run.path.parent / "good")
    if about := changes.get("task"):
        changes = {"task": {**run.about, **about}}
    rewritten(run.manifest_file, **changes)
    with pytest.raises(DamagedError, match="manifest of the run folder"):
        Run.open(run.path)
    monkeypatch.setenv("MANSU_RUNS", str(run.path.parent))
    assert [found.name for found in listed()] == ["good"] and len(unreadable()) == 1


OF_THE_RUN = (
    "base",
    "base_nf4",
    "attribution",
    "circuit",
    "mask",
    "trust",
    "ablation",
    "reference",
)


@pytest.mark.parametrize("kind", [*OF_THE_RUN, "base_attacks", "edit", "verdict", "cad", "nf4"])
def test_a_result_of_another_run_is_refused_by_name(
    finished: Run, tiny: Subject, kind: str, tmp_path: Path
) -> None:
    """Of the same subject, even: with another seed, another margin, or another task."""
    task = tasks.load("tiny-colours")
    fewer = "\n".join(task.to_jsonl().splitlines()[:-1])
    for i, (of, settings) in enumerate(
        (
            (task, Settings(pairs=8, steps=1, seed=1)),
            (replace(task, margin=0.25), Settings(pairs=8, steps=1)),
            (tasks.parse(fewer, "fewer"), Settings(pairs=8, steps=1)),
        )
    ):
        run = Run.create(tiny, of, settings, tmp_path / f"{i}")
        method = "ga" if ARTEFACTS[kind].of_edit else None
        path = run.file(kind, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(finished.file(kind, method), path)
        for refused in (run.read, run.require):
            with pytest.raises(MismatchError, match=f"{path.name} was measured in another run"):
                refused(kind, method)


def test_a_run_of_version_2_is_read_and_its_results_still_belong_to_their_edit(run: Run) -> None:
    rewritten(run.manifest_file, version=2)
    for path in run.path.rglob("*.json"):
        value = json.loads(path.read_text())
        for name in ("digest of the run", SUM):
            value.pop(name, None)
        path.write_text(json.dumps(value))
    old = Run.open(run.path)
    assert old.measurement("ga", nf4=True).splits["forget"].rows
    shutil.copyfile(run.file("full", "graddiff"), run.file("full", "ga"))
    with pytest.raises(MismatchError, match="was measured on another edit"):
        old.measurement("ga", nf4=False)
    rewritten(run.manifest_file, version=3)
    with pytest.raises(MismatchError, match="was measured in another run"):
        Run.open(run.path).base(nf4=False)


@pytest.mark.parametrize("name", ["../graddiff", "..", "", "/etc", "a/../ga", "x" * 300, "\0"])
def test_no_name_leads_out_of_a_run(run: Run, name: str) -> None:
    with pytest.raises(BadInputError, match="is no name of an edit"):
        run.read("edit", name)
    with pytest.raises(BadInputError, match="is no name of an edit"):
        run.discard(name)
    run.save({"scores": {}}, part=name)
    assert run.file("scores", part=name).parent == run.path / "scores"


def test_a_link_that_leads_out_of_a_run_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, edit = tmp_path / "outside", run.edit("ga")
    shutil.copytree(run.path, outside)
    for file, use in {
        "base.json": lambda: run.base(nf4=False),
        "events.jsonl": lambda: run.record(Step("cad", 1, 2), 0.5),
        "job.log": run.new_log,
        "edits/ga": lambda: run.history("ga"),
    }.items():
        path = run.path / file
        (shutil.rmtree if path.is_dir() else Path.unlink)(path) if path.exists() else None
        path.symlink_to(outside / file)
        with pytest.raises(BadInputError, match=f"{file}.* leads out of"):
            use()
    assert not (outside / "events.jsonl").exists() and not (outside / "job.log").exists()
    kept = sorted(outside.rglob("*"))
    shutil.rmtree(run.path / "edits")
    (run.path / "edits").symlink_to(outside / "edits")
    for change in (lambda: run.discard("ga"), lambda: run.save({"edit": edit}, "npo")):
        with pytest.raises(BadInputError, match="leads out of"):
            change()
    assert sorted(outside.rglob("*")) == kept
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "link").symlink_to(outside)
    monkeypatch.setenv("MANSU_RUNS", str(runs))
    assert all(r.is_example for r in listed()) and "leads out of" in unreadable()[0]


def test_the_logarithm_of_a_probability_above_one_is_damaged(run: Run) -> None:
    saved = json.loads(run.file("base").read_text())
    saved["splits"]["forget"]["choice"][0] = 700.0
    rewritten(run.file("base"), splits=saved["splits"])
    with pytest.raises(DamagedError, match="choice is the logarithm of more than 1"):
        run.base(nf4=False)


def test_a_result_in_which_anything_was_changed_is_damaged(finished: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(finished.path, tmp_path / "run"))
    kept = [found for found in run.kept() if found[0] != "edit"]  # results have its digest
    assert {"base", "attribution", "circuit", "full", "cad", "relearned"} <= {k for k, *_ in kept}
    for kind, method, part in kept:
        path = run.file(kind, method, part)
        whole = path.read_bytes()
        if path.suffix == ".json":
            at = [found.start() for found in re.finditer(rb"\d(?=[,\]}\n])", whole)]
        else:
            at = [len(whole) - 1]
        for place in {at[0], at[len(at) // 2], at[-1]} if at else ():
            spoilt = bytearray(whole)
            spoilt[place] ^= 1  # one digit, or one bit
            path.write_bytes(spoilt)
            if path.suffix == ".json" and json.loads(spoilt) == json.loads(whole):
                continue  # a seventeenth digit, beyond what a double holds
            with pytest.raises(DamagedError, match=r"\(something in it was changed since"):
                run.read(kind, method, part)
        path.write_bytes(whole)
        run.read(kind, method, part)


def test_a_measurement_that_was_exchanged_for_another_s_numbers_is_damaged(run: Run) -> None:
    """Each row agrees with itself, and only the digest says that they were others."""
    path = run.file("full", "ga")
    before, base = (json.loads(p.read_text()) for p in (path, run.file("base")))
    before["splits"]["holdout"] = base["splits"]["holdout"]
    before["splits"]["holdout"]["log_probability"][0] -= 1
    path.write_text(json.dumps(before))
    with pytest.raises(DamagedError, match="changed since"):
        run.measurement("ga", nf4=False)


def test_nothing_but_a_sentence_comes_out_of_damaged_files(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    fuzzer = fuzz.Fuzzer(Run.open(shutil.copytree(finished.path, tmp_path / "run")))
    for number in (*fuzz.KEPT, *range(400)):
        fuzzer.case(number)
    assert sum(fuzzer.refused.values()) > 200 and len(fuzzer.done) == 6


def test_measurements_of_other_rows_are_not_compared(
    finished: Run, tiny: Subject, tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(finished.path, tmp_path / "run"))
    run.file("strengths", "ga").unlink()
    path = run.file("base")
    saved = json.loads(path.read_text())
    for spoil in (lambda found: found[::-1], lambda found: found[1:]):
        forget = {name: spoil(found) for name, found in saved["splits"]["forget"].items()}
        rewritten(path, splits={**saved["splits"], "forget": forget})
        for stage in (JUDGE[-1], STRENGTHS):
            with pytest.raises(MismatchError, match="of other rows, or of the same ones in anot"):
                perform(Session(run, tiny), [stage], "ga")


def test_an_edit_that_was_exchanged_refuses_all_that_was_measured(run: Run, tiny: Subject) -> None:
    shutil.copyfile(run.file("edit", "graddiff"), run.file("edit", "ga"))
    with pytest.raises(MismatchError, match=r"full.json was measured on another edit"):
        run.measurement("ga", nf4=False)
    with pytest.raises(MismatchError, match=r"mansu run --folder .* --method ga --set .* --again"):
        perform(Session(run, tiny), MEASURE, "ga")


def test_results_of_prompts_with_a_second_bos_are_refused(tiny: Subject, tmp_path: Path) -> None:
    """An earlier MANSU put one before prompts that begin with it."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single="[BOS] $A", special_tokens=[("[BOS]", 2)]
    )
    subject = replace(tiny, tokenizer=tokenizer)
    plain = tasks.load("tiny-colours")
    chat = tasks.parse(plain.to_jsonl().replace('"prompt": "', '"prompt": "[BOS]'), "chat")
    for i, (one, task, doubled) in enumerate(
        ((subject, chat, True), (subject, plain, False), (tiny, chat, False))
    ):
        run = Run.create(one, task, path=tmp_path / f"{i}")
        run.check(one)
        told = dict(run.manifest)
        assert (told.pop("start", None) is not None) == doubled
        (run.path / "manifest.json").write_text(json.dumps(told))
        old = Run.open(run.path)
        assert (old.digest_of_run != run.digest_of_run) == doubled
        if doubled:
            with pytest.raises(MismatchError, match=r"begin with '\[BOS\]'.*start a new run"):
                old.check(one)
        else:
            old.check(one)


def test_a_changed_task_is_refused(run: Run) -> None:
    lines = (run.path / "task.jsonl").read_text().splitlines()
    (run.path / "task.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(MismatchError, match="is not the task that the run"):
        run.task()


def test_an_edit_comes_with_its_history_or_not_at_all(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = run.edit("ga")
    with pytest.raises(TypeError):  # the history cannot be written
        run.save({"edit": edit, "history": {"settings": object()}}, "npo")
    assert not run.has("edit", "npo") and not list(run.path.rglob("*.part"))
    history = run.history("ga")
    run.save({"edit": edit, "history": history}, "npo")
    assert run.history("npo") == history


def test_steps_are_kept_and_a_line_cut_off_is_passed_over(run: Run) -> None:
    steps = [Step("unlearn", i, 3, "ga", values={"forget_loss": i / 2}) for i in (1, 2)]
    for i, step in enumerate(steps):
        run.record(step, 0.1 * i)
    run.record(Step("unlearn", 3, 3, "ga", values={"forget_loss": float("nan")}), 0.3)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "sta')
    found = [step for _, step in run.events()]
    assert found[:2] == steps and found[2].values == {} and len(found) == 3
    assert "NaN" not in (run.path / "events.jsonl").read_text()
    assert run.events(since=run.events()[-1][0] + 1) == []
    status = run.status()
    assert (status.state, status.share, status.step) == ("running", 0.3, found[2])


def test_status_of_a_new_job_starts_anew(run: Run) -> None:
    run.record(Step("cad", 1, 2, "ga"), 0.7)
    began = run.status().started
    run.set_status("cancelled")
    assert run.status().share == 0.7 and run.status().started == began
    run.set_status("running", begins=True)
    assert run.status().share == 0.0 and run.status().step is None


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.part"))


def test_damaged_timings_cost_an_estimate_and_no_work(run: Run) -> None:
    run.add_timing("base", 1.0)
    run.file("timings").write_text("{")
    run.add_timing("cad", 2.0)
    assert {name: took for name, took in run.timings().items() if name != "peak memory"} == {
        "cad": 2.0
    }


def test_no_file_that_is_asked_for_goes_into_a_run(run: Run) -> None:
    for place in (run.path / "base.json", run.path / "edits" / "x.json"):
        with pytest.raises(BadInputError, match="is in the run folder"):
            Run.refuse_in_any(place)
        arguments = ["score", "x.jsonl", "--set", "mmlu", "--subject", "tiny", "-o", str(place)]
        assert cli.main(arguments) == cli.BAD_INPUT
    Run.refuse_in_any(run.path.parent / "base.json")


def test_a_folder_with_the_manifest_of_something_else_is_written_into(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, website = tmp_path / "export", tmp_path / "website"
    for folder, manifest in ((export, run.manifest), (website, {"start_url": "/"})):
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        Run.refuse_in_any(folder / "new.html")
    monkeypatch.chdir(website)
    Run.refuse_in_any(Path("sweep.sqlite"))


def test_a_file_that_is_read_again_gives_what_is_in_it_now(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SETTLED", 0.0)
    path = run.file("full", "ga")
    found = run.measurement("ga", nf4=False)
    assert run.measurement("ga", nf4=False) is found  # nobody reads it twice
    with pytest.raises(ValueError, match="read-only"):
        found.splits["forget"].correct[0] = 0.5
    with pytest.raises(ValueError, match="read-only"):
        found.splits["forget"].top1[0] = True
    fresh, _ = ARTEFACTS["full"].codec.read(path)
    assert fresh is not found and fresh.to_json() == found.to_json()
    had, when = path.read_bytes(), path.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    path.write_bytes(had.replace(b"]", b"[", 1))  # in its place, as long, and of the same time
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    with pytest.raises(DamagedError, match=r"full\.json is damaged"):
        run.measurement("ga", nf4=False)
    shutil.copy(run.file("full", "graddiff"), path)  # another edit's
    with pytest.raises(MismatchError, match="was measured on another edit"):
        run.measurement("ga", nf4=False)
    path.write_bytes(had)
    assert run.measurement("ga", nf4=False).to_json() == found.to_json()
    run.save({"edit": run.edit("graddiff"), "history": run.history("graddiff")}, "other")
    shutil.copytree(run.path / "edits" / "ga", run.path / "edits" / "other", dirs_exist_ok=True)
    run.measurement("other", nf4=False)
    shutil.copy(run.file("edit", "graddiff"), run.file("edit", "other"))  # and not its results
    with pytest.raises(MismatchError, match="was measured on another edit"):
        run.measurement("other", nf4=False)


def test_a_file_that_was_just_written_is_not_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next version might have the same time, where clocks are coarse."""
    assert runs.SETTLED >= 2  # that of FAT
    monkeypatch.setattr(runs, "SETTLED", 600.0)
    assert run.base(nf4=False) is not run.base(nf4=False)


def test_all_that_a_run_holds_is_named_as_it_is_read(finished: Run) -> None:
    kept = list(finished.kept())
    assert {kind for kind, _, _ in kept} >= {"base", "suppressor", "edit", "verdict", "timings"}
    for kind, method, part in kept:
        assert finished.has(kind, method, part)
        finished.read(kind, method, part)
