"""Exports, read back by plain transformers and by the rules of lm-evaluation-harness."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import runpy
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from disks import limited
from families import FAMILIES, GROUPED, byte_pairs, family, shaken, tokenizer, wide
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from made import run_of
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from app import words
from mansu import cli, exports, quant, subjects, tasks
from mansu.cli.commands import parser
from mansu.errors import MansuError
from mansu.job.pipeline import perform, unlearning, whole
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.measure.scores import measure_task
from mansu.quant.formats import Format
from mansu.report.dossier import dossier
from mansu.show.numbers import percent
from mansu.subjects.edit import Edit
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject

ROOT = Path(__file__).parents[2]
WITHOUT_BPE = [f for f in exports.FORMATS if f != "gguf"]  # the tiny subject's tokenizer has none
TOKENS = torch.tensor([[5, 9, 2, 33, 41, 8], [1, 49, 17, 17, 3, 20]])


def random_edit(subject: Subject, share: float = 0.05) -> Edit:
    torch.manual_seed(1)
    after = {
        name: torch.where(torch.rand(p.shape) < share, p + 0.3 * torch.randn(p.shape), p)
        for name, p in subject.parameters.items()
    }
    return Edit.between(subject.parameters, after, "random")


def reloaded(folder: Path) -> Any:
    """What a user without MANSU gets; computed as the subject computes, without fused attention."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, info = loaded
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_transformers_reads_the_edited_model(name: str, tmp_path: Path) -> None:
    subject = family(name)
    edit = random_edit(subject)
    exports.checkpoint(subject, edit, tmp_path / "out")
    model = reloaded(tmp_path / "out")
    saved = dict(model.named_parameters())
    with torch.no_grad(), edit.applied(subject):
        for parameter, expected in subject.parameters.items():
            assert torch.equal(saved[parameter], expected), parameter
        expected = subject.model(TOKENS).logits
    # The bridge multiplies by the parts of a fused weight in turn.
    close = 1e-5 if name in ("gpt2", "phi3", "pythia") else 0
    torch.testing.assert_close(model(TOKENS).logits, expected, rtol=close, atol=close)
    assert not torch.allclose(expected, subject.model(TOKENS).logits, atol=1e-2)  # it is an edit
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}
    config = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    original = subject.bridge.original_model.config.to_dict()
    differ = {k for k in config | original if config.get(k) != original.get(k)}
    assert differ <= {"_name_or_path", "architectures", "dtype", "transformers_version"}


def test_generation_settings_and_chat_template_go_along(tiny: Subject, tmp_path: Path) -> None:
    subject = wrap("tiny", reloaded_tiny(tiny, tmp_path / "a"), copy.deepcopy(tiny.tokenizer))
    subject.model.generation_config = GenerationConfig(max_new_tokens=7)  # type: ignore[assignment]
    subject.tokenizer.chat_template = "{{ messages }}"
    exports.checkpoint(subject, Edit({}), tmp_path / "b")
    assert GenerationConfig.from_pretrained(tmp_path / "b").max_new_tokens == 7
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert tokenizer.chat_template == "{{ messages }}"
    prompt = "The colour of boben is red"
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == tiny.encode(prompt)


def test_a_head_of_its_own_that_the_config_calls_tied_is_exported(tmp_path: Path) -> None:
    """transformers loads such a checkpoint untied."""
    torch.manual_seed(0)
    shaken(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **GROUPED))).save_pretrained(
        tmp_path / "a"
    )
    tokenizer().save_pretrained(tmp_path / "a")
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert not written["tie_word_embeddings"]
    written["tie_word_embeddings"] = True
    (tmp_path / "a" / "config.json").write_text(json.dumps(written))
    subject = subjects.load(str(tmp_path / "a"))
    exports.checkpoint(subject, Edit({}), tmp_path / "b")
    said = [reloaded(tmp_path / folder)(TOKENS).logits for folder in "ab"]
    torch.testing.assert_close(*said, rtol=0, atol=0)
    assert not AutoConfig.from_pretrained(tmp_path / "b").tie_word_embeddings


def reloaded_tiny(tiny: Subject, folder: Path) -> Any:
    exports.checkpoint(tiny, Edit({}), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config._name_or_path = str(folder)
    return model


def codes(linear: Linear4bit) -> Tensor:
    weight: Any = linear.weight
    packed = weight.data.flatten()
    return torch.stack([packed >> 4, packed & 15], 1).view(weight.quant_state.shape)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_transformers_reads_the_codes_that_were_measured(
    name: str, double_quant: bool, tmp_path: Path
) -> None:
    subject = wide(name)
    edit, format = random_edit(subject), quant.Format(double_quant=double_quant)
    exports.nf4_checkpoint(subject, edit, tmp_path / "out", format)
    model = reloaded(tmp_path / "out")
    linears = {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    saved = {f"{n}.weight": codes(m) for n, m in linears.items()}
    assert set(saved) == set(subject.quantized_names)
    for linear in linears.values():
        linear.support_avx512bf16_for_cpu = False  # else it computes in bfloat16 where it can
    with torch.no_grad(), edit.applied(subject):
        for n in subject.quantized_names:
            weight = subjects.layout(subject, n)
            expected = quant.quantize(weight, format).codes.view(weight.shape)
            assert torch.equal(saved[n], expected), n
        with quant.quantized(subject, format=format):
            expected = subject.model(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
        real = quant.linear4bit_model(subject, edit, format)(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, real, rtol=1e-5, atol=1e-5)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MansuError, match="no whole number of blocks"):
        exports.nf4_checkpoint(family("llama"), Edit({}), tmp_path / "out")
    with pytest.raises(MansuError, match="not fp4-64"):
        exports.nf4_checkpoint(family("llama"), Edit({}), tmp_path / "out", quant.Format("fp4"))
    config = copy.deepcopy(wide("llama").config)
    config.num_key_value_heads, config.head_dim = 1, 16  # its k_proj: 16 × 128
    subject = wrap("narrow", LlamaForCausalLM(config), copy.deepcopy(wide("llama").tokenizer))
    with pytest.raises(MansuError, match=r"k_proj.* has 16 rows, which is no multiple of 32"):
        exports.nf4_checkpoint(subject, Edit({}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "job"
    run = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8, steps=1), path)
    session = Session(run, tiny)
    perform(session, whole("graddiff", {"steps": 3}), "graddiff")
    perform(session, [unlearning("ga", {"steps": 1})], "ga")  # not judged
    return run


def test_the_command_exports_all_three_and_says_how_to_score(
    run: Run, tiny: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    formats = [a for f in WITHOUT_BPE for a in ("--format", f)]
    command = ["export", str(run.path), "--method", "graddiff", *formats, "--to", str(out)]
    assert cli.main(command) == 0
    assert f"--include_path {out}/lm_eval --tasks mansu_tiny_colours" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing temporary beside it
    for folder in (out, out / "nf4"):
        for name in ("manifest.json", "verdict.json"):
            source = run.path if name == "manifest.json" else run.path / "edits" / "graddiff"
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    # The accuracies that plain transformers reaches are those of the run.
    for folder, is_nf4 in ((out, False), (out / "nf4", True)):
        model = reloaded(folder)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
        scores = run.measurement("graddiff", nf4=is_nf4).splits
        for split, expected in scores.items():
            rows = read(out / "lm_eval" / f"{split}.jsonl")
            correct = harness_answers(model, tiny, rows) == [row["answer"] for row in rows]
            assert [row["line"] for row in rows] == list(expected.rows)
            assert np.array_equal(correct, expected.correct), split


def test_nothing_that_leaves_the_machine_names_a_path_of_it_or_its_user(
    run: Run, tmp_path: Path
) -> None:
    """Of a subject that is a folder: its last name alone is told."""
    home = tmp_path / "home" / "somebody"
    model = shutil.copytree(subjects.TINY_FOLDER, home / "my-model")
    subject = subjects.load(str(model))
    mine = Run.open(shutil.copytree(run.path, home / "my-run"))
    told = {**mine.manifest, "subject": str(model), "fingerprint": subject.fingerprint}
    mine.manifest_file.write_text(json.dumps(told))
    mine = Run.open(mine.path)
    out = tmp_path / "out"
    exports.write(mine, subject, "graddiff", out / "all", WITHOUT_BPE)
    exports.pack(mine, out / "run.zip")
    dossier(mine, "graddiff").save(out / "dossier.html")
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with zipfile.ZipFile(out / "run.zip") as bundle:
        files |= {Path("run.zip", name): bundle.read(name) for name in bundle.namelist()}
    assert b"my-model" in files[Path("all/README.md")]
    sha256 = hashlib.sha256(files[Path("all/manifest.json")]).hexdigest()
    assert sha256.encode() in files[Path("all/README.md")]
    for path, content in files.items():
        for private in ("somebody", str(tmp_path), str(ROOT)):
            assert private.encode() not in content, path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def harness_answers(model: Any, subject: Subject, rows: list[dict[str, Any]]) -> np.ndarray:
    """The harness's ``multiple_choice``: the choice whose whole text is the most probable."""
    texts = [(row["prompt"], row["prompt"] + choice) for row in rows for choice in row["choices"]]
    prompts, wholes = (
        tasks.pad([subject.encode(x) for x in side]) for side in zip(*texts, strict=True)
    )
    log_probabilities = model(wholes[0]).logits.log_softmax(-1)[:, :-1]
    each = log_probabilities.gather(2, wholes[0][:, 1:, None])[..., 0]
    place = torch.arange(1, wholes[0].shape[1])
    answer = (place >= prompts[1][:, None]) & (place < wholes[1][:, None])
    return (each * answer).sum(1).view(len(rows), -1).argmax(1).numpy()


def test_the_harness_reads_its_files_wherever_the_folder_is_moved(
    tiny: Subject, tiny_task: tasks.Task, tmp_path: Path
) -> None:
    assert exports.lm_eval(tiny_task, tiny, tmp_path / "a") == ()
    shutil.move(tmp_path / "a", tmp_path / "b")
    load = runpy.run_path(str(tmp_path / "b" / "rows.py"))["load"]
    measured = measure_task(tiny, tiny_task).splits
    for split, scores in measured.items():
        text = (tmp_path / "b" / f"mansu_tiny_colours_{split}.yaml").read_text()
        assert f"task: mansu_tiny_colours_{split}\n" in text and f"  split: {split}\n" in text
        rows = load(version=1, split=split)["test"]
        examples = tasks.examples(tiny_task, tiny, split)
        assert tuple(rows["line"]) == scores.rows and len(set(rows["answer"])) == 4
        for i, row in enumerate(rows):
            ids = [tiny.encode(choice)[0] for choice in row["choices"]]
            assert ids[row["answer"]] == examples.answer[i]
            assert sorted(ids) == sorted([*examples.distractors[i].tolist(), examples.answer[i]])
    group = (tmp_path / "b" / "mansu_tiny_colours.yaml").read_text()
    assert group.startswith("group: mansu_tiny_colours\ntask:\n")
    assert group.count("  - mansu_tiny_colours_") == len(measured)


def test_rows_that_the_harness_would_cut_otherwise_are_named(
    tiny: Subject, tiny_task: tasks.Task, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in tiny_task.to_jsonl().splitlines()]
    lines[2]["prompt"] += " "  # the harness moves the space into the answer
    task = tasks.parse("\n".join(map(json.dumps, lines)), "spaced")
    notes = exports.lm_eval(task, tiny, tmp_path / "out")
    assert len(notes) == 1 and "Lines 3 left out of the harness's forget" in notes[0]
    kept = [row["line"] for row in read(tmp_path / "out" / "forget.jsonl")]
    assert kept == [f.row for f in task.split("forget") if f.row != 3]


def test_the_harness_is_told_of_a_bos(tiny: Subject, tiny_task: tasks.Task, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single="[BOS] $A", special_tokens=[("[BOS]", 2)]
    )
    subject = dataclasses.replace(tiny, tokenizer=tokenizer)
    for one, word in ((subject, "True"), (tiny, "False")):
        command = exports.harness_command(tiny_task, one, "model", "tasks")
        assert f"pretrained=model,add_bos_token={word} " in command
    assert exports.lm_eval(tiny_task, subject, tmp_path / "out") == ()
    row = read(tmp_path / "out" / "forget.jsonl")[0]
    ours = tasks.examples(tiny_task, subject, "forget")
    harness = tokenizer(row["prompt"] + row["choices"][row["answer"]])["input_ids"]
    assert harness == [*ours.tokens[0, : ours.length[0]].tolist(), int(ours.answer[0])]
    # One that the prompts begin with themselves some versions of the harness would give again.
    lines = [json.loads(line) for line in tiny_task.to_jsonl().splitlines()]
    written = [{**line, "prompt": "[BOS]" + line["prompt"]} for line in lines if "prompt" in line]
    chat = tasks.parse("\n".join(map(json.dumps, written)), tiny_task.name)
    assert exports.lm_eval(chat, subject, tmp_path / "chat") == ()
    assert read(tmp_path / "chat" / "forget.jsonl") == read(tmp_path / "out" / "forget.jsonl")


@pytest.mark.parametrize("format", [None, quant.Format(double_quant=True)], ids=["full", "nf4"])
def test_the_card_carries_the_verdict(
    run: Run, tiny: Subject, format: quant.Format | None, tmp_path: Path
) -> None:
    card = exports.model_card(run, tiny, "graddiff", format)
    (tmp_path / "README.md").write_text(card)
    front = metadata_load(tmp_path / "README.md")
    assert front is not None and front["license"] == "mit" and "base_model" not in front
    assert front["tags"][:2] == ["unlearning", "mansu"] and ("nf4" in front["tags"]) == bool(format)
    verdict = run.verdict("graddiff")
    assert f"\n{verdict.status.capitalize()}: " in card
    for p in verdict.properties:
        assert f"| {p.title} | {p.status} | " in card and p.evidence in card
    for is_nf4 in (False, True):
        for title, scores in run.measurement("graddiff", nf4=is_nf4).sets().items():
            line = next(x for x in card.splitlines() if x.startswith(f"| {title} | "))
            assert f" {percent(scores.accuracy)} |" in line
    assert "no guarantee of safety" in card and "--set steps=3" in card
    assert ("without double quantization" in card) == bool(format)
    assert run.about["digest"] in card
    for version in ("0.1.0", ""):  # of the MANSU that made the run; older runs do not say it
        made = Run(run.path, {**run.manifest, "mansu": version})
        told = exports.model_card(made, tiny, "graddiff", format)
        assert f"\n- {'MANSU 0.1.0, ' if version else ''}Python " in told


def test_a_card_for_the_hub_names_its_base(run: Run, tiny: Subject) -> None:
    about = {"source": "hub: some-lab/some-model-1.5B"}
    subject = Subject(
        "some-lab/some-model-1.5B", tiny.bridge, tiny.tokenizer, about, tiny.parameters
    )
    card = exports.model_card(run, subject, "graddiff", quant.NF4)
    data = ModelCardData(**metadata(card))
    assert data.base_model == "some-lab/some-model-1.5B" and data.license is None
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert "licence: unknown" in card


def metadata(card: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(card.split("---\n")[1])


def test_what_was_not_judged_is_not_called_passed(run: Run, tiny: Subject, tmp_path: Path) -> None:
    exports.write(run, tiny, "ga", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Not judged.**" in card and "**Not measured.**" in card and "passed" not in card
    assert not (tmp_path / "out" / "verdict.json").exists()


def test_command_and_app_offer_what_can_be_written() -> None:
    assert set(words.EXPORTS) == set(exports.FORMATS)
    assert set(words.OUTTYPES) == set(exports.OUTTYPES)
    for option, names in (("--format", exports.FORMATS), ("--outtype", exports.OUTTYPES)):
        for name in names:
            given = ["export", "run", "--to", "out", option, name]
            assert parser(given).parse_args(given)


def test_a_gguf_file_lies_beside_a_card_of_its_own(
    run: Run, tiny: Subject, tiny_task: tasks.Task, tmp_path: Path
) -> None:
    base = measure_task(tiny, tiny_task)
    subject = dataclasses.replace(tiny, tokenizer=byte_pairs(alphabet=False))
    mine = run_of(tmp_path / "run", subject, tiny_task, base, {"ga": base})
    out = tmp_path / "out"
    exports.write(mine, subject, "ga", out, ["gguf", "hf"], outtype="q8_0")
    (file,) = (out / "gguf").glob("*.gguf")
    assert file.name == "tiny-ga-q8_0.gguf"
    model: Any = AutoModelForCausalLM.from_pretrained(
        out / "gguf", gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    q8 = Format("Q8_0", 32)
    with torch.no_grad(), mine.edit("ga").applied(tiny), quant.quantized(tiny, format=q8):
        expected = tiny.model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS).logits, expected)
    card = (out / "gguf" / "README.md").read_text()
    assert f"llama-cli -m {file.name}" in card and f'gguf_file="{file.name}"' in card
    assert "GGUF Q8_0" in card and "not measured in Q8_0" in card and "activations" in card
    assert "GGUF" not in (out / "README.md").read_text()
    with pytest.raises(MansuError, match="WordLevel"):
        exports.write(run, tiny, "graddiff", tmp_path / "none", ["gguf"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize("when", ["model", "card", "harness"])
def test_an_interrupted_export_leaves_nothing(
    when: str, run: Run, tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {
        "model": "formats.nf4_checkpoint",
        "card": "formats.model_card",
        "harness": "harness._harness_rows",
    }[when]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mansu.exports.{place}", interrupt)
    before = {n: p.clone() for n, p in tiny.parameters.items()}
    with pytest.raises(KeyboardInterrupt):
        exports.write(run, tiny, "graddiff", tmp_path / "out", WITHOUT_BPE)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(p, before[n]) for n, p in tiny.parameters.items())


@pytest.mark.parametrize("format", ["hf", "nf4"])
def test_a_full_disk_is_one_sentence(
    format: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out"
    with limited(300_000):
        command = ["export", str(run.path), "--method", "ga", "--format", format]
        assert cli.main([*command, "--to", str(place)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
    assert line.startswith(f"mansu: {place}") and ".part" not in line
    assert line.count("was not written (") == 1 and "make room" in line
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_sentence_and_exit_code_2(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for arguments, sentence in (
        ([str(run.path), "--method", "npo", "--to", str(tmp_path / "x")], "has no edit by npo"),
        ([str(run.path), "--method", "ga", "--to", str(tmp_path / "full")], "not an empty folder"),
        ([str(run.path), "--method", "ga", "--to", str(tmp_path / "file")], "not an empty folder"),
        (["nowhere", "--to", str(tmp_path / "x")], "is not a run folder"),
    ):
        assert cli.main(["export", *arguments]) == 2
        errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
        assert len(errors) == 1 and sentence in errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "precious").read_text() == "mine"
