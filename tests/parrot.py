"""A model that says what it is told to, so that its scores can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject

END, UNKNOWN, BOS = "<end>", "<unknown>", "<bos>"


def parrot(after: Mapping[str, str], *, context: int = 256, bos: bool = False) -> Subject:
    """A Llama whose next token hangs on the last one alone.

    Its embeddings are the axes, attention and MLP add nothing, and the head is the table ``after``.

    Args:
        after: token → the one that follows. A word has the space before it in its token, as has a
            space that no word follows; after any other comes ``END``.
        bos: the tokenizer puts a BOS before every text.
    """
    tokens = list(dict.fromkeys((END, UNKNOWN, BOS, *after, *after.values())))
    number = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(WordLevel(number, unk_token=UNKNOWN))
    backend.pre_tokenizer = Split(Regex(r" ?\S+|\n+| "), "isolated")  # type: ignore[assignment]
    backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    if bos:
        backend.post_processor = TemplateProcessing(  # type: ignore[assignment]
            single=f"{BOS} $A", special_tokens=[(BOS, number[BOS])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=UNKNOWN, eos_token=END, bos_token=BOS
    )
    size = len(tokens) + len(tokens) % 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=size,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=context,
            bos_token_id=number[BOS],
            eos_token_id=number[END],
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokens), size))
        model.lm_head.weight.zero_()
        for token in tokens:
            model.lm_head.weight[number[after.get(token, END)], number[token]] = 1
    return wrap("parrot", model, tokenizer)
