"""Export: an edited model as files that other tools read.

A plain Hugging Face checkpoint, the same in bitsandbytes NF4, a model card that carries the
verdict, and the run's task for EleutherAI's lm-evaluation-harness. Nothing of it needs MANSU.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mansu import __version__, methods, nf4, tasks
from mansu.edit import Edit
from mansu.errors import MansuError
from mansu.evaluate import EVALUATED, Measurement
from mansu.files import new_folder
from mansu.methods import Progress, silent
from mansu.runs import Run
from mansu.subjects import Subject
from mansu.verdict import NAMES, Property

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
    progress: Progress = silent,
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
            progress(0.0, "writing the checkpoint")
            checkpoint(subject, edit, new)
            _document(run, subject, method, new, None)
        if "nf4" in formats:
            progress(0.4, "quantising and writing the NF4 checkpoint")
            format = nf4.Format(double_quant=double_quant)
            place = new / "nf4" if "hf" in formats else new
            nf4_checkpoint(subject, edit, place, format)
            _document(run, subject, method, place, format)
        if "lm-eval" in formats:
            progress(0.9, "writing the task for lm-evaluation-harness")
            notes = lm_eval(run.task(), subject, new / HARNESS, seed=run.settings["seed"])
    return notes


def weights(subject: Subject) -> dict[str, Tensor]:
    """The weights as they are now, by the names of a plain checkpoint; tied ones once.

    GPT-NeoX's ``query_key_value``, which the bridge has split, is fused again: its rows go head
    by head, each head's query rows first, then its key and its value rows
    (``transformers.models.gpt_neox``, ``GPTNeoXAttention.forward``).
    """
    found = {name: p.data for name, p in subject.parameters.items()}
    if type(subject.model).__name__ == "GPTNeoXForCausalLM":
        heads = subject.config.num_attention_heads
        for name in [n for n in found if ".attention.q." in n]:
            parts = [found.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
            fused = torch.stack([p.unflatten(0, (heads, -1)) for p in parts], dim=1).flatten(0, 2)
            found[name.replace(".q.", ".query_key_value.")] = fused
    return found


def checkpoint(subject: Subject, edit: Edit, folder: str | Path) -> None:
    """Write the edited model as a plain Hugging Face checkpoint, in the subject's dtype.

    Safetensors, config, generation config and tokenizer: what
    ``transformers.AutoModelForCausalLM.from_pretrained(folder)`` loads. Whole or absent.

    Raises:
        MansuError: the folder is not empty, the edit does not fit the subject, or the bridge has
            split the architecture's weights in a way that this cannot undo.
    """
    with new_folder(Path(folder)) as new, edit.applied(subject):
        model: Any = subject.model
        with torch.device("meta"):  # a skeleton: its weights are the subject's own
            plain = type(model)(copy.deepcopy(model.config))
        found = weights(subject)
        if found.keys() != dict(plain.named_parameters()).keys():
            raise MansuError(
                f"TransformerLens splits or renames weights of {type(model).__name__}, which "
                "MANSU cannot put back: export a Llama, Qwen, Gemma, GPT-2 or Pythia model."
            )
        plain.load_state_dict(found, strict=False, assign=True)  # tied weights are not in it
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(new)
        subject.tokenizer.save_pretrained(new)


def nf4_checkpoint(
    subject: Subject, edit: Edit, folder: str | Path, format: nf4.Format = nf4.NF4
) -> None:
    """Write the edited model as a bitsandbytes 4-bit checkpoint. Whole or absent.

    ``transformers`` itself quantises (``BitsAndBytesConfig``), so that the codes are those that
    a user gets with ``load_in_4bit``; computing is in the subject's dtype.

    Raises:
        MansuError: as ``checkpoint``; a format other than NF4 in blocks of 64; or rows that are no
            whole number of blocks, which bitsandbytes 0.50 misreads on AVX512 processors.
    """
    if format.kind != "nf4" or format.blocksize != 64:
        raise MansuError(f"transformers writes NF4 in blocks of 64, not {format}.")
    for name in subject.quantized_names:
        columns = nf4.layout(subject, name).shape[1]
        if columns % format.blocksize:
            raise MansuError(
                f"The rows of {name!r} have {columns} weights, which is no whole number of blocks "
                f"of {format.blocksize}, and bitsandbytes misreads such rows on some processors: "
                "export it without NF4."
            )
    with new_folder(Path(folder)) as new, TemporaryDirectory(dir=new.parent) as plain:
        checkpoint(subject, edit, plain)
        dtype = next(iter(subject.parameters.values())).dtype
        options = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=format.kind,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=format.double_quant,
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=options, dtype=dtype
        )
        model.save_pretrained(new)
        subject.tokenizer.save_pretrained(new)


def _document(
    run: Run, subject: Subject, method: str, folder: Path, format: nf4.Format | None
) -> None:
    """Lay the model card, the manifest and the verdict beside a model."""
    (folder / "README.md").write_text(model_card(run, subject, method, format), encoding="utf-8")
    shutil.copyfile(run.path / "manifest.json", folder / "manifest.json")
    if run.has("edits", method, "verdict.json"):
        shutil.copyfile(run.edit_folder(method) / "verdict.json", folder / "verdict.json")


def model_card(run: Run, subject: Subject, method: str, format: nf4.Format | None = None) -> str:
    """The README.md of an exported model: Markdown under the hub's YAML front matter.

    Args:
        format: of the weights; None for full precision.

    Raises:
        MansuError: the run has no edit by this method.
    """
    edit = run.edit(method)
    task, about = run.manifest["task"], subject.provenance
    base = str(about.get("model") or str(about.get("source", "")).removeprefix("hub: "))
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    licence = about.get("licence")
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=("quantized" if format else "finetune") if on_hub else None,
        license=licence.lower() if licence else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "mansu", *(["nf4", "bitsandbytes"] if format else [])],
    )
    stored = "bitsandbytes NF4" if format else str(next(iter(subject.parameters.values())).dtype)
    if format is not None and format.double_quant:
        stored += " with double quantization"
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base if on_hub else subject.name}, edited to forget “{task['title']}”",
        f"An edit of `{subject.name}` by the method `{method}` ({_about(method)}), made and "
        f"measured with MANSU, a workbench for machine unlearning. The task: "
        f"{task['description'] or task['title']} {edit.n_moved:,} of {subject.n_parameters:,} "
        f"parameters were moved ({edit.fraction(subject):.3%}). These weights are "
        f"{stored.removeprefix('torch.')}.",
        "## Verdict\n\n" + _verdict_section(run, method),
        "## Accuracy\n\n" + _accuracy_section(run, method, format),
        "## Limits\n\n" + _limits(format),
        "## Base model and licence\n\n"
        + "\n".join(f"- {key}: {value}" for key, value in {"name": subject.name, **about}.items())
        + ("" if licence else "\n- licence: unknown to MANSU; that of the base model holds"),
        "## How to repeat it\n\n" + _repeat_section(run, method),
        "## How to load it\n\n```python\nfrom transformers import AutoModelForCausalLM, "
        "AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _about(method: str) -> str:
    """The first line of what a method's file says about itself."""
    text = inspect.getdoc(inspect.getmodule(methods.named(method))) or method
    return text.splitlines()[0].rstrip(".")


def _verdict_section(run: Run, method: str) -> str:
    if not run.has("edits", method, "verdict.json"):
        return "**Not judged.** No verdict was made on this edit, so nothing is claimed about it."
    verdict = run.verdict(method)
    rows = [
        (p.name, f"**{p.status}**", *_numbers(p), "yes" if p.certain else "no")
        for p in verdict.properties
    ]
    head = ("property", "status", "value [95 %]", "threshold", "margin", "certain")
    evidence = "\n".join(f"- *{p.name}*: {p.evidence}" for p in verdict.properties)
    return (
        f"**{verdict.status.capitalize()}** "
        f"({sum(p.status == 'passed' for p in verdict.properties)} of {len(NAMES)} properties "
        f"passed; all must).\n\n{table(head, rows)}\n\n{evidence}\n\n“Certain” means that the "
        "whole interval lies on the value's side of the threshold. `verdict.json` has every number."
    )


def _numbers(p: Property) -> tuple[str, str, str]:
    """Value with interval, threshold and margin: shares in points, CAD as it is."""
    if p.value is None or p.threshold is None or p.margin is None:
        return ("not measured", "–", "–")
    scale, digits = (1, 3) if p.name == NAMES[3] else (100, 1)
    unit = "" if scale == 1 else " points"
    value, low, high, threshold, margin = (
        f"{scale * x:+.{digits}f}" for x in (*p.value.to_json(), p.threshold, p.margin)
    )
    return (f"{value} [{low}, {high}]{unit}", threshold + unit, margin + unit)


def _accuracy_section(run: Run, method: str, format: nf4.Format | None) -> str:
    measured: dict[str, Measurement] = {}
    for name, path in (
        ("unedited", ("base.json",)),
        ("this edit", ("edits", method, "full.json")),
        ("unedited, NF4", ("base-nf4.json",)),
        ("this edit, NF4", ("edits", method, "nf4.json")),
    ):
        if run.has(*path):
            is_nf4, is_base = "NF4" in name, name.startswith("unedited")
            measured[name] = (
                run.base(nf4=is_nf4) if is_base else run.measurement(method, nf4=is_nf4)
            )
    if "this edit" not in measured:
        return "**Not measured.**"
    rows = []
    for split, scores in measured["this edit"].splits.items():
        for group in dict.fromkeys(scores.groups):
            cells = [m.splits[split].group(group) for m in measured.values()]
            label = split if group == split else f"{split}: {group}"
            rows.append((label, str(len(cells[0].rows)), *(f"{c.accuracy:.1%}" for c in cells)))
    note = "4-way multiple choice over the answer's first token; chance is 25 %."
    if format is not None and format.double_quant:
        note += " NF4 was measured without double quantization, which these weights have."
    return f"{table(('set', 'rows', *measured), rows)}\n\n{note}"


def _limits(format: nf4.Format | None) -> str:
    limits = [
        "The verdict is about this task's facts only: a pass here is **no guarantee of safety**, "
        "and says nothing about other knowledge or other ways to ask for it.",
        "The intervals are bootstrap intervals over the task's facts, not over models or seeds.",
        "Fine-tuning, and access to the weights in general, may bring back what was forgotten.",
        "The unlearned weights differ from the base model's, which may be had: comparing the two "
        "shows what was edited.",
    ]
    if format is not None:
        limits.append(
            "On processors with AVX512-BF16 bitsandbytes computes in bfloat16 whatever the config "
            "says; the accuracies were measured on the same codes in the base model's precision."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _repeat_section(run: Run, method: str) -> str:
    manifest = (run.path / "manifest.json").read_bytes()
    edit = (run.edit_folder(method) / "edit.safetensors").read_bytes()
    versions = ", ".join(f"{n} {v}" for n, v in run.manifest["packages"].items())
    return (
        f"```\n{repeat_command(run, method)}\n```\n\n"
        f"- MANSU {__version__}, Python {run.manifest['python']}, {versions}\n"
        f"- task `{run.manifest['task']['name']}`, digest `{run.manifest['task']['digest']}`\n"
        f"- `manifest.json`, sha256 `{hashlib.sha256(manifest).hexdigest()}`\n"
        f"- the edit, sha256 `{hashlib.sha256(edit).hexdigest()}`"
    )


def repeat_command(run: Run, method: str) -> str:
    """The ``mansu run`` that makes this edit again, with every setting that is not the default.

    A task of the user's own is called ``task.jsonl``, as in the run folder.
    """
    task = run.manifest["task"]
    shipped = task["name"] in tasks.shipped() and tasks.load(task["name"]).digest == task["digest"]
    words = ["mansu", "run", "--subject", run.subject]
    words += ["--task", task["name"] if shipped else "task.jsonl", "--method", method]
    for name, value in run.settings.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    used = run.history(method)["settings"] if run.has("edits", method, "history.json") else {}
    known = inspect.signature(methods.named(method)).parameters
    for name, value in used.items():
        if name in known and value != known[name].default:
            words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def lm_eval(
    task: tasks.Task, subject: Subject, folder: str | Path, *, seed: int = 0
) -> tuple[str, ...]:
    """Write a task for EleutherAI's lm-evaluation-harness (0.4): a group with a task a split.

    The same rows and wrong answers as ``evaluate.measure_task``. The harness compares the
    log-probabilities of whole answers and ours the logits of their first token; every answer here
    is one token, so the two agree. Whole or absent.

    Returns:
        A sentence for each split with rows left out, because the harness would cut their text into
        other tokens.

    Raises:
        MansuError: the folder is not empty.
    """
    group = harness_name(task)
    notes, names = [], []
    with new_folder(Path(folder)) as new:
        for split in EVALUATED:
            rows, skipped = _harness_rows(task, subject, split, seed)
            if skipped:
                notes.append(
                    f"Lines {', '.join(map(str, skipped))} left out of the harness's {split}: it "
                    "would cut prompt and answer into other tokens."
                )
            if not rows:
                continue
            name = f"{group}_{split}"
            names.append(name)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (new / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            (new / f"{name}.yaml").write_text(_HARNESS_TASK.format(name=name, split=split))
        members = "".join(f"  - {name}\n" for name in names)
        (new / f"{group}.yaml").write_text(f"group: {group}\ntask:\n{members}")
        (new / "rows.py").write_text(_HARNESS_ROWS)
    return tuple(notes)


def harness_name(task: tasks.Task) -> str:
    """What the harness calls the task: the argument of its ``--tasks``."""
    return "mansu_" + re.sub(r"\W+", "_", task.name).lower()


def harness_command(task: tasks.Task, model: str | Path, folder: str | Path) -> str:
    """The harness's command that scores the model in ``model`` on the task in ``folder``."""
    arguments = {
        "model": "hf",
        "model_args": f"pretrained={model},add_bos_token=False",  # as we score: no such token
        "include_path": str(folder),
        "tasks": harness_name(task),
    }
    return "lm_eval " + shlex.join(a for k, v in arguments.items() for a in (f"--{k}", v))


def _harness_rows(
    task: tasks.Task, subject: Subject, split: str, seed: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a split, and the line numbers of those that the harness would read otherwise."""
    examples = tasks.examples(task, subject, split, seed=seed)
    facts = {fact.row: fact for fact in task.split(split)}
    spelled: dict[int, str] = {}
    for fact in facts.values():
        for text in (fact.answer, *fact.distractors):
            if len(ids := subject.encode(text)) == 1:
                spelled.setdefault(ids[0], text)
    rows, skipped = [], []
    for i, number in enumerate(examples.rows):
        fact, right = facts[number], int(examples.answer[i])
        tokens = [right, *examples.distractors[i].tolist()]
        prompt = subject.encode(fact.prompt)
        joined = [subject.encode(fact.prompt + spelled[t]) for t in tokens]
        if joined != [[*prompt, t] for t in tokens] or fact.prompt != fact.prompt.rstrip():
            skipped.append(number)
            continue
        place = i % len(tokens)  # not always the first, which the harness prefers in a tie
        tokens = tokens[1 : place + 1] + tokens[:1] + tokens[place + 1 :]
        choices = [spelled[t] for t in tokens]
        row = {"prompt": fact.prompt, "choices": choices, "answer": place}
        rows.append({**row, "group": fact.group, "line": number})
    return rows, skipped


_HARNESS_TASK = """\
task: {name}
custom_dataset: !function rows.load
dataset_kwargs:
  split: {split}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""

# Of all that a task may say about its data, only a function finds files beside itself.
_HARNESS_ROWS = """\
\"\"\"The rows beside this file, for lm-evaluation-harness.\"\"\"

import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def load(split, **_):
    text = Path(__file__).with_name(f"{split}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\\n") if line]
    return DatasetDict(test=Dataset.from_list(rows))
"""
