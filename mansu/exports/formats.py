"""Export: an edited model as files that other tools read.

A plain Hugging Face checkpoint, the same in bitsandbytes NF4, a model card that carries the
verdict, and the run's task for EleutherAI's lm-evaluation-harness. Nothing of it needs MANSU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mansu import quant
from mansu.errors import MansuError
from mansu.exports.card import model_card, public_manifest
from mansu.exports.checkpoint import checkpoint, nf4_checkpoint
from mansu.exports.harness import lm_eval
from mansu.files import new_folder
from mansu.job.runs import Run
from mansu.progress import OnStep, Step, silent
from mansu.subjects import shipped
from mansu.subjects.subject import Subject

FORMATS = ("hf", "nf4", "lm-eval")


HARNESS = "lm_eval"  # the folder of the harness's files in an export


def write(
    run: Run,
    subject: Subject,
    method: str,
    folder: str | Path,
    formats: Iterable[str] = ("hf",),
    *,
    double_quant: bool = False,
    on_step: OnStep = silent,
) -> tuple[str, ...]:
    """Export a run's edit by ``method``: the formats asked for, and a model card for each model.

    A model lies in ``folder`` itself; where both are asked for, NF4 in ``folder/nf4``. The
    harness's files lie in ``folder/lm_eval``. All of it is there at the end, or nothing.

    Args:
        formats: of ``FORMATS``. double_quant: of the NF4 checkpoint.

    Returns:
        What to tell the user: rows that the harness cannot score, a sentence each.

    Raises:
        MansuError: an unknown format, no such edit, or a folder that is not empty.
    """
    formats = tuple(dict.fromkeys(formats))
    if not formats or not set(formats) <= set(FORMATS):
        raise MansuError(f"Unknown export format: give one or more of {', '.join(FORMATS)}.")
    edit, notes = run.edit(method), ()
    with new_folder(Path(folder)) as new:
        if "hf" in formats:
            on_step(Step("export", 0, 10, method, "the checkpoint"))
            checkpoint(subject, edit, new)
            _document(run, subject, method, new, None)
        if "nf4" in formats:
            on_step(Step("export", 4, 10, method, "the NF4 checkpoint"))
            format = quant.Format(double_quant=double_quant)
            place = new / "nf4" if "hf" in formats else new
            nf4_checkpoint(subject, edit, place, format)
            _document(run, subject, method, place, format)
        if "lm-eval" in formats:
            on_step(Step("export", 9, 10, method, "the task for lm-evaluation-harness"))
            notes = lm_eval(run.task(), subject, new / HARNESS, seed=run.settings.seed)
    return notes


def _document(
    run: Run, subject: Subject, method: str, folder: Path, format: quant.Format | None
) -> None:
    """Lay the model card, the manifest, the verdict and the subject's terms beside a model."""
    (folder / "README.md").write_text(model_card(run, subject, method, format), encoding="utf-8")
    shipped.copy_terms(subject.name, folder)
    (folder / "manifest.json").write_bytes(public_manifest(run))
    if run.has("verdict", method):
        shutil.copyfile(run.file("verdict", method), folder / "verdict.json")
