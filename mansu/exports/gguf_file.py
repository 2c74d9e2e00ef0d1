"""An edited model as one GGUF file: what llama.cpp, and what is made of it, runs.

Names and keys are those of the library ``gguf``. The file is read back by transformers, and a model
of which that does not give the same settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from torch import Tensor
from transformers import AutoConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from mansu import quant
from mansu.errors import BadInputError
from mansu.files import new_folder
from mansu.quant.formats import GGUF_BLOCK
from mansu.report.repeat import public
from mansu.subjects.alone import alone
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

OUTTYPES: Mapping[str, gguf.LlamaFileType] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    **{str(f).lower(): gguf.LlamaFileType[f"MOSTLY_{f}"] for f in quant.GGUF},
}
"""In what the matrices are stored; norms and biases are float32 in each."""


@dataclass(frozen=True)
class _Family:
    """How a family's weights stand in GGUF.

    Attributes:
        name: what GGUF calls the architecture.
        interleaved: llama.cpp rotates neighbouring rows of q and k, not the two halves of a head.
        shifted: norms are stored as what they multiply by, 1 + weight.
    """

    name: str
    interleaved: bool = False
    shifted: bool = False


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", interleaved=True),
    "MistralForCausalLM": _Family("llama", interleaved=True),
    "Qwen2ForCausalLM": _Family("qwen2"),
    "Qwen3ForCausalLM": _Family("qwen3"),
    "Gemma2ForCausalLM": _Family("gemma2", shifted=True),
    "Gemma3ForCausalLM": _Family("gemma3", shifted=True),
}


def gguf_file(subject: Subject, edit: Edit, path: str | Path, outtype: str = "f16") -> None:
    """Write the edited model and its tokenizer as one GGUF file, in a new folder. Whole or absent.

    A matrix in a GGUF format is what ``quant.quantized`` runs; the output head, and embeddings that
    are it, are then in Q8_0, as llama.cpp has them. The model is held in memory once, a matrix of
    the file at a time beside it.

    Args:
        path: the file; its folder must be new or empty.
        outtype: one of ``OUTTYPES``.

    Raises:
        BadInputError: another outtype, a family or a tokenizer that GGUF has no names for, a
            setting of the model that is not read back, weights that are too large for the outtype,
            or rows that are no whole number of blocks.
        MansuError: the folder is not empty, or the edit does not fit the subject.
    """
    path = Path(path)
    if outtype not in OUTTYPES:
        raise BadInputError(f"Unknown GGUF type {outtype!r}: give one of {', '.join(OUTTYPES)}.")
    family = _FAMILIES.get(type(subject.model).__name__)
    if family is None:
        raise BadInputError(
            f"MANSU writes no GGUF of a {type(subject.model).__name__}: export a checkpoint "
            "(--format hf), which llama.cpp's convert_hf_to_gguf.py reads."
        )
    how = _stored(subject, outtype)
    names = _names(subject, family)
    with new_folder(path.parent) as new, edit.applied(subject):
        _refuse_overflow(subject, family, how)
        writer = gguf.GGUFWriter(new / path.name, family.name)
        _say_model(writer, subject, outtype)
        _say_tokenizer(writer, subject)
        for name, kind in how.items():
            shape = tuple(subject.parameters[name].shape)
            bits = {Stored.F32: np.float32, Stored.F16: np.float16}.get(kind, np.uint8)
            if bits is np.uint8:
                shape = gguf.quant_shape_to_byte_shape(shape, kind)
            size = int(np.prod(shape)) * np.dtype(bits).itemsize
            raw = kind if bits is np.uint8 else None
            writer.add_tensor_info(names[name], shape, np.dtype(bits), size, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, kind in how.items():
            weight = _laid_out(subject, family, name, subject.parameters[name].data)
            writer.write_tensor_data(_data(weight, kind))
        writer.close()
        _refuse_unsaid(subject, new / path.name)


def _stored(subject: Subject, outtype: str) -> dict[str, Stored]:
    """How each parameter is stored, by name, the embeddings first as files have them."""
    if outtype in ("f32", "f16"):
        low = dict.fromkeys(subject.parameters, Stored[outtype.upper()])
    else:
        format = next(f for f in quant.GGUF if str(f).lower() == outtype)
        low = {name: Stored[f.kind] for name, f in quant.stored(subject, format).items()}
    return {
        name: low.get(name, Stored.F32) if parameter.ndim > 1 else Stored.F32
        for name, parameter in subject.parameters.items()
    }


def _names(subject: Subject, family: _Family) -> dict[str, str]:
    """GGUF's name of each parameter."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[family.name], subject.config.num_hidden_layers)
    found = {n: table.get_name(n, (".weight", ".bias")) for n in subject.parameters}
    for name, theirs in found.items():
        if theirs is None:
            raise BadInputError(
                f"GGUF has no name for {name!r} of {subject.name!r}: export a checkpoint instead."
            )
    return {name: str(theirs) for name, theirs in found.items()}


def _laid_out(subject: Subject, family: _Family, name: str, weight: Tensor) -> Tensor:
    """A parameter as llama.cpp reads it."""
    weight = weight.detach().float().cpu()
    if family.shifted and "norm" in name:
        return weight + 1
    part = name.split(".")[-2]
    if family.interleaved and part in ("q_proj", "k_proj"):
        config = subject.config
        heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)
    return weight


def _data(weight: Tensor, kind: Stored) -> np.ndarray:
    if kind == Stored.F32:
        return weight.contiguous().numpy()
    if kind == Stored.F16:
        return weight.to(torch.float16).contiguous().numpy()
    return quant.packed(weight, quant.Format(kind.name, GGUF_BLOCK))  # type: ignore[arg-type]


def _refuse_overflow(subject: Subject, family: _Family, how: Mapping[str, Stored]) -> None:
    """Refuse weights, or scales of blocks, that a file would hold as infinite.

    Raises:
        BadInputError: a parameter has some.
    """
    for name, kind in how.items():
        weight = _laid_out(subject, family, name, subject.parameters[name].data)
        largest = float(weight.abs().max())
        if kind == Stored.F32 or largest <= torch.finfo(torch.float16).max:
            continue
        with np.errstate(all="ignore"):
            held = gguf.dequantize(_data(weight, kind), kind)
        if not np.isfinite(held).all():
            raise BadInputError(
                f"{name!r} of {subject.name!r} has a weight of size {largest:g}, which is infinite "
                f"in {kind.name}: give another outtype, such as f32."
            )


def _say_model(writer: gguf.GGUFWriter, subject: Subject, outtype: str) -> None:
    config = subject.config
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)  # Gemma 3's local layers have 10,000, as in llama.cpp
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(public(subject.name))
    writer.add_file_type(OUTTYPES[outtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(_rows(subject))
    for say, name in (
        (writer.add_sliding_window, "sliding_window"),
        (writer.add_attn_logit_softcapping, "attn_logit_softcapping"),
        (writer.add_final_logit_softcapping, "final_logit_softcapping"),
    ):
        if (value := getattr(config, name, None)) is not None:
            say(value)


def _rows(subject: Subject) -> int:
    """Tokens that the embeddings have a row for."""
    model: Any = subject.model
    return len(model.get_input_embeddings().weight)


def _say_tokenizer(writer: gguf.GGUFWriter, subject: Subject) -> None:
    """Byte pairs as GPT-2 has them, or as SentencePiece with bytes for what it does not know.

    Raises:
        BadInputError: it is another one.
    """
    tokenizer: Any = subject.tokenizer
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    spec = json.loads(fast.to_str()) if fast is not None else {}
    model = spec.get("model", {})
    if model.get("type") != "BPE":
        raise BadInputError(
            f"GGUF has no place for the tokenizer of {subject.name!r} "
            f"({model.get('type', 'a slow one')}): llama.cpp reads byte pairs (BPE) only."
        )
    pieces = bool(model.get("byte_fallback"))
    n, vocab = _rows(subject), dict(model["vocab"])
    added = {token["content"]: token for token in spec["added_tokens"]}
    vocab |= {content: token["id"] for content, token in added.items()}
    last = max(vocab, key=lambda text: vocab[text])
    if vocab[last] >= n:
        raise BadInputError(
            f"The tokenizer of {subject.name!r} gives {last!r:.40} the number {vocab[last]}, and "
            f"the model has {n} embeddings, one a number from 0: give the tokenizer that the model "
            "was made with."
        )
    tokens, types = [f"[PAD{i}]" for i in range(n)], [gguf.TokenType.UNUSED] * n
    for text, i in vocab.items():
        kind = gguf.TokenType.NORMAL
        if text in added:
            special = added[text]["special"]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
            text = text.replace("▁", " ") if pieces and not special else text
        elif pieces and text == f"<0x{text[3:5]}>":
            kind = gguf.TokenType.BYTE
        tokens[i], types[i] = text, kind
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _splitting(spec, subject.name))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces:  # the better of two merges is that of the higher score: the earlier one here
        rank = {"".join(m): -float(i) for i, m in reversed(list(enumerate(merges)))}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(_prefixes(spec))
    else:
        writer.add_token_merges([" ".join(m) for m in merges])
    for say, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            say(token)
    if subject.prefix not in ((), (tokenizer.bos_token_id,)):
        raise BadInputError(
            f"The tokenizer of {subject.name!r} puts more than its BOS before a text, which GGUF "
            "cannot say: export a checkpoint instead."
        )
    writer.add_add_bos_token(bool(subject.prefix))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _parts(spec: Mapping[str, Any], what: str, several: str) -> list[dict[str, Any]]:
    """A tokenizer's normalizer or pre-tokenizer as the steps that it takes."""
    found = spec[what] or {}
    return found.get(several, [found])


def _prefixes(spec: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in (
            *_parts(spec, "normalizer", "normalizers"),
            *_parts(spec, "pre_tokenizer", "pretokenizers"),
        )
    )


def _splitting(spec: Mapping[str, Any], name: str) -> str:
    """llama.cpp's name of how a text is cut before its bytes are paired.

    Raises:
        BadInputError: it has none.
    """
    parts = _parts(spec, "pre_tokenizer", "pretokenizers")
    kinds = [part.get("type") for part in parts]
    own = parts[-1].get("use_regex")
    if kinds == ["ByteLevel"] and own:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own and parts[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not own:
        for known, regex in GGUF_PRE_TOKENIZER_SPLITS.items():
            if parts[0]["pattern"].get("Regex") == regex:
                return known
    raise BadInputError(
        f"The tokenizer of {name!r} cuts a text in a way that llama.cpp has no name for: export a "
        "checkpoint instead."
    )


_COMPUTES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "attention_bias",
    "mlp_bias", "rms_norm_eps", "rope_parameters", "layer_types", "sliding_window",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "tie_word_embeddings", "vocab_size", "max_position_embeddings", "use_bidirectional_attention",
)  # fmt: skip
"""Settings of a model that its logits depend on."""


def _refuse_unsaid(subject: Subject, path: Path) -> None:
    """Read the settings back: a file is refused that transformers does not read as the model is.

    GGUF may have no key for one, we may not write it, or transformers may not read it.

    Raises:
        BadInputError: a setting comes back as another one.
    """
    with alone():
        found: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for name in _COMPUTES:
        had, has = (getattr(config, name, None) or None for config in (subject.config, found))
        if not _alike(had, has):
            raise BadInputError(
                f"The GGUF file of {subject.name!r} cannot be checked: transformers reads {name} "
                f"of it back as {has!r:.60}, not {had!r:.60}. Export a checkpoint instead."
            )


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers as float32 holds them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, float) or isinstance(other, float):
        if not (isinstance(one, int | float) and isinstance(other, int | float)):
            return False
        return bool(np.float32(one) == np.float32(other))
    return one == other
