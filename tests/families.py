"""Small random models of every family that attribution knows, built from configs, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, Pairs

VOCABULARY = 50
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2}
WIDE_HEADS: dict[str, Any] = GROUPED | {"head_dim": 8}  # 4 heads of 8 in a stream of 24
PADDED: dict[str, Any] = GROUPED | {"pad_token_id": 0}  # their own lies beyond this vocabulary
PARTLY_ROTARY: dict[str, Any] = SHAPE | {"rotary_pct": 0.5}


def _gpt2(n_layers: int) -> Any:
    shape: dict[str, Any] = {"n_embd": 24, "n_head": 4, "n_positions": 32, "n_layer": n_layers}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape))


BUILDERS: dict[str, Callable[[int], Any]] = {
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(num_hidden_layers=n, **GROUPED)),
    "mistral": lambda n: MistralForCausalLM(
        MistralConfig(num_hidden_layers=n, sliding_window=4, **GROUPED)
    ),
    "olmo2": lambda n: Olmo2ForCausalLM(Olmo2Config(num_hidden_layers=n, **PADDED)),
    "phi3": lambda n: Phi3ForCausalLM(Phi3Config(num_hidden_layers=n, sliding_window=4, **PADDED)),
    "qwen2": lambda n: Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=n, **GROUPED)),
    "qwen3": lambda n: Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=n, **WIDE_HEADS)),
    "gemma2": lambda n: Gemma2ForCausalLM(
        Gemma2Config(
            num_hidden_layers=n,
            query_pre_attn_scalar=8,
            sliding_window=4,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            **WIDE_HEADS,
        )
    ),
    "gemma3": lambda n: Gemma3ForCausalLM(
        Gemma3TextConfig(
            num_hidden_layers=n,
            query_pre_attn_scalar=8,
            sliding_window=4,
            layer_types=[f"{('sliding', 'full')[i % 2]}_attention" for i in range(n)],
            **WIDE_HEADS,
        )
    ),
    "gpt2": _gpt2,
    "pythia": lambda n: GPTNeoXForCausalLM(GPTNeoXConfig(num_hidden_layers=n, **PARTLY_ROTARY)),
}
FAMILIES = tuple(BUILDERS)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: ``t0`` … ``t49``."""
    words = {f"t{i}": i for i in range(VOCABULARY)}
    model = Tokenizer(WordLevel(words, unk_token="t0"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="t0", pad_token="t0")


TEXT = "the symbol for gold is Au, né 1234; iron 's"
"""What ``byte_pairs`` has learnt."""


def byte_pairs(
    *before: Any, alphabet: bool = True, said: Sequence[str] = (), size: int = 300
) -> PreTrainedTokenizerFast:
    """GPT-2's kind, with a chat template and one token that is added but not special.

    Args:
        alphabet: every byte has a token; else those of ``TEXT`` alone do.
        said: what it learns from, beside ``TEXT``. size: tokens that it has at most.
    """
    tokenizer = Tokenizer(BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size if alphabet else 100,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
    )
    tokenizer.train_from_iterator([*[TEXT] * 3, *said], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.add_tokens(["<think>"])
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def shaken(model: Any) -> Any:
    """The model, its norm scales and biases too not left at 0 or 1; no path is negligible."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.2
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def family(name: str, n_layers: int = 2, dtype: torch.dtype = torch.float32) -> Subject:
    """A random model of a family."""
    torch.manual_seed(7)
    return wrap(name, shaken(BUILDERS[name](n_layers)).to(dtype), tokenizer())


@cache
def wide(name: str) -> Subject:
    """A random model of a family whose rows are whole blocks, as those of real models are."""
    config = BUILDERS[name](1).config
    sizes = {"hidden_size": 128, "intermediate_size": 256, "n_embd": 128, "head_dim": 32}
    for key, value in sizes.items():
        if hasattr(config, key) and (name == "gpt2") == (key == "n_embd"):
            setattr(config, key, value)
    torch.manual_seed(0)
    model = type(BUILDERS[name](1))(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return wrap(name, model, tokenizer())


def random_pairs(n: int = 5, seed: int = 0, longest: int = 7) -> Pairs:
    """Pairs of unequal length; clean and corrupt differ in one or two tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, low: int = 1, high: int = VOCABULARY) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = draw(n, low=4, high=longest + 1)
    length[0] = longest
    clean = draw(n, longest)
    corrupt = clean.clone()
    corrupt[:, 1] = (clean[:, 1] + draw(n, low=1, high=20)) % VOCABULARY
    corrupt[::2, 3] = (clean[::2, 3] + 3) % VOCABULARY
    pad = torch.arange(longest) >= length[:, None]
    answer = draw(n)
    return Pairs(
        clean.masked_fill(pad, 0),
        corrupt.masked_fill(pad, 0),
        length,
        answer,
        (answer + 5) % VOCABULARY,
        tuple(range(n)),
    )


def known_examples(subject: Subject, n: int = 8, seed: int = 0) -> Examples:
    """Random prompts whose answer is what the model says, beside three that it does not."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (n, 6), generator=generator)
    length = torch.randint(3, 7, (n,), generator=generator)
    tokens[torch.arange(6) >= length[:, None]] = 0
    with torch.no_grad():
        order = subject.next_token_logits(tokens, length).argsort(-1, descending=True)
    candidates = torch.zeros(n, VOCABULARY, dtype=torch.bool)
    candidates.scatter_(1, order[:, :4], True)
    return Examples(
        tokens,
        length,
        order[:, 0],
        order[:, 1:4],
        candidates,
        torch.arange(VOCABULARY),
        tuple(range(n)),
        ("all",) * n,
    )
