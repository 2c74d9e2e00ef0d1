"""What is checked of a model before it becomes a subject: that what runs is the checkpoint."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.subjects.blocks import Block
from mansu.subjects.subject import Subject, context_of
from mansu.subjects.weights import running

LENGTHS = (12, 7, 1)
"""Tokens of the rows that both models are given, besides one beyond a sliding window."""

LONGEST_WINDOW = 512
"""A window wider than this is not tried: the row would take longer than the load."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""By how much logits may differ, as a share of the largest: in 16 bits some twenty roundings."""


@dataclass(frozen=True)
class Plain:
    """What the model says before the bridge takes it over.

    Attributes:
        rows: token ids of each row. logits: after each row's last token, ``[rows, vocabulary]``.
    """

    rows: tuple[Tensor, ...]
    logits: Tensor


def check_weights(name: str, model: Any) -> None:
    """Refuse weights that an edit cannot be made of.

    Raises:
        BadInputError: a weight is quantised already, or is not finite.
    """
    for key, parameter in model.named_parameters():
        if parameter.dtype not in TOLERANCE:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise BadInputError(f"{already_quantised(name)} ({key} is {kind}).")
        if not bool(torch.isfinite(parameter).all()):
            raise BadInputError(
                f"The weight {key!r} of {name!r} is not finite (NaN or infinite): give a whole "
                "checkpoint."
            )


def check_attention(subject: Subject) -> None:
    """Refuse an attention whose writes are not the sum of its heads'.

    A norm after the attention scales what the heads write and the bias by the same r, which depends
    on all of them: the bias would change with the heads and belong to none.

    Raises:
        BadInputError: attention outputs have a bias and a norm after it.
    """
    if Block(subject, 0).has_post_norms and running(subject, 0, "o").bias is not None:
        raise BadInputError(
            f"The attention of {subject.name!r} adds a bias before its norm (attention_bias of its "
            f"config), which no head of a {type(subject.model).__name__} accounts for: give a "
            "model without that bias."
        )


def already_quantised(name: str) -> str:
    """The start of a sentence, without its full stop."""
    return (
        f"{name!r} is quantised already, and only full-precision weights can be edited: give the "
        "checkpoint that it was made of"
    )


@torch.no_grad()
def plain_logits(model: Any) -> Plain:
    """The plain model on random rows, one at a time and without padding."""
    embedding = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()
    longest = context_of(config) or LONGEST_WINDOW * 2
    lengths = [min(n, longest) for n in LENGTHS]
    window = getattr(config, "sliding_window", None) or 0
    if max(lengths) <= window <= min(LONGEST_WINDOW, longest - 8):
        lengths.append(window + 8)
    rows = tuple(torch.randint(len(embedding), (n,), generator=generator) for n in lengths)
    last: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        last["logits_to_keep"] = 1  # of a long row, all would be a gigabyte
    said = [model(input_ids=r[None].to(embedding.device), **last).logits[0, -1] for r in rows]
    return Plain(rows, torch.stack(said))


@torch.no_grad()
def check_logits(subject: Subject, plain: Plain) -> None:
    """Refuse a subject that does not say what the plain model said, with hooks and without.

    Raises:
        BadInputError: its logits differ, or are not finite.
    """
    if not bool(torch.isfinite(plain.logits).all()):
        raise BadInputError(
            f"The logits of {subject.name!r} are not finite (NaN or infinite): its weights are "
            "broken or too large for their number format."
        )
    for rows in (range(len(LENGTHS)), range(len(LENGTHS), len(plain.rows))):
        if not rows:
            continue
        length = torch.tensor([len(plain.rows[i]) for i in rows])
        tokens = torch.nn.utils.rnn.pad_sequence([plain.rows[i] for i in rows], batch_first=True)
        want = plain.logits[list(rows)].float()
        pads = min(3, (subject.context or 1 << 30) - tokens.shape[1])
        tokens = torch.nn.functional.pad(tokens, (0, pads))
        largest = max(
            float((subject.next_token_logits(tokens, length, hooked=hooked) - want).abs().max())
            for hooked in (False, True)
        )
        if not largest <= TOLERANCE[plain.logits.dtype] * float(want.abs().max()):
            raise BadInputError(
                f"What MANSU runs of {subject.name!r} is not its model "
                f"{type(subject.model).__name__}: their logits differ by up to {largest:.2g}, so "
                "something of it is not supported; give a model of another family."
            )
