"""GGUF files, read back by plain transformers: weights, tokenizer, settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TEXT, byte_pairs, family
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from app import words
from mansu import quant
from mansu.errors import BadInputError, MansuError
from mansu.exports.gguf_file import OUTTYPES, gguf_file
from mansu.subjects.edit import Edit
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def pieces() -> PreTrainedTokenizerFast:
    """Gemma's kind: SentencePiece as byte pairs, bytes for what is unknown, BOS before a text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator([TEXT] * 3, BpeTrainer(vocab_size=60, special_tokens=special))
    learnt = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda x: x[1])][4:]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *learnt]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [
        (t[:i], t[i:]) for t in learnt for i in range(1, len(t)) if {t[:i], t[i:]} <= {*vocab}
    ]
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


BUILDERS: dict[str, Callable[[int], Any]] = {
    "llama": lambda n: LlamaForCausalLM(
        LlamaConfig(vocab_size=n, num_hidden_layers=2, tie_word_embeddings=True, **SHAPE)
    ),
    "mistral": lambda n: MistralForCausalLM(
        MistralConfig(vocab_size=n, num_hidden_layers=2, sliding_window=None, **SHAPE)
    ),
    "qwen2": lambda n: Qwen2ForCausalLM(Qwen2Config(vocab_size=n, num_hidden_layers=2, **SHAPE)),
    "qwen3": lambda n: Qwen3ForCausalLM(
        Qwen3Config(vocab_size=n, num_hidden_layers=2, head_dim=128, **SHAPE)
    ),
    "gemma2": lambda n: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=n, num_hidden_layers=2, head_dim=256, sliding_window=4, **SHAPE)
    ),
    "gemma3": lambda n: Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=n,
            num_hidden_layers=6,
            head_dim=256,
            sliding_window=4,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            **SHAPE,
        )
    ),
}


@cache
def made(name: str) -> tuple[Subject, Edit]:
    """A random model of a family, three rows larger than its vocabulary, and an edit of it."""
    tokenizer = pieces() if name.startswith("gemma") else byte_pairs()
    torch.manual_seed(0)
    model = BUILDERS[name](len(tokenizer) + 3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    subject = wrap(f"a {name}", model, tokenizer)
    after = {
        n: torch.where(torch.rand(p.shape) < 0.1, p + 0.1, p) for n, p in subject.parameters.items()
    }
    return subject, Edit.between(subject.parameters, after, "random")


def read_back(path: Path) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.mark.parametrize("outtype", ["f32", "q4_1"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_file_is_the_edited_model(name: str, outtype: str, tmp_path: Path) -> None:
    subject, edit = made(name)
    path = tmp_path / "out" / "model.gguf"
    gguf_file(subject, edit, path, outtype)
    model = read_back(path)
    ids = torch.tensor([subject.encode(TEXT)])
    format = next((f for f in quant.GGUF if str(f).lower() == outtype), None)
    with torch.no_grad(), edit.applied(subject):
        with quant.quantized(subject, format=format) if format else nullcontext():
            expected = subject.model(ids).logits
        plain = subject.model(ids).logits
    found = model(ids).logits
    # Gemma's norms are stored as 1 + weight, which rounds; all else is there bit for bit.
    close = 2e-5 if name.startswith("gemma") else 2e-6
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    if format:
        assert not torch.allclose(found, plain, atol=1e-3)
    assert not torch.allclose(plain, subject.model(ids).logits, atol=1e-2)  # it is an edit
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_its_tokenizer_is_the_subject_s(name: str, tmp_path: Path) -> None:
    subject, edit = made(name)
    path = tmp_path / "out" / "model.gguf"
    gguf_file(subject, edit, path, "q8_0")
    found: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (TEXT, "gold<think> gold", "日本 ", "  the  iron\n\n"):
        assert found(text)["input_ids"] == subject.tokenizer(text)["input_ids"], text
    assert found.eos_token_id == subject.tokenizer.eos_token_id
    assert found.chat_template == subject.tokenizer.chat_template
    fields = GGUFReader(path).fields
    kinds = [int(v) for v in fields["tokenizer.ggml.token_type"].contents()]
    assert kinds[-3:] == [5, 5, 5] and kinds[0] == 3  # rows without a token; a special one
    assert str(tmp_path).encode() not in path.read_bytes()


def test_llama_cpp_knows_how_texts_are_cut(tmp_path: Path) -> None:
    """By the names that its own converter gives SmolLM2, Qwen 2 and Llama 3."""
    qwen, llama = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{many}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for many in ("", "{1,3}")
    )
    subject, edit = made("llama")
    for i, (before, regex, wanted) in enumerate(
        (
            ((), True, "gpt-2"),
            ((pre_tokenizers.Digits(individual_digits=True),), True, "smollm"),
            ((qwen,), False, "qwen2"),
            ((llama,), False, "llama3"),
            ((pre_tokenizers.Digits(individual_digits=False),), True, None),
            ((r"\p{L}+",), False, None),
        )
    ):
        cut = [
            pre_tokenizers.Split(Regex(b), "isolated") if isinstance(b, str) else b for b in before
        ]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        tokenizer: Any = byte_pairs()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, last])
        other = replace(subject, tokenizer=tokenizer)
        path = tmp_path / str(i) / "model.gguf"
        if wanted is None:
            with pytest.raises(BadInputError, match="no name for"):
                gguf_file(other, edit, path)
            assert not path.parent.exists()
        else:
            gguf_file(other, edit, path)
            assert GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == wanted


def test_what_gguf_cannot_say_is_refused_and_leaves_nothing(tiny: Subject, tmp_path: Path) -> None:
    edit = Edit.between(tiny.parameters, {}, "none")
    path = tmp_path / "out" / "model.gguf"
    with pytest.raises(BadInputError, match=r"WordLevel.*byte pairs"):
        gguf_file(tiny, edit, path)
    gpt2 = family("gpt2")
    with pytest.raises(BadInputError, match="no GGUF of a GPT2LMHeadModel"):
        gguf_file(gpt2, Edit.between(gpt2.parameters, {}, "none"), path)
    subject, edit = made("llama")
    with pytest.raises(BadInputError, match=f"one of {', '.join(OUTTYPES)}"):
        gguf_file(subject, edit, path, "q2_k")
    config = subject.config
    had = config.rope_parameters
    config.rope_parameters = {**had, "rope_type": "linear", "factor": 2.0}
    try:
        with pytest.raises(BadInputError, match=r"reads rope_parameters of it back as .*, not "):
            gguf_file(subject, edit, path)
    finally:
        config.rope_parameters = had
    assert not path.parent.exists() and not list(tmp_path.iterdir())
    path.parent.mkdir()
    (path.parent / "mine.txt").write_text("mine")
    with pytest.raises(MansuError, match="not an empty folder"):
        gguf_file(subject, edit, path)


def test_weights_that_a_type_holds_as_infinite_are_refused(tmp_path: Path) -> None:
    subject, _ = made("llama")
    for name, size, outtype, refused in (
        ("model.layers.0.mlp.up_proj.weight", 65_504.0, "f16", False),
        ("model.layers.0.mlp.up_proj.weight", 1e6, "f16", True),
        ("model.layers.0.mlp.up_proj.weight", 1e6, "f32", False),
        ("model.layers.1.input_layernorm.weight", 1e6, "f16", False),  # in float32 in each
        ("model.layers.1.self_attn.k_proj.weight", -1e6, "q4_0", True),
        ("model.layers.1.self_attn.k_proj.weight", -1e6, "q8_0", False),  # its scale is 1e6 / 127
        ("model.embed_tokens.weight", 1e7, "q8_0", True),
    ):
        edit = Edit({name: (torch.tensor([5]), torch.tensor([size]))}, "large")
        path = tmp_path / f"{name}-{size}-{outtype}" / "model.gguf"
        if refused:
            with pytest.raises(BadInputError, match=f"{name}.* a weight of size .* as f32") as told:
                gguf_file(subject, edit, path, outtype)
            assert "\n" not in str(told.value) and not path.parent.exists()
        else:
            gguf_file(subject, edit, path, outtype)
            assert all(bool(p.isfinite().all()) for p in read_back(path).parameters())


def test_a_token_that_the_model_has_no_embedding_for_is_one_sentence(tmp_path: Path) -> None:
    subject, edit = made("llama")
    tokenizer: Any = byte_pairs()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(4)])
    n = len(subject.parameters["model.embed_tokens.weight"])
    path = tmp_path / "out" / "model.gguf"
    with pytest.raises(BadInputError, match=f"'<extra 3>' the number {n}, and the model has {n} "):
        gguf_file(replace(subject, tokenizer=tokenizer), edit, path)
    assert not path.parent.exists()


def test_the_app_has_words_for_every_type() -> None:
    assert words.OUTTYPES.keys() == OUTTYPES.keys()
