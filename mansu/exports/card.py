"""The model card of an exported model, with its verdict."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from huggingface_hub import ModelCardData

from mansu import methods, quant
from mansu.job.runs import Run
from mansu.measure.scores import Measurement
from mansu.report import rows
from mansu.report.repeat import LIMITS, public, public_subject, repeat_command
from mansu.show.numbers import percent
from mansu.subjects.subject import Subject


def model_card(
    run: Run,
    subject: Subject,
    method: str,
    format: quant.Format | None = None,
    *,
    gguf: str | None = None,
) -> str:
    """The README.md of an exported model: Markdown under the hub's YAML front matter.

    Args:
        format: of a checkpoint's weights; None for full precision.
        gguf: name of the file beside it, where the model is one GGUF file.

    Raises:
        MansuError: the run has no edit by this method.
    """
    edit = run.edit(method)
    task = run.about
    by = methods.named(run.method_of(method))
    about = {key: public(str(value)) for key, value in subject.provenance.items()}
    name = public(subject.name)
    base = about.get("model") or about.get("source", "").removeprefix("hub: ")
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    licence = about.get("licence")
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=("quantized" if format or gguf else "finetune") if on_hub else None,
        license=licence.lower() if licence else None,
        library_name="gguf" if gguf else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "mansu", *(["nf4", "bitsandbytes"] if format else [])],
    )
    outtype = _outtype(gguf)
    stored = "bitsandbytes NF4" if format else str(subject.dtype)
    if format is not None and format.double_quant:
        stored += " with double quantization"
    if gguf:
        stored = f"GGUF {outtype}: the matrices, norms and biases in F32" + (
            f"; the output head in {quant.HEAD}" if outtype.startswith("Q") else ""
        )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base if on_hub else name}, edited to forget “{task['title']}”",
        f"An edit of `{name}` by {by.title} (`{method}`), made and measured with "
        f"MANSU, a workbench for machine unlearning. {by.about} The task: "
        f"{task['description'] or task['title']} {edit.n_moved:,} of {subject.n_parameters:,} "
        f"parameters were moved ({percent(edit.fraction(subject), 3)}). These weights are "
        f"{stored.removeprefix('torch.')}.",
        "## Verdict\n\n" + _verdict_section(run, method),
        "## Accuracy\n\n" + _accuracy_section(run, method, format, outtype),
        "## Limits\n\n" + _limits(format, outtype),
        "## Base model and licence\n\n"
        + "\n".join(f"- {key}: {value}" for key, value in {"name": name, **about}.items())
        + ("" if licence else "\n- licence: unknown to MANSU; that of the base model holds"),
        "## How to repeat it\n\n" + _repeat_section(run, method),
        "## How to load it\n\n" + _loading(gguf),
    ]
    return "\n\n".join(sections) + "\n"


def _outtype(gguf: str | None) -> str:
    """In what a GGUF file's matrices are stored, by its name: ``Q4_0``; empty of no file."""
    return Path(gguf).stem.rpartition("-")[2].upper() if gguf else ""


def _loading(gguf: str | None) -> str:
    where = f'FOLDER, gguf_file="{gguf}"' if gguf else "FOLDER"
    lines = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})"
    )
    found = f"```python\n{lines}\n```"
    return f"```\nllama-cli -m {gguf}\n```\n\n{found}" if gguf else found


def public_manifest(run: Run) -> bytes:
    """The run's manifest as it leaves this machine: with no path in it."""
    if public_subject(run) == run.subject:
        return run.manifest_file.read_bytes()
    return json.dumps({**run.manifest, "subject": public_subject(run)}, indent=1).encode()


def _verdict_section(run: Run, method: str) -> str:
    if not run.has("verdict", method):
        return "**Not judged.** No verdict was made on this edit, so nothing is claimed about it."
    verdict = run.verdict(method)
    table = verdict.table()
    return (
        f"{table.caption.capitalize()}.\n\n{table.markdown()}\n\nEach property is shown by the "
        "check that decides it. Passed: the whole 95 % interval lies on the right side of the "
        "threshold; undecided: it reaches across. `verdict.json` has every check."
    )


def _accuracy_section(run: Run, method: str, format: quant.Format | None, outtype: str) -> str:
    measured: dict[str, Measurement] = {}
    for name, kind in (
        ("unedited", "base"),
        ("this edit", "full"),
        ("unedited, NF4", "base_nf4"),
        ("this edit, NF4", "nf4"),
    ):
        if run.has(kind, method):
            measured[name] = run.read(kind, method)
    if "this edit" not in measured:
        return "**Not measured.**"
    note = "4-way multiple choice over the answer's first token; chance is 25 %."
    if outtype.startswith("Q"):
        found = run.by_format(method) if run.has("by_format", method) else {}
        if outtype in found:
            measured[f"this edit, {outtype}"] = found[outtype].measured
        else:
            note += f" It was not measured in {outtype}: `mansu formats` does that."
    if format is not None and format.double_quant:
        note += " NF4 was measured without double quantization, which these weights have."
    return f"{rows.accuracies(measured).markdown()}\n\n{note}"


def _limits(format: quant.Format | None, outtype: str) -> str:
    limits = list(LIMITS)
    if outtype:
        limits.append(
            "llama.cpp computes with activations in 8 bits where the weights are in few; the "
            "accuracies were measured with the same weights and activations in full."
        )
    if format is not None:
        limits.append(
            "On processors with AVX512-BF16 bitsandbytes computes in bfloat16 whatever the config "
            "says; the accuracies were measured on the same codes in the base model's precision."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _repeat_section(run: Run, method: str) -> str:
    manifest = public_manifest(run)
    told = run.manifest
    used = {"Python": told["python"], **told["packages"]}
    if told.get("mansu"):  # an older run does not say which MANSU made it
        used = {"MANSU": told["mansu"], **used}
    versions = ", ".join(f"{n} {v}" for n, v in used.items())
    return (
        f"```\n{repeat_command(run, method, subject=public_subject(run))}\n```\n\n"
        f"- {versions}\n"
        f"- task `{run.about['name']}`, digest `{run.about['digest']}`\n"
        f"- `manifest.json`, sha256 `{hashlib.sha256(manifest).hexdigest()}`\n"
        f"- the edit, sha256 `{run.digest(method)}`"
    )
