"""The command line does the main job on the tiny subject, and says bad input in one sentence."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mansu import cli, tasks
from mansu.circuits.metric import MEMORY
from mansu.cli import common
from mansu.cli.commands import COMMANDS
from mansu.errors import MismatchError
from mansu.evidence import cad
from mansu.evidence.attacks import ATTACKS, attack
from mansu.files import SUM, write_json
from mansu.interrupts import Cancelled
from mansu.job.lock import FILE, FLAG, hold
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.measure.scores import measure_task
from mansu.quant.formats import FORMATS, GGUF
from mansu.quant.swap import quantized
from mansu.report.repeat import repeat_command
from mansu.show.numbers import between
from mansu.subjects.shipped import TINY_FOLDER
from mansu.subjects.subject import Subject

TINY = ["--subject", "tiny", "--task", "tiny-colours", "--pairs", "16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole job with one baseline, made by the command itself."""
    path = tmp_path_factory.mktemp("runs") / "job"
    fast = ["--set", "steps=3"]
    assert cli.main(["run", *TINY, "--folder", str(path), "--method", "graddiff", *fast]) == 0
    return Run.open(path)


def test_the_whole_job_leaves_a_run_that_holds_everything(run: Run, tiny: Subject) -> None:
    assert run.judged() == ("graddiff",)
    assert run.status().state == "done"
    assert all(p.status != "unknown" for p in run.verdict("graddiff").properties)
    circuit, mask = run.circuit(), run.mask()
    assert circuit.faithfulness is not None and circuit.faithfulness >= run.settings.tau - 1e-6
    assert 0 < mask.fraction <= 0.1
    assert run.attribution().n_pairs == 16
    edit, report = run.edit("graddiff"), run.survival("graddiff")
    assert report.all.moved == edit.n_moved == run.history("graddiff")["moved"]
    assert len(run.history("graddiff")["steps"]) == 3
    assert run.divergences("graddiff").signal is not None
    assert set(run.timings()) >= {"attribution", "circuit", "unlearn graddiff", "peak memory"}
    assert not list(run.path.rglob("*.part"))
    # What it saved is what the edited model does.
    references = [Session(run, tiny).reference(nf4=nf4) for nf4 in (False, True)]
    with edit.applied(tiny):
        again = measure_task(tiny, run.task(), reference=references[0])
        with quantized(tiny):
            again_nf4 = measure_task(tiny, run.task(), reference=references[1])
    for found, nf4 in ((again, False), (again_nf4, True)):
        saved = run.measurement("graddiff", nf4=nf4)
        assert found.drift == pytest.approx(saved.drift, abs=1e-4)
        assert {**found.to_json(), "drift": None} == {**saved.to_json(), "drift": None}


def test_signal_cad_is_of_the_circuit_s_edges(run: Run, tiny: Subject) -> None:
    signals = Session(run, tiny).signals()
    circuit, found = run.circuit().edge_mask, run.divergences("graddiff")
    with run.edit("graddiff").applied(tiny):
        seen = signals.seen()
        with quantized(tiny):
            seen_nf4 = signals.seen()
    after, after_nf4 = (signals.scored(each).signal.sum(0) for each in (seen, seen_nf4))
    before = signals.base.sum(0)
    for measured, now in ((found.signal, after), (found.signal_nf4, after_nf4)):
        assert measured is not None
        value = cad.divergence(before[circuit], now[circuit])
        assert measured.value == pytest.approx(value, rel=1e-3)
        assert measured.value != pytest.approx(cad.divergence(before, now), rel=1e-2)


def test_trust_in_the_circuit_is_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trust", str(run.path)]) == 0
    assert "random masks" in capsys.readouterr().out
    found = run.trust()
    assert found.overlap is not None and found.always is not None
    assert 0 < found.overlap[0] <= 1 and 0 <= found.always <= 1
    assert found.held_out_pairs == 16
    assert found.held_out_faithfulness is not None and found.held_out_faithfulness[0] > 0.5
    assert found.metric_masked < found.metric
    assert len(found.metric_random_masks) == 5


def test_an_edit_is_attacked_beside_the_unedited_model(
    run: Run, tiny: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["attack", str(run.path), "--method", "graddiff"]) == 0
    *table, note = capsys.readouterr().out.splitlines()[1:]
    base, edited = run.attacks(None), run.attacks("graddiff")
    asked, every = (
        len(of.rows)
        for of in (edited.scores["none"], run.measurement("graddiff", nf4=False).splits["forget"])
    )
    assert f"the half that the attacker does not know: {asked} rows" in note and asked < every
    assert [line.split()[0] for line in (table[0], *table[2:])] == ["Attack", *ATTACKS]
    for name, line in zip(ATTACKS, table[2:], strict=True):
        for found in (base, edited):
            assert f" {between(found.accuracy(name))}" in line
    with run.edit("graddiff").applied(tiny):
        again = attack(tiny, run.task(), paraphrase=edited.scores["paraphrase"])
    assert again.to_json() == edited.to_json()
    assert (
        base.to_json() == attack(tiny, run.task(), paraphrase=base.scores["paraphrase"]).to_json()
    )
    made = (run.path / "attacks-base.json").stat().st_mtime_ns
    assert cli.main(["attack", str(run.path), "--method", "graddiff"]) == 0
    assert (run.path / "attacks-base.json").stat().st_mtime_ns == made
    assert cli.main(["attack", str(run.path), "--method", "npo"]) == 2


def test_other_formats_are_measured_as_nf4_is_and_the_verdict_names_the_worst(
    run: Run,
    tiny: Subject,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    monkeypatch.setattr("mansu.quant.fitted.installed", lambda: False)
    status = run.verdict("graddiff").status
    assert cli.main(["formats", str(run.path), "--method", "graddiff"]) == 0
    table = capsys.readouterr().out.splitlines()[2:]
    found = run.by_format("graddiff")
    names = [str(format) for format in (*FORMATS, *GGUF)]
    assert list(found) == names[1:] and [line.split()[0] for line in table[2:11]] == names
    assert "pip install 'mansu[hqq]'" in table[-1]
    for format in (FORMATS[2], GGUF[0]):  # nf4-128, Q4_0
        with run.edit("graddiff").applied(tiny), quantized(tiny, format=format):
            again = measure_task(tiny, run.task())
        for split, scores in found[str(format)].measured.splits.items():
            same = again.splits[split]
            assert scores.rows == same.rows and scores.correct.tolist() == same.correct.tolist()
            assert scores.choice == pytest.approx(same.choice, abs=1e-4)  # other rows beside them
        assert set(found[str(format)].measured.splits) == {"forget", "paraphrase"}
    kept = run.formats("graddiff")
    assert all(found[name].kept == kept[name] for name in names[1:5])
    verdict = run.verdict("graddiff")
    assert verdict.status == status and "Of 8 other formats the worst is" in verdict.gap.evidence
    made = run.file("by_format", "graddiff").stat().st_mtime_ns
    assert cli.main(["formats", str(run.path), "--method", "graddiff"]) == 0
    assert run.file("by_format", "graddiff").stat().st_mtime_ns == made
    path = run.file("by_format", "graddiff")  # as if a package had been installed since
    saved = json.loads(path.read_text())
    del saved["Q8_0"], saved[SUM]
    path.write_text(json.dumps(saved))
    assert cli.main(["formats", str(run.path), "--method", "graddiff"]) == 0
    assert "Q8_0" in run.by_format("graddiff")


def test_steps_one_by_one_and_what_is_done_is_not_done_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {p: p.stat().st_mtime_ns for p in run.path.rglob("*.safetensors")}
    assert cli.main(["circuit", str(run.path)]) == 0
    assert "faithfulness" in capsys.readouterr().out
    assert cli.main(["quantize", str(run.path), "--method", "graddiff"]) == 0
    assert cli.main(["verdict", str(run.path), "--method", "graddiff"]) == 0
    assert "structural erasure" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*.safetensors")} == files
    command = ["unlearn", str(run.path), "--method", "mansu", "--set", "steps=2"]
    assert cli.main(command) == 0
    assert run.edits()[:2] == ("mansu", "graddiff")
    assert run.judged() == ("graddiff",)


def test_memory_is_kept_in_the_run_and_obeyed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.settings.budget == Settings().budget == MEMORY
    folder = ["--folder", str(tmp_path / "small")]
    assert cli.main(["attribute", *TINY, *folder, "--memory", "1"]) == 2
    assert "more than the budget of 1 MiB" in capsys.readouterr().err
    assert Run.open(tmp_path / "small").settings.memory == 1


def test_controls_and_ablations_run_like_any_method(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, setting in (("random_moves", "moves=40"), ("mansu_no_floor", "steps=1")):
        command = [str(run.path), "--method", method]
        assert cli.main(["unlearn", *command, "--set", setting]) == 0
        assert cli.main(["quantize", *command]) == 0
        assert run.edit(method).label == method
        share = run.survival(method).quantized.share
        assert share == 1 if method == "random_moves" else share is not None and share < 1
        kept, bounds = run.formats(method), run.bounds(method)
        assert kept["nf4-64"].share == share and set(kept) == set(map(str, FORMATS))
        assert 0 <= bounds.restricted <= bounds.everywhere
    assert run.history("random_moves")["moved"] == 40
    assert run.history("mansu_no_floor")["settings"]["floor"] is False
    shown = capsys.readouterr().out
    for what in ("random_moves NF4", "int8", "bound over what MANSU may move"):
        assert what in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--subject", "no-such-model", "--task", "tiny-colours"], "Cannot load the model"),
        (["run", "--task", "no-such-task"], "Unknown task 'no-such-task'"),
        (["run", *TINY, "--method", "magic"], "Unknown method 'magic'"),
        (["run", "--task", "capitals", "--method", "retrained"], "No retrained reference ships"),
        (["run", *TINY, "--set", "speed=9"], "is no setting of mansu"),
        (["run", *TINY, "--set", "rate=fast"], "is no number"),
        (["run", *TINY, "--set", f"rate={'[' * 100_000}"], "is no number"),
        (["run", *TINY, "--set", f"rate={'1' * 5000}"], "give a number"),
        (["circuit", "nowhere"], "is not a run folder"),
        (["run", "--subject", "tiny", "--task", ""], "empty text after --task"),
        (["run", "--task=tiny-colours", "--subject="], "empty text after --subject"),
        (["run", *TINY, "--name", ""], "empty text after --name"),
        (["circuit", ""], "empty text after circuit"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: Sequence[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "runs"))
    assert cli.main(arguments) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
    assert len(lines) == 1 and sentence in lines[0]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_reference_that_does_not_ship_is_refused_before_the_circuit(
    tiny: Subject, tiny_task: tasks.Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = replace(tiny_task, name="mine")
    run = Run.create(tiny, task, Settings(pairs=16), tmp_path / "run", asked=["mansu"])
    for command in (["run", "--folder"], ["unlearn"]):
        assert cli.main([*command, str(run.path), "--method", "retrained"]) == 2
        assert "No retrained reference ships" in capsys.readouterr().err
    assert not run.has("base") and not run.has("mask")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"prompt": "x", "answer": "y", "split": "forget"}', "{oops"], "Line 2"),
        (['{"prompt": "x", "answer": " red", "split": "forget"}'], "empty retain set"),
    ],
)
def test_a_bad_task_file_is_refused_before_anything_is_written(
    lines: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path / "runs"))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    task = ["--task", str(tmp_path / "mine.jsonl")]
    assert cli.main(["run", "--subject", "tiny", *task]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_rows_that_cannot_be_used_are_named_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tasks.load("tiny-colours").to_jsonl().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "answer": " red blue"})
    lines[1] = json.dumps({**json.loads(lines[1]), "corrupt_prompt": "Too short"})
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    what = ["--subject", "tiny", "--task", str(tmp_path / "mine.jsonl"), "--pairs", "8"]
    assert cli.main(["attribute", *what, "--folder", str(tmp_path / "run")]) == 0
    shown = [x for x in capsys.readouterr().err.splitlines() if x.startswith("note: ")]
    assert any("Line 1 left out" in x and "not one token" in x for x in shown)
    assert any("Line 2" in x and "corrupt_prompt" in x for x in shown)


def test_a_task_that_the_model_does_not_know_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(x) for x in tasks.load("tiny-colours").to_jsonl().splitlines()]
    forget = [r for r in rows if r["split"] == "forget"]
    answers = [r["answer"] for r in forget]
    for i, row in enumerate(forget):  # each thing gets another one's colour
        row["answer"] = next(a for a in answers[i + 1 :] + answers if a != row["answer"])
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "run"
    command = ["run", "--subject", "tiny", "--task", str(path), "--folder", str(folder)]
    assert cli.main(command) == 2
    assert "'tiny' does not know this task: its 4-way accuracy" in capsys.readouterr().err
    assert Run.open(folder).status().state == "failed"
    assert not (folder / "attribution.safetensors").exists()


def test_cancelling_stops_at_once_and_keeps_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "cancelled"
    command = [sys.executable, "-m", "mansu", "run", *TINY, "--folder", str(path)]
    process = subprocess.Popen(
        [*command, "--set", "steps=10000", "--set", "target=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + 200
        while not (path / "mask.safetensors").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        while not any(step.stage == "unlearn" for _, step in Run.open(path).events()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == cli.CANCELLED
    finally:
        process.kill()
    run = Run.open(path)
    assert run.status().state == "cancelled"
    assert run.edits() == () and not list(path.rglob("*.part"))
    assert run.circuit().kept.numel() > 0


def test_a_flag_ends_a_job_in_the_middle_of_a_step(tiny: Subject, tmp_path: Path) -> None:
    run = Run.create(tiny, tasks.load("tiny-colours"), path=tmp_path / "run")
    before, ended = signal.signal(signal.SIGTERM, common.cancel), False
    try:
        with hold(run.path) as lock, pytest.raises(Cancelled), common._heeding(lock):
            (run.path / FLAG).write_bytes(b"of a job before")
            time.sleep(3 * common.HEED)
            (run.path / FLAG).write_bytes((run.path / FILE).read_bytes())
            time.sleep(60)
            ended = True
        assert not ended
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("code", "torn"), [(0, True), (cli.BAD_INPUT, True), (cli.CANCELLED, False)]
)
def test_a_job_that_was_cancelled_is_not_taken_apart(code: int, torn: bool) -> None:
    ends = (
        "import atexit\n"
        "from mansu.cli import commands\n"
        "atexit.register(print, 'torn')\n"
        f"commands.main = lambda: print('said') or {code}\n"
        "commands.script()\n"
    )
    done = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True)
    assert done.returncode == code and done.stdout.split() == ["said"] + ["torn"] * torn


def test_a_command_that_is_done_looks_through_nothing_more() -> None:
    code = (
        "from mansu import cli\n"
        "class A:\n"
        "    def __del__(self): print('looked')\n"
        "one = A()\n"
        "one.itself = one\n"
        "del one\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "", done.stdout


def test_help_and_version_answer_without_torch() -> None:
    code = (
        "import sys\n"
        "from mansu import cli\n"
        "try:\n"
        "    cli.main([sys.argv[1]])\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True)
        assert done.stdout.endswith("False False\n"), done.stdout + done.stderr


def test_every_command_has_a_module_and_says_what_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        assert COMMANDS[name].split(":")[0] in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--pairs", "0", "a whole number of at least 1"),
        ("--pairs", "many", "'many': give a whole number"),
        ("--steps", "2.5", "2.5: give a whole number"),
        ("--tau", "1.5", "a number above 0 and at most 1"),
        ("--tau", "NaN", "nan: give a number"),
        ("--max-fraction", "0", "a number above 0 and at most 1"),
        ("--seed", "-1", "a whole number of at least 0"),
        ("--memory", "1e400", "inf: give a whole number"),
        ("--steps", "1" + "0" * 18, "at least 1, smaller than 9e+15"),
        ("--pairs", "1" * 5000, "at least 1, smaller than 9e+15"),
        ("--pairs", "[" * 100_000, "a whole number of at least 1"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(
    option: str,
    value: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    what = ["--subject", "tiny", "--task", "tiny-colours", "--folder", str(tmp_path / "run")]
    assert cli.main(["run", *what, f"{option}={value}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
    assert sentence in line and option[2:].replace("-", "_") in line
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_answered_for_another_subject_task_or_setting(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["run", "--folder", str(run.path), "--method", "graddiff"]
    named = ["--name", "graddiff"]  # without it, other settings are of another edit
    for given, sentence in (
        (["--subject", "smollm2-135m-instruct"], "made with --subject tiny, not smollm2"),
        (["--task", "capitals"], "made with --task tiny-colours, not capitals"),
        (["--pairs", "7"], "made with --pairs 16, not 7"),
        (["--seed", "3"], "made with --seed 0, not 3"),
        ([*named, "--set", "steps=4"], "an edit graddiff with steps = 3, not 4"),
        ([*named, "--set", "learning_rate=0.9"], "an edit graddiff with learning_rate = "),
    ):
        assert cli.main([*here, *given]) == 2
        assert sentence in capsys.readouterr().err
    assert cli.main([*here, *TINY, "--set", "steps=3"]) == 0  # the same as it was made with
    command = ["unlearn", str(run.path), "--method", "graddiff", *named]
    assert cli.main([*command, "--set", "learning_rate=0.9"]) == 2
    assert "--again" in capsys.readouterr().err


def test_a_task_that_changed_since_the_run_was_made_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    path = tmp_path / "tiny-colours.jsonl"
    task = tasks.load("tiny-colours")
    here = ["run", "--folder", str(copy.path), "--method", "graddiff", "--task", str(path)]
    for changed, sentence in (
        ({"margin": 0.0}, "its margin was 0.5 and is 0.0 now"),
        ({"tolerance": 1.0}, "its tolerance was 0.05 and is 1.0 now"),
        ({"facts": task.facts[1:]}, "its digest was "),
    ):
        replace(task, **changed).save(path)
        assert cli.main(here) == 2
        found = capsys.readouterr().err
        assert (
            sentence in found and "has changed since the run" in found and "Leave --task" in found
        )
    task.save(path)
    assert cli.main(here) == 0


def test_a_task_that_cannot_be_used_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "words.jsonl", tmp_path / "run"
    rows = [
        {"prompt": f"Zyx {i}", "answer": " qwv", "split": split}
        for i in range(4)
        for split in ("forget", "retain")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    what = ["--subject", "tiny", "--task", str(path), "--folder", str(folder)]
    for command in ("run", "attribute"):
        assert cli.main([command, *what]) == 2
        assert "mansu: " in capsys.readouterr().err and not folder.exists()


def test_a_history_that_is_gone_names_the_command_that_makes_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    copy.file("history", "graddiff").unlink()
    assert cli.main(["run", "--folder", str(copy.path), "--method", "graddiff"]) == 2
    said = capsys.readouterr().err.split("`")[1]
    assert said.endswith("--again")
    assert cli.main([*shlex.split(said)[1:], "--set", "steps=3"]) == 0
    assert copy.history("graddiff")["settings"]["steps"] == 3


@pytest.mark.parametrize(
    "command",
    [
        "export RUN --method graddiff --to OTHER/edits/ga",
        "export RUN --method graddiff --to OTHER/exports/ga",
        "export RUN --method graddiff --to RUN/edits/ga",
        "dossier RUN --method graddiff --to OTHER/base.html",
        "bundle RUN --to OTHER/mine.zip",
        "bundle GRID --to OTHER/edits/ga",
        "sweep GRID --csv OTHER/base.json",
        "sweep GRID --store OTHER/base.json",
        "sweep GRID --folder OTHER",
        "task --wmdp none --mmlu none -o OTHER/task.jsonl",
        "run --subject tiny --task tiny-colours --folder OTHER/edits/ga",
    ],
)
def test_nothing_that_is_asked_for_goes_into_any_run(
    command: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, grid = tmp_path / "other", tmp_path / "grid.json"
    other.mkdir()
    shutil.copyfile(run.manifest_file, other / "manifest.json")
    shutil.copyfile(run.path / "task.jsonl", other / "task.jsonl")
    (other / "base.json").write_text("precious")
    held = sorted(other.iterdir())
    grid.write_text('{"subjects": ["tiny"], "tasks": ["tiny-colours"], "methods": {"ga": {}}}')
    before = sorted(run.path.rglob("*"))
    names = {"RUN": run.path, "OTHER": other, "GRID": grid}
    for name, path in names.items():
        command = command.replace(name, str(path))
    assert cli.main(command.split()) == 2
    assert "is in the run folder" in capsys.readouterr().err
    assert sorted(other.iterdir()) == held
    assert sorted(run.path.rglob("*")) == before


def test_what_the_app_exports_goes_into_its_run(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    place = copy.export_folder("graddiff", ["lm-eval"])
    command = ["export", str(copy.path), "--method", "graddiff", "--format", "lm-eval"]
    assert cli.main([*command, "--to", str(place)]) == 0
    assert (place / "lm_eval").is_dir()


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    assert cli.main(["attribute", *TINY, "--folder", str(tmp_path / place)]) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
    assert len(lines) == 1 and place.removesuffix("/run") in lines[0]


def test_again_makes_the_edit_and_all_that_follows_anew(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    before = copy.digest("graddiff")
    command = ["unlearn", str(copy.path), "--method", "graddiff", "--again"]
    assert cli.main([*command, "--set", "steps=1"]) == 0
    assert copy.digest("graddiff") != before and copy.judged() == ()
    assert copy.history("graddiff")["settings"]["steps"] == 1
    assert copy.history("graddiff")["given"] == {"steps": 1}
    whole = ["run", "--folder", str(copy.path), "--method", "graddiff", "--again"]
    assert cli.main([*whole, "--set", "steps=3"]) == 0
    assert copy.digest("graddiff") == before  # and it is the same edit, bit for bit
    assert copy.verdict("graddiff") == run.verdict("graddiff")


def test_a_checkpoint_that_changed_is_refused_at_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = shutil.copytree(TINY_FOLDER, tmp_path / "subject")
    run = tmp_path / "run"
    what = ["--subject", str(subject), "--task", "tiny-colours", "--pairs", "8", "--steps", "1"]
    assert cli.main(["attribute", *what, "--folder", str(run)]) == 0
    weights = load_file(subject / "model.safetensors")
    name = next(n for n in weights if n.endswith("mlp.down_proj.weight"))
    save_file({**weights, name: -weights[name]}, subject / "model.safetensors", {"format": "pt"})
    assert cli.main(["circuit", str(run)]) == 2
    assert "weights, config or tokenizer differ" in capsys.readouterr().err
    assert Run.open(run).status().state == "failed" and not Run.open(run).has("circuit")
    assert cli.main(["run", *what, "--folder", str(run)]) == 2


def test_a_run_of_a_relative_folder_goes_on_from_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "other"):
        shutil.copytree(TINY_FOLDER, tmp_path / "models" / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    what = ["--task", "tiny-colours", "--pairs", "8", "--steps", "1"]
    assert cli.main(["attribute", "--subject", "models/mine", *what, "--folder", "run"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = Run.open("../run")
    whole = str(tmp_path / "models" / "mine")
    assert cli.main(["circuit", "../run"]) == 0 and run.has("circuit") and run.subject == whole
    for name, code in (("../models/mine", 0), ("~/models/mine", 0), (whole, 0), ("mine", 2)):
        again = ["attribute", "--subject", name, *what, "--folder", "../run"]
        assert cli.main(again) == code, name
    assert cli.main(["attribute", "--subject", "~/models/other", "--folder", "../run"]) == 2
    # A run of before has it as it was given, and goes on from where that leads to it.
    write_json(run.manifest_file, {**run.manifest, "subject": "models/mine"})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["attribute", "--subject", whole, *what, "--folder", "run"]) == 0


def test_the_command_on_a_card_makes_the_same_edit(run: Run, tmp_path: Path) -> None:
    command = shlex.split(repeat_command(run, "graddiff"))
    assert command[:2] == ["mansu", "run"]
    assert cli.main([*command[1:], "--folder", str(tmp_path / "again")]) == 0
    again = Run.open(tmp_path / "again")
    assert again.settings == run.settings and again.asked == ("graddiff",)
    assert again.digest("graddiff") == run.digest("graddiff")


def test_the_app_is_refused_without_streamlit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mansu.launch.find_spec", lambda name: None)
    monkeypatch.delenv("MANSU_PASSWORD", raising=False)
    assert cli.main(["app"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'mansu[app]'" in said and "warning" not in said
    assert cli.main(["app", "--address", "0.0.0.0"]) == 2
    assert "warning: Whoever reaches this server" in capsys.readouterr().err
    monkeypatch.setenv("MANSU_PASSWORD", "secret")
    assert cli.main(["app", "--address", "0.0.0.0"]) == 2
    assert "warning" not in capsys.readouterr().err


def test_a_limit_that_is_none_is_refused_before_the_app_opens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MANSU_JOBS", "MANSU_MEMORY"):
        monkeypatch.setenv(name, "1")  # so that what the command sets is put back
    assert cli.main(["app", "--jobs", "0"]) == 2
    assert "jobs of the server (MANSU_JOBS) is 0" in capsys.readouterr().err
    assert cli.main(["app", "--jobs", "2", "--memory", "much"]) == 2
    assert "memory of the server (MANSU_MEMORY) is 'much'" in capsys.readouterr().err


def test_a_run_holds_several_edits_of_one_method(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    before, command = copy.digest("graddiff"), ["unlearn", str(copy.path), "--method", "graddiff"]
    assert cli.main([*command, "--set", "steps=1"]) == 0
    assert cli.main([*command, "--set", "steps=2", "--name", "two"]) == 0
    assert cli.main([*command, "--set", "steps=1"]) == 0  # it is there: nothing is made
    assert {"graddiff", "graddiff-steps-1", "two"} <= set(copy.edits())
    assert copy.digest("graddiff") == before and copy.judged() == ("graddiff",)
    three = ("graddiff", "graddiff-steps-1", "two")
    digests = {copy.digest(name) for name in three}
    steps = [copy.history(name)["settings"]["steps"] for name in three]
    assert steps == [3, 1, 2] and len(digests) == 3
    assert cli.main(["quantize", str(copy.path), "--method", "two"]) == 0
    assert copy.has("nf4", "two") and not copy.has("nf4", "graddiff-steps-1")
    words = shlex.split(repeat_command(copy, "two"))
    assert words[words.index("--name") + 1] == "two" and words[words.index("--method") + 1] == (
        "graddiff"
    )
    # What was measured on one is refused of another, whatever they are called.
    shutil.copy(copy.file("nf4", "two"), copy.file("nf4", "graddiff-steps-1"))
    capsys.readouterr()
    assert cli.main(["quantize", str(copy.path), "--method", "graddiff-steps-1"]) == 0
    with pytest.raises(MismatchError, match="--name two --set steps=2 --again"):
        shutil.copy(copy.file("full", "graddiff"), copy.file("full", "two"))
        copy.measurement("two", nf4=False)
    assert cli.main(["run", "--folder", str(copy.path), "--method", "npo", "--name", "ga"]) == 2
    assert "is a method's name" in capsys.readouterr().err
    assert cli.main(["attack", str(copy.path), "--method", "three"]) == 2
    assert "no edit three: it has " in capsys.readouterr().err
