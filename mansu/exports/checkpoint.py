"""An edited model as a plain Hugging Face checkpoint, and in bitsandbytes NF4."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mansu import quant, subjects
from mansu.errors import MansuError
from mansu.files import new_folder
from mansu.subjects.alone import alone
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

CPU_ROWS = 32
"""bitsandbytes 0.50 repacks so many rows at a time where a processor has AVX512-BF16."""


def checkpoint(subject: Subject, edit: Edit, folder: str | Path) -> None:
    """Write the edited model as a plain Hugging Face checkpoint, in the subject's dtype.

    Safetensors, config, generation config and tokenizer: what
    ``transformers.AutoModelForCausalLM.from_pretrained(folder)`` loads. Whole or absent.

    Raises:
        MansuError: the folder is not empty, or the edit does not fit the subject.
    """
    with new_folder(Path(folder)) as new, edit.applied(subject), alone():
        model: Any = subject.model
        with torch.device("meta"):  # a skeleton: its weights are the subject's own
            plain = type(model)(copy.deepcopy(model.config))
        found = {name: p.data for name, p in subject.parameters.items()}
        plain.load_state_dict(found, strict=False, assign=True)  # tied weights are not in it
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(new)
        subject.tokenizer.save_pretrained(new)


def nf4_checkpoint(
    subject: Subject, edit: Edit, folder: str | Path, format: quant.Format = quant.NF4
) -> None:
    """Write the edited model as a bitsandbytes 4-bit checkpoint. Whole or absent.

    ``transformers`` itself quantises (``BitsAndBytesConfig``), so that the codes are those that
    a user gets with ``load_in_4bit``; computing is in the subject's dtype.

    Raises:
        MansuError: as ``checkpoint``; a format other than NF4 in blocks of 64; rows that are no
            whole number of blocks, which bitsandbytes 0.50 misreads on AVX512 processors; or a
            number of rows that is no multiple of 32, which it does not run with AVX512-BF16.
    """
    if format.kind != "nf4" or format.blocksize != 64:
        raise MansuError(f"transformers writes NF4 in blocks of 64, not {format}.")
    for name in subject.quantized_names:
        rows, columns = subjects.layout(subject, name).shape
        if columns % format.blocksize:
            raise MansuError(
                f"The rows of {name!r} have {columns} weights, which is no whole number of blocks "
                f"of {format.blocksize}, and bitsandbytes misreads such rows on some processors: "
                "export it without NF4."
            )
        if rows % CPU_ROWS:
            raise MansuError(
                f"{name!r} has {rows} rows, which is no multiple of {CPU_ROWS}, and bitsandbytes "
                "does not run such a weight on some processors: export it without NF4."
            )
    with new_folder(Path(folder)) as new, TemporaryDirectory(dir=new) as plain:
        checkpoint(subject, edit, plain)
        dtype = subject.dtype
        options = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=format.kind,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=format.double_quant,
        )
        with alone():
            model: Any = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=options, dtype=dtype
            )
            model.save_pretrained(new)
            subject.tokenizer.save_pretrained(new)
