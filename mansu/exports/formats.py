"""Export: an edited model as files that other tools read.

A plain Hugging Face checkpoint, the same in bitsandbytes NF4, one GGUF file, a model card that
carries the verdict, and the run's task for EleutherAI's lm-evaluation-harness. Nothing of it needs
MANSU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mansu import quant
from mansu.errors import MansuError
from mansu.exports.card import model_card, public_manifest
from mansu.exports.checkpoint import checkpoint, nf4_checkpoint
from mansu.exports.gguf_file import gguf_file
from mansu.exports.harness import lm_eval
from mansu.files import new_folder, slug
from mansu.job.runs import Run
from mansu.progress import OnStep, Step, silent
from mansu.report.repeat import public_subject
from mansu.subjects import shipped
from mansu.subjects.subject import Subject

FORMATS = ("hf", "nf4", "gguf", "lm-eval")


HARNESS = "lm_eval"  # the folder of the harness's files in an export


def write(
    run: Run,
    subject: Subject,
    method: str,
    folder: str | Path,
    formats: Iterable[str] = ("hf",),
    *,
    double_quant: bool = False,
    outtype: str = "f16",
    on_step: OnStep = silent,
) -> tuple[str, ...]:
    """Export a run's edit by ``method``: the formats asked for, and a model card for each model.

    A model lies in ``folder`` itself; of several the first does, and the others in ``folder/nf4``
    and ``folder/gguf``. The harness's files lie in ``folder/lm_eval``. All of it is there at the
    end, or nothing.

    Args:
        formats: of ``FORMATS``. double_quant: of the NF4 checkpoint. outtype: of the GGUF file, one
            of ``OUTTYPES``.

    Returns:
        What to tell the user: rows that the harness cannot score, a sentence each.

    Raises:
        MansuError: an unknown format or GGUF type, no such edit, a folder that is not empty, or
            what ``gguf_file`` refuses.
    """
    formats = tuple(dict.fromkeys(formats))
    if not formats or not set(formats) <= set(FORMATS):
        raise MansuError(f"Unknown export format: give one or more of {', '.join(FORMATS)}.")
    edit, notes = run.edit(method), ()
    with new_folder(Path(folder)) as new:
        if "hf" in formats:
            on_step(Step("export", 0, 10, method, "the checkpoint"))
            checkpoint(subject, edit, new)
            _document(run, subject, method, new)
        if "nf4" in formats:
            on_step(Step("export", 3, 10, method, "the NF4 checkpoint"))
            format = quant.Format(double_quant=double_quant)
            place = new / "nf4" if "hf" in formats else new
            nf4_checkpoint(subject, edit, place, format)
            _document(run, subject, method, place, format=format)
        if "gguf" in formats:
            on_step(Step("export", 6, 10, method, "the GGUF file"))
            place = new / "gguf" if {"hf", "nf4"} & set(formats) else new
            name = f"{slug(public_subject(run))}-{slug(method)}-{outtype}.gguf"
            gguf_file(subject, edit, place / name, outtype)
            _document(run, subject, method, place, gguf=name)
        if "lm-eval" in formats:
            on_step(Step("export", 9, 10, method, "the task for lm-evaluation-harness"))
            notes = lm_eval(run.task(), subject, new / HARNESS, seed=run.settings.seed)
    return notes


def _document(run: Run, subject: Subject, method: str, folder: Path, **how: Any) -> None:
    """Lay the model card, the manifest, the verdict and the subject's terms beside a model.

    Args:
        how: the model is stored, as ``model_card`` takes it.
    """
    card = model_card(run, subject, method, **how)
    (folder / "README.md").write_text(card, encoding="utf-8")
    shipped.copy_terms(subject.name, folder)
    (folder / "manifest.json").write_bytes(public_manifest(run))
    if run.has("verdict", method):
        shutil.copyfile(run.file("verdict", method), folder / "verdict.json")
