from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
import runpy
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from families import (
    FAMILIES,
    GROUPED,
    PADDED,
    SHAPE,
    VOCABULARY,
    WIDE_HEADS,
    family,
    random_pairs,
    shaken,
    tokenizer,
)
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import logging

from mansu import subjects, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.graph import graph_of
from mansu.circuits.patching import Patched
from mansu.errors import BadInputError, MansuError, MismatchError
from mansu.measure.scores import EVALUATED, measure, measure_task
from mansu.subjects import shipped
from mansu.subjects.alone import alone
from mansu.subjects.checks import plain_logits
from mansu.subjects.shipped import TINY_FOLDER
from mansu.subjects.subject import Subject

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The names that scripts/train_tiny.py defines."""
    return runpy.run_path(str(ROOT / "scripts" / "train_tiny.py"))


@pytest.fixture(scope="module")
def real_nf4() -> Any:
    """The tiny checkpoint as Hugging Face loads it in 4 bits, with bitsandbytes' own layers."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return AutoModelForCausalLM.from_pretrained(
        TINY_FOLDER, quantization_config=config, dtype=torch.float32
    )


def plain(name: str) -> Any:
    """The same random model as ``family(name)``, never wrapped."""
    wrapped = family(name)
    shared: Any = wrapped.model
    model = type(shared)(shared.config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(wrapped.parameters[key])
    return model.eval()


def linear4bit_names(model: Any) -> set[str]:
    return {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Linear4bit)}


def test_tiny_meets_its_description(tiny: Subject) -> None:
    config = tiny.config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings
    assert (TINY_FOLDER / "model.safetensors").stat().st_size <= 2_000_000
    assert all(tiny.parameters[n].shape[1] % 64 == 0 for n in tiny.quantized_names)
    assert all(p.dtype == torch.float32 for p in tiny.parameters.values())
    assert tiny.encode(" red") == tiny.encode("red")
    assert len(tiny.encode(" red")) == 1


def test_tiny_knows_its_facts_in_float(tiny: Subject, tiny_task: tasks.Task) -> None:
    measured = measure_task(tiny, tiny_task)
    assert set(measured.splits) == set(EVALUATED)
    for split, scores in measured.splits.items():
        assert scores.accuracy >= 0.98, split
    # Plain text has entropy of its own; a model that learned nothing has ln 180 = 5.2 nats.
    assert measured.text_loss is not None and measured.text_loss < 2.0


def test_tiny_knows_its_facts_in_real_nf4(real_nf4: Any, tiny: Subject, tiny_task: Any) -> None:
    for split in EVALUATED:
        rows = tasks.examples(tiny_task, tiny, split)
        correct = 0
        for i in range(len(rows)):
            with torch.no_grad():
                logits = real_nf4(input_ids=rows.tokens[i : i + 1, : rows.length[i]]).logits[0, -1]
            correct += bool(logits[rows.answer[i]] > logits[rows.distractors[i]].max())
        assert correct / len(rows) >= 0.98, split


def test_tiny_was_made_by_its_script(recipe: dict[str, Any], tiny: Subject) -> None:
    known = recipe["facts"](random.Random(recipe["SEED"]))
    lines = "\n".join(map(json.dumps, recipe["task_lines"](known))) + "\n"
    assert (tasks.FOLDER / "tiny-colours.jsonl").read_text() == lines
    assert recipe["build_tokenizer"](known).get_vocab() == tiny.tokenizer.get_vocab()
    assert f"{recipe['STEPS']} steps" in tiny.provenance["recipe"]
    assert {k: getattr(tiny.config, k) for k in recipe["SHAPE"]} == recipe["SHAPE"]


def test_paraphrases_evaluated_were_never_trained(
    recipe: dict[str, Any], tiny_task: tasks.Task
) -> None:
    trained = {p for p, _, _ in recipe["sentences"](recipe["facts"](random.Random(0)))}
    evaluated = {f.prompt for f in tiny_task.split("paraphrase")}
    assert len(evaluated) == 96
    assert not evaluated & trained
    assert {f.prompt for f in tiny_task.split("forget")} <= trained


def test_neighbours_are_homes_of_other_things_than_those_kept(tiny_task: tasks.Task) -> None:
    def asked(split: str) -> tuple[set[str], set[str]]:
        rows = [f for f in tiny_task.split(split) if f.group == "homes"]
        return {f.prompt.split()[-3] for f in rows}, {f.answer for f in rows}

    names = {f.prompt for f in tiny_task.split("forget")}
    (kept, homes), (apart, same) = asked("retain"), asked("neighbour")
    assert {f.group for f in tiny_task.split("neighbour")} == {"homes"}
    assert len(tiny_task.split("neighbour")) == 32 and homes == same
    assert len(kept) == len(apart) == 16 and not kept & apart
    assert all(any(name in prompt.split() for prompt in names) for name in kept | apart)


def test_training_is_deterministic(recipe: dict[str, Any]) -> None:
    def short() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        rng = random.Random(0)
        known = recipe["facts"](rng)
        tokenizer = recipe["build_tokenizer"](known)
        return recipe["train"](known, tokenizer, rng, steps=2).state_dict()

    first, second = short(), short()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", FAMILIES)
def test_wrapping_changes_no_logits_and_loses_no_parameter(name: str) -> None:
    subject, model = family(name), plain(name)
    tokens = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    length = torch.tensor([7, 4, 5])
    with torch.no_grad():
        got = subject.next_token_logits(tokens, length)
        for i, n in enumerate(length):
            want = model(input_ids=tokens[i : i + 1, :n]).logits[0, -1]
            torch.testing.assert_close(got[i], want, atol=1e-4, rtol=1e-4)
    assert subject.n_parameters == sum(p.numel() for p in model.parameters())
    assert list(subject.parameters) == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_listed_parameter_is_what_runs(name: str) -> None:
    """A change of any listed weight changes the outputs, and its reversal restores them."""
    subject = family(name)
    tokens = torch.randint(1, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(1))
    length = torch.full((4,), 7)
    with torch.no_grad():
        before = subject.next_token_logits(tokens, length)
        for key, parameter in subject.parameters.items():
            if parameter.ndim < 2:  # a key's bias cancels in the softmax
                continue
            kept = parameter.clone()
            parameter.mul_(1.5)
            moved = not torch.equal(subject.next_token_logits(tokens, length), before)
            parameter.copy_(kept)
            assert moved, key
        assert torch.equal(subject.next_token_logits(tokens, length), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_names_are_those_of_hugging_face(name: str) -> None:
    model = plain(name)
    keep = get_keys_to_not_convert(model)
    replaced = replace_with_bnb_linear(
        copy.deepcopy(model), keep, BitsAndBytesConfig(load_in_4bit=True)
    )
    want = linear4bit_names(replaced)
    assert want
    assert set(family(name).quantized_names) == want


def test_quantized_names_of_tiny_are_those_of_a_real_4bit_load(
    tiny: Subject, real_nf4: Any
) -> None:
    assert set(tiny.quantized_names) == linear4bit_names(real_nf4)


def test_default_subject(default_subject: Subject) -> None:
    card = default_subject.card()
    assert (card["layers"], card["heads"], card["key/value heads"], card["width"]) == (
        30,
        9,
        3,
        576,
    )
    assert card["parameters"] == 134_515_008
    assert len(default_subject.quantized_names) == 30 * 7
    assert "4-bit" in card["note"]
    tokens = torch.tensor([default_subject.encode("The capital of France is")])
    logits = default_subject.next_token_logits(tokens, torch.tensor([tokens.shape[1]]))
    assert [int(logits.argmax())] == default_subject.encode(" Paris")


@pytest.mark.parametrize("name", ["no-such-model", "who/what", "a b c", "x/y/z"])
def test_unknown_model(name: str) -> None:
    with pytest.raises(MansuError, match="Cannot load the model") as error:
        subjects.load(name)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
    config = GraniteConfig(**shape, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path)  # and nothing beside it
    sentence = "MANSU does not know the architecture GraniteForCausalLM of .*: it knows Gemma 2, "
    with pytest.raises(BadInputError, match=sentence + ".* and Qwen3"):
        subjects.load(str(tmp_path))
    with pytest.raises(BadInputError, match=sentence):
        subjects.wrap("mine", GraniteForCausalLM(config), None)


def _shrink(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def _deepen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))


BROKEN: dict[str, Callable[[Path], Any]] = {
    "no config": lambda f: (f / "config.json").unlink(),
    "config not JSON": lambda f: (f / "config.json").write_text("{"),
    "unknown architecture": lambda f: (f / "config.json").write_text('{"model_type": "zzz"}'),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "corrupt weights": lambda f: (f / "model.safetensors").write_bytes(b"not weights" * 9),
    "weights of another width": _shrink,
    "a layer missing": _deepen,
    "no tokenizer": lambda f: [p.unlink() for p in f.glob("tokenizer*")],
}


def _change(file: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(known | values))

    return change


def _reweigh(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return write


class _Call:
    """What a hostile pickle does when it is read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("pickle-was-run"),)


def _pickle(folder: Path) -> None:
    torch.save({"a": _Call(), **load_file(folder / "model.safetensors")}, folder / "model.bin")
    (folder / "model.safetensors").rename(folder / "model.bak")


DOWN = "model.layers.1.mlp.down_proj.weight"
BROKEN |= {
    "a rotation that is none": _change(
        "config.json", rope_parameters={"rope_theta": 1e4, "rope_type": "nonsense"}
    ),
    "a pickle": _pickle,
    "quantised": _change("config.json", quantization_config={"quant_method": "bitsandbytes"}),
    "a weight too many": _reweigh(lambda w: w.update({"model.layers.9.odd": torch.ones(2)})),
    "a weight that is not finite": _reweigh(lambda w: w[DOWN][3, 4].fill_(float("inf"))),
    "a weight missing": _reweigh(lambda w: w.pop(DOWN)),
    "a tokenizer that is none": lambda f: (f / "tokenizer.json").write_text("[]"),
}
SENTENCES = {
    "a rotation that is none": "nonsense",
    "a pickle": "model.bin, a pickle, which can run any code",
    "quantised": "is quantised already",
    "a weight too many": "holds the weight 'model.layers.9.odd' that a LlamaForCausalLM has",
    "a weight that is not finite": f"The weight '{DOWN}' of",
    "a layer missing": "lacks the weight",
    "a weight missing": f"lacks the weight '{DOWN}': give a whole",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoint(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(TINY_FOLDER, folder)
    BROKEN[kind](folder)
    with pytest.raises(MansuError) as error:
        subjects.load(str(folder))
    assert str(folder) in str(error.value) and SENTENCES.get(kind, "") in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("pickle-was-run").exists()


def test_a_real_4bit_model_is_refused(real_nf4: Any, tiny: Subject) -> None:
    with pytest.raises(BadInputError, match=r"quantised already.*\(model\.layers.*is uint8\)"):
        subjects.wrap("nf4", copy.deepcopy(real_nf4), tiny.tokenizer)


def _gpt2(**options: Any) -> Any:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=180, n_embd=32, n_head=4, n_layer=2, n_positions=64, **options)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def test_what_runs_is_the_plain_model_or_is_refused(tiny: Subject, tmp_path: Path) -> None:
    """TransformerLens scales GPT-2's attention whatever the config says."""
    model = _gpt2(scale_attn_weights=False)
    with pytest.raises(BadInputError, match="its model GPT2LMHeadModel: their logits differ by"):
        subjects.wrap("odd", model, tiny.tokenizer)
    want, tokens = _gpt2().eval(), torch.tensor([[5, 6, 7, 8], [9, 8, 0, 0]])
    with torch.no_grad():
        plain = torch.stack([want(tokens[i, None, :n]).logits[0, -1] for i, n in enumerate((4, 2))])
        got = subjects.wrap("whole", _gpt2(), tiny.tokenizer).next_token_logits(
            tokens, torch.tensor([4, 2])
        )
    torch.testing.assert_close(got, plain, atol=1e-4, rtol=1e-4)


def test_a_head_that_scales_its_logits_is_caught(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Granite's does, and only the plain model knows of it."""
    forward = LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out: Any = forward(self, *args, **kwargs)
        out.logits /= 8
        return out

    model = AutoModelForCausalLM.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    monkeypatch.setattr(LlamaForCausalLM, "forward", functools.wraps(forward)(scaled))
    with pytest.raises(BadInputError, match="their logits differ by"):
        subjects.wrap("scaled", model, tiny.tokenizer)


def test_a_row_beyond_a_sliding_window_is_compared(tiny: Subject) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    shape["num_key_value_heads"] = 2
    config = MistralConfig(
        vocab_size=40, num_hidden_layers=1, sliding_window=20, max_position_embeddings=64, **shape
    )
    assert [len(row) for row in plain_logits(MistralForCausalLM(config)).rows] == [12, 7, 1, 28]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_as_close_as_they_can_be(dtype: torch.dtype) -> None:
    for name in FAMILIES:
        family(name, dtype=dtype)


def test_a_folder_loads_like_the_name(tiny: Subject, tmp_path: Path) -> None:
    shutil.copytree(TINY_FOLDER, tmp_path / "mine")
    mine = subjects.load(str(tmp_path / "mine"))
    assert all(torch.equal(p, tiny.parameters[n]) for n, p in mine.parameters.items())
    assert mine.provenance["source"] == str(tmp_path / "mine")


def test_a_folder_has_one_name_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = str(shutil.copytree(TINY_FOLDER, tmp_path / "models" / "mine"))
    (tmp_path / "link").symlink_to(whole)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = "models/mine", "./models/../models/mine/", "link", "~/models/mine", whole
    assert {shipped.absolute(name) for name in spellings} == {whole}
    for name in ("models/mine", "~/models/mine"):
        mine = subjects.load(name)
        assert mine.name == mine.provenance["source"] == whole
        assert subjects.expected_bytes(name) == subjects.expected_bytes(whole) > 0
    (tmp_path / "tiny").mkdir()
    for name in ("tiny", "somebody/model", "~nobody-here/model", "models/none", "x" * 5000):
        assert shipped.absolute(name) == name


def test_weights_out_of_memory_are_refused_in_a_sentence(tmp_path: Path) -> None:
    parts = ("embed_tokens", "rotary_emb", "norm", "layers.0", "layers.1", "layers.2")
    places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu"}
    places["model.layers.1"] = "disk"  # as device_map="auto" does where memory is short
    model = AutoModelForCausalLM.from_pretrained(
        TINY_FOLDER, device_map=places, offload_folder=tmp_path
    )
    with pytest.raises(MansuError, match=r"of its weights were put elsewhere \(model\.layers\.1\."):
        subjects.wrap("tiny", model, None)


def test_a_model_placed_by_a_device_map_attributes_alike(tiny: Subject) -> None:
    placed = AutoModelForCausalLM.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    on_cpu: Any = "cpu"  # typed as a device, compared as a string
    accelerate.dispatch_model(placed, {"": "cpu"}, main_device=on_cpu, force_hooks=True)
    assert hasattr(placed.model.layers[0], "_hf_hook") or hasattr(placed, "_hf_hook")
    subject = subjects.wrap("tiny", placed, tiny.tokenizer)
    pairs = tasks.pairs(tasks.load("tiny-colours"), tiny, n=4)
    expected = attribute(tiny, pairs, steps=2).scores
    torch.testing.assert_close(attribute(subject, pairs, steps=2).scores, expected)


SMALL: dict[str, Any] = {"num_hidden_layers": 2}


def _llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **GROUPED))


BIASED: dict[str, Callable[[], Any]] = {
    "OLMo-2": lambda: Olmo2ForCausalLM(Olmo2Config(attention_bias=True, **SMALL, **PADDED)),
    "Gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(attention_bias=True, **SMALL, **WIDE_HEADS)),
    "Gemma 3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(attention_bias=True, **SMALL, **WIDE_HEADS)
    ),
}


@pytest.mark.parametrize("kind", BIASED)
def test_a_bias_that_no_head_writes_is_refused(kind: str) -> None:
    with pytest.raises(BadInputError, match="'mine' adds a bias before its norm"):
        subjects.wrap("mine", BIASED[kind](), tokenizer())


def test_a_bias_without_a_norm_after_it_is_the_circuit_s() -> None:
    model = LlamaForCausalLM(LlamaConfig(attention_bias=True, **SMALL, **GROUPED))
    subject = subjects.wrap("mine", shaken(model), tokenizer())
    patched = Patched(subject, random_pairs(), "logit_difference", 1 << 30)
    whole = patched.values(graph_of(subject).edges[None])[0]
    torch.testing.assert_close(whole, patched.clean, atol=1e-4, rtol=1e-4)


def _longrope() -> Any:
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    return Phi3ForCausalLM(
        Phi3Config(original_max_position_embeddings=10, rope_parameters=rope, **SMALL, **PADDED)
    )


def _dynamic() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    shape: dict[str, Any] = SMALL | GROUPED | {"max_position_embeddings": 10}
    return LlamaForCausalLM(LlamaConfig(rope_parameters=rope, **shape))


@pytest.mark.parametrize("make", [_longrope, _dynamic])
def test_a_row_that_would_turn_the_others_frequencies_is_left_out(
    make: Callable[[], Any],
) -> None:
    subject = subjects.wrap("mine", shaken(make()), tokenizer())
    assert subject.context == 10
    tokens = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))

    def third(columns: int) -> torch.Tensor:
        return subject.next_token_logits(tokens[:, :columns], torch.tensor([columns, 8, 5]))[2]

    alone = subject.next_token_logits(tokens[2:, :5], torch.tensor([5]))[0]
    torch.testing.assert_close(third(10), alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(third(11), alone, atol=1e-2)  # what would happen

    def row(split: str, start: int, n: int) -> str:
        prompt = " ".join(f"t{1 + start + i}" for i in range(n))
        wrong = [" t30", " t31", " t32"]
        fact = {"prompt": prompt, "answer": f" t{40 + start}", "distractors": wrong}
        return json.dumps(fact | {"split": split})

    lines = [row(split, i, n) for split in ("forget", "retain") for i, n in enumerate((4, 11, 10))]
    rows = tasks.examples(tasks.parse("\n".join(lines), "long"), subject, "forget")
    assert rows.length.tolist() == [4, 10]
    assert "more tokens than the model's context of 10" in rows.notes[0]


@pytest.mark.parametrize(
    ("template", "prefix"),
    [("t0 $A", (0,)), ("t0 $A t3", (0,)), ("$A t3", ()), ("t3 t0 $A", (3, 0)), ("$A", ())],
)
def test_the_prefix_depends_on_no_word(template: str, prefix: tuple[int, ...]) -> None:
    """Every word that is not t0 … t49 is t0 to this tokenizer."""
    ours = tokenizer()
    ours.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single=template, special_tokens=[("t0", 0), ("t3", 3)]
    )
    subject = dataclasses.replace(family("llama"), tokenizer=ours)
    assert subject.prefix == prefix
    assert subject.encode("t5 a", start=True) == [*prefix, 5, 0]
    assert subject.encode("a t5", start=True) == [*prefix, 0, 5] and not subject.begins("a t5")


@pytest.mark.parametrize("ids", [(1,), (3, 2)])
def test_a_text_that_begins_with_the_bos_is_not_given_it_again(ids: tuple[int, ...]) -> None:
    """As ``apply_chat_template`` tokenises what it writes; a BOS inside a text stays, too."""
    ours, names = tokenizer(), [f"t{i}" for i in ids]
    ours.add_special_tokens({"additional_special_tokens": names})  # found within a word, as <s> is
    ours.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single=f"{' '.join(names)} $A", special_tokens=list(zip(names, ids, strict=True))
    )
    bos, subject = "".join(names), dataclasses.replace(family("llama"), tokenizer=ours)
    assert subject.prefix == ids and subject.prefix_text == bos
    for text in ("t5 t6", f"{bos}t5 t6", f"{bos} t5 t6"):
        assert subject.encode(text, start=True) == [*ids, 5, 6]
        assert subject.continuation(text, " t7") == ([*ids, 5, 6], [7])
    assert subject.encode(f"t5 {bos}t6", start=True) == [*ids, 5, *ids, 6]
    assert subject.continuation("", f"{bos}t5") == ([*ids], [5])


def test_a_tokenizer_in_memory_is_taken_and_left_as_it_is() -> None:
    """TransformerLens would look for one with a BOS where it was loaded from, and add tokens."""
    ours = tokenizer()
    ours.bos_token = "t1"
    before = ours.backend_tokenizer.to_str()
    subject = subjects.wrap("mine", _llama(), ours)
    assert subject.tokenizer is ours and subject.tokenizer.eos_token is None
    assert ours.backend_tokenizer.to_str() == before


def test_a_config_that_transformer_lens_does_not_run_is_named() -> None:
    """It stops at a Pythia without biases with an assertion that says nothing."""
    config = GPTNeoXConfig(attention_bias=False, **SMALL, **SHAPE)
    with pytest.raises(BadInputError, match=r"a GPTNeoXForCausalLM .its config .*AssertionError"):
        subjects.wrap("mine", GPTNeoXForCausalLM(config), tokenizer())


def test_what_transformer_lens_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("rotary_dim")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", fail)
    with pytest.raises(MansuError, match=r"cannot run 'mine', a LlamaForCausalLM .*rotary_dim"):
        subjects.wrap("mine", _llama(), tokenizer())


def test_bars_of_transformers_are_off_only_while_it_loads() -> None:
    assert logging.is_progress_bar_enabled()
    with alone(), alone():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_loading_in_several_threads_spoils_neither_transformers_nor_a_model(
    tiny: Subject,
) -> None:
    """transformers patches its own class while it loads: without our lock that stays for good."""
    before = PreTrainedModel.__dict__["tie_weights"]
    names, made = [subjects.TINY, subjects.RETRAINED] * 2, list[Subject]()
    together = threading.Barrier(len(names))

    def load(name: str) -> None:
        together.wait()
        made.append(subjects.load(name))

    threads = [threading.Thread(target=load, args=[name]) for name in names]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert PreTrainedModel.__dict__["tie_weights"] is before
    retrained = subjects.load(subjects.RETRAINED).fingerprint
    right = {subjects.TINY: tiny.fingerprint, subjects.RETRAINED: retrained}
    assert sorted(s.name for s in made) == sorted(names)
    for subject in made:
        assert subject.fingerprint == right[subject.name]
        head, words = subject.plain.get_output_embeddings(), subject.plain.get_input_embeddings()
        assert head.weight is words.weight  # tied, as they were saved


def test_a_checkpoint_that_is_written_to_is_noticed(tmp_path: Path, tiny_task: tasks.Task) -> None:
    """Its pages are the weights: they would change under the results."""
    folder, other = tmp_path / "checkpoint", TINY_FOLDER.parent / "tiny-retrained"
    shutil.copytree(TINY_FOLDER, folder)

    def asked(subject: Subject) -> float:
        return measure(subject, tasks.examples(tiny_task, subject, "forget")).accuracy

    subject = subjects.load(str(folder))
    before = asked(subject)
    weights = (other / "model.safetensors").read_bytes()
    (tmp_path / "new").write_bytes(weights)
    (tmp_path / "new").rename(folder / "model.safetensors")  # another file: the old one is mapped
    assert asked(subject) == before
    again = subjects.load(str(folder))
    (folder / "model.safetensors").write_bytes(weights[::-1])
    with pytest.raises(MismatchError, match=r"model\.safetensors' was written to since"):
        asked(again)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", {"eos_token_id": [3, 10]}),
        ("tokenizer_config.json", {"unk_token": None}),
    ],
)
def test_what_ends_a_text_and_what_is_unknown_are_of_the_fingerprint(
    tmp_path: Path, tiny: Subject, file: str, change: dict[str, Any]
) -> None:
    shutil.copytree(TINY_FOLDER, tmp_path, dirs_exist_ok=True)
    assert subjects.load(str(tmp_path)).fingerprint == tiny.fingerprint
    path = tmp_path / file
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **change}))
    assert subjects.load(str(tmp_path)).fingerprint != tiny.fingerprint
