"""``mansu export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    parser.add_argument("--method", default="mansu", help="whose edit (%(default)s)")
    parser.add_argument(
        "--format",
        action="append",
        choices=("hf", "nf4", "gguf", "lm-eval"),
        help="a Hugging Face checkpoint (the default), the same in bitsandbytes NF4, one GGUF file "
        "for llama.cpp, or the task for lm-evaluation-harness; may be given several times",
    )
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--double-quant", action="store_true", help="quantise NF4's absmax too (QLoRA)"
    )
    parser.add_argument(
        "--outtype",
        choices=("f32", "f16", "q4_0", "q4_1", "q5_0", "q8_0"),
        default="f16",
        help="how the GGUF file stores the matrices (%(default)s)",
    )


def export(options: argparse.Namespace) -> None:
    from mansu import exports
    from mansu.files import inside
    from mansu.job.pipeline import Plan
    from mansu.job.runs import Run

    run, method, folder = Run.open(options.folder), options.method, options.to
    run.require("edit", method)
    if folder.resolve().parent != run.exports.resolve():  # the app runs this command, too
        Run.refuse_in_any(folder)
    formats = options.format or ["hf"]
    notes: list[str] = []
    commands: list[str] = []
    model = folder if set(formats) & {"hf", "nf4"} else "MODEL"

    def work(job: common.Job) -> None:
        job.work.plan = Plan((("export", method, 1.0),))
        subject, place = job.session.subject, folder / exports.HARNESS
        commands.append(exports.harness_command(run.task(), subject, model, place))
        notes.extend(
            exports.write(
                run,
                subject,
                method,
                folder,
                formats,
                double_quant=options.double_quant,
                outtype=options.outtype,
                on_step=job.on_step,
            )
        )

    common.Job(run).do(work)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    size = sum(file.stat().st_size for file in inside(folder) if file.is_file())
    print(f"exported to {folder} ({size / 1e6:.1f} MB)")
    if "lm-eval" in formats:
        print(*commands)
