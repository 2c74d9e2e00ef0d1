"""The command line: ``mansu run`` does the whole main job; the other commands do its steps."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mansu import __version__, methods, tasks
from mansu.cli import subject as cli_subject
from mansu.errors import MansuError
from mansu.files import replacing, write_json
from mansu.job.runs import Run
from mansu.report import terminal

BAD_INPUT, CANCELLED = 2, 130


DEFAULT_SUBJECT = "smollm2-135m-instruct"


DEFAULT_TASK = "chemical-symbols"


class _CancelledError(Exception):
    """Raised in the middle of the work by SIGTERM or Ctrl-C."""


def _cancel(*_: object) -> None:
    raise _CancelledError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 130 when cancelled."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except MansuError as error:
        print(f"mansu: {error}", file=sys.stderr)
        return BAD_INPUT
    except (_CancelledError, KeyboardInterrupt):
        print("mansu: cancelled; what was finished is kept.", file=sys.stderr)
        return CANCELLED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mansu", description="Mechanistic machine unlearning that survives 4-bit quantization."
    )
    parser.add_argument("--version", action="version", version=f"mansu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, function: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    run = command("run", _run, "The whole main job: attribution, circuit, edit, NF4, CAD, verdict.")
    _add_what(run)
    _add_method(run, several=True)
    _add_settings(run)

    attribution = command("attribute", _attribute, "Start a run: attribute the forget task.")
    _add_what(attribution)

    circuit = command("circuit", _circuit, "Find the minimal circuit and its parameter mask.")
    _add_folder(circuit)

    trust = command("trust", _trust, "Measure how far the circuit can be trusted.")
    _add_folder(trust)

    unlearn = command("unlearn", _unlearn, "Apply MANSU or a baseline to a run.")
    _add_folder(unlearn)
    _add_method(unlearn)
    _add_settings(unlearn)

    quantize = command("quantize", _quantize, "Measure an edit in full precision and in NF4.")
    _add_folder(quantize)
    _add_method(quantize)

    verdict = command("verdict", _verdict, "Measure CAD and judge an edit.")
    _add_folder(verdict)
    _add_method(verdict)

    export = command("export", _export, "Write the edited model as files that other tools read.")
    _add_folder(export)
    export.add_argument("--method", default="mansu", help="whose edit (%(default)s)")
    export.add_argument(
        "--format",
        action="append",
        choices=("hf", "nf4", "lm-eval"),
        help="a Hugging Face checkpoint (the default), the same in bitsandbytes NF4, or the task "
        "for lm-evaluation-harness; may be given several times",
    )
    export.add_argument("--to", type=Path, required=True, help="a new folder")
    export.add_argument(
        "--double-quant", action="store_true", help="quantise NF4's absmax too (QLoRA)"
    )

    attack = command("attack", _attack, "Try to recover what an edit removed.")
    _add_folder(attack)
    _add_method(attack, several=True)

    subject = command("subject", cli_subject.subject, "List the subjects, or prepare one of them.")
    cli_subject.add_to(subject)

    task = command("task", _task, "Make a task file of WMDP and MMLU rows (multiple choice).")
    task.add_argument("--wmdp", required=True, metavar="SOURCE", help="rows to forget")
    task.add_argument("--mmlu", required=True, metavar="SOURCE", help="rows to keep")
    task.add_argument("-o", "--output", type=Path, required=True, help="a .jsonl file to write")
    task.add_argument("--rows", type=_positive, help="take the first so many of each (all)")
    _add_choices(task)

    score = command("score", _score, "Score WMDP, MMLU, TOFU or MUSE before and after an edit.")
    score.add_argument(
        "source",
        nargs="+",
        help="a parquet, json, jsonl or csv file; FOLDER:CONFIG:SPLIT; OWNER/NAME:CONFIG:SPLIT",
    )
    score.add_argument("--set", required=True, help="wmdp, mmlu, tofu or muse")
    score.add_argument("--subject", default=DEFAULT_SUBJECT, help="without --run (%(default)s)")
    score.add_argument("--run", type=Path, help="a run folder, whose subject is scored")
    score.add_argument("--method", help="score this method's edit of the run, too")
    score.add_argument("--nf4", action="store_true", help="score each model in NF4, too")
    score.add_argument("--tokens", type=_positive, help="the longest greedy answer (the set's own)")
    score.add_argument("--reference", type=Path, help="scores of a model that never saw the set")
    score.add_argument("-o", "--output", type=Path, help="the JSON file (default: in the run)")
    _add_choices(score)

    strengths = command("strengths", _strengths, "Measure an edit at parts of its strength.")
    _add_folder(strengths)
    _add_method(strengths, several=True)

    reproduce = command(
        "reproduce", _reproduce, "Hold the paper's claims against every method on several tasks."
    )
    reproduce.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/reproduce"),
        help="where the runs are; what is done there is not done again (%(default)s)",
    )
    reproduce.add_argument(
        "--to",
        type=Path,
        default=Path("experiments/results"),
        help="where reproduce.json and reproduce.md are written (%(default)s)",
    )
    reproduce.add_argument(
        "--subject", help="only the experiments on this subject, e.g. tiny (a minute)"
    )
    reproduce.add_argument("--task", action="append", help="only the experiments on these tasks")
    reproduce.add_argument(
        "--method",
        action="append",
        help="only these methods; by default every method, control and ablation",
    )
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--form", default="letters", help="letters or cloze (%(default)s)")
    parser.add_argument(
        "--shots",
        type=int,
        choices=range(21),
        default=0,
        metavar="N",
        help="worked examples, the set's last rows, up to 20 (%(default)s)",
    )


def _add_what(parser: argparse.ArgumentParser) -> None:
    from mansu.job.pipeline import DEFAULTS

    parser.add_argument(
        "--subject", default=DEFAULT_SUBJECT, help="%(default)s, tiny, a folder or a hub id"
    )
    parser.add_argument(
        "--task", default=DEFAULT_TASK, help="a shipped task or a .jsonl file (%(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to put the run (default: runs/…); an existing run goes on",
    )
    parser.add_argument(
        "--pairs",
        type=_positive,
        default=DEFAULTS["pairs"],
        help="pairs for attribution (%(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_positive,
        default=DEFAULTS["steps"],
        help="integration steps K (%(default)s)",
    )
    parser.add_argument(
        "--tau",
        type=_share,
        default=DEFAULTS["tau"],
        help="faithfulness of the circuit (%(default)s)",
    )
    parser.add_argument(
        "--max-fraction",
        type=_share,
        default=DEFAULTS["max_fraction"],
        help="the mask's largest share of the parameters (0.005; 0.1 for toys)",
    )
    parser.add_argument(
        "--memory",
        type=_positive,
        default=DEFAULTS["memory"],
        metavar="MiB",
        help="what attribution and circuit may hold beside the weights (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS["seed"], help="(%(default)s)")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run folder")


def _add_method(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument(
        "--method",
        action="append" if several else "store",
        default=None if several else "mansu",
        help=f"{', '.join(methods.ALL)}" + ("; may be given several times" if several else ""),
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method, e.g. rate=0.03; may be given several times",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], not {value}")
    return value


def _settings(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The ``--set`` values of one method, checked."""
    return methods.parse_settings(methods.named(method), options.set)


def _open(options: argparse.Namespace) -> Run:
    """The run that ``run`` and ``attribute`` are about: an existing folder's, or a new one."""
    if options.folder is not None and (options.folder / "manifest.json").exists():
        return Run.open(options.folder)
    names = ("pairs", "steps", "tau", "max_fraction", "seed", "memory")
    settings = {name: getattr(options, name) for name in names}
    return Run.create(options.subject, tasks.load(options.task), settings, options.folder)


def _with_subject(run: Run, work: Callable[[Any, methods.Progress], None]) -> None:
    """Load the run's subject and work, keeping ``status.json`` true whatever happens."""

    signal.signal(signal.SIGTERM, _cancel)

    def progress(share: float, message: str) -> None:
        run.set_status("running", share, message)
        print(f"{share:4.0%}  {message}", file=sys.stderr, flush=True)

    print(f"run folder: {run.path}", flush=True)
    try:
        progress(0.0, f"loading {run.subject}")
        from mansu import subjects
        from mansu.job.pipeline import notes

        subject = subjects.load(run.subject)
        for note in notes(run, subject):
            print(f"note: {note}", file=sys.stderr, flush=True)
        work(subject, progress)
    except (_CancelledError, KeyboardInterrupt):
        run.set_status("cancelled", run.status().get("share", 0.0), "cancelled")
        raise
    except Exception as error:
        run.set_status("failed", run.status().get("share", 0.0), str(error))
        raise
    run.set_status("done", 1.0, "done")


def _attribute(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import attribution_step

    run = _open(options)
    _with_subject(run, lambda subject, progress: attribution_step(run, subject, progress))


def _circuit(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import circuit_step

    run = Run.open(options.folder)
    _with_subject(run, lambda subject, progress: circuit_step(run, subject, progress))
    circuit, mask = run.circuit(), run.mask()
    print(
        f"circuit: {len(circuit):,} of {circuit.layout.n_edges:,} edges, faithfulness "
        f"{circuit.faithfulness:.1%}; mask: {mask.size:,} parameters ({mask.fraction:.3%})"
    )


def _trust(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import trust_step

    run = Run.open(options.folder)
    run.mask()
    _with_subject(run, lambda subject, progress: trust_step(run, subject, progress))
    found = run.trust()
    overlap, low, high = found["overlap"]
    print(f"stability: overlap {overlap:.2f} [{low:.2f}, {high:.2f}] of resamples' best edges; ")
    print(f"  {found['always']:.0%} of the edges are in more than 95 % of the resamples")
    if found["held_out_faithfulness"] is not None:
        value, low, high = found["held_out_faithfulness"]
        n = found["held_out_pairs"]
        print(f"faithfulness on {n} other pairs: {value:.3f} [{low:.3f}, {high:.3f}]")
    spare = [name for name, loss in found["minimality"].items() if loss < 0.001]
    print(f"incompleteness {found['incompleteness']:.3f}; {len(spare)} of ", end="")
    print(f"{len(found['minimality'])} nodes could go: {', '.join(spare) or 'none'}")
    others = ", ".join(f"{x:.2f}" for x in found["metric_random_masks"])
    print(f"metric {found['metric']:.2f}; mask at zero {found['metric_masked']:.2f}; ", end="")
    print(f"random masks {others}")


def _unlearn(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import unlearn_step

    run, method = Run.open(options.folder), options.method
    settings = _settings(options, method)
    _with_subject(
        run, lambda subject, progress: unlearn_step(run, subject, method, progress, settings)
    )
    history = run.history(method)
    print(
        f"{method}: {history['moved']:,} parameters moved ({history['fraction']:.3%}); "
        f"{history['stopped']}"
    )


def _quantize(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import survival_steps

    run, method = Run.open(options.folder), options.method
    methods.named(method)
    _with_subject(run, lambda subject, progress: survival_steps(run, subject, method, progress))
    print(terminal.accuracies(run, method))
    print(terminal.geometry(run, method))


def _verdict(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import cad_step, verdict_step

    run, method = Run.open(options.folder), options.method
    methods.named(method)
    run.measurement(method, nf4=True)
    _with_subject(run, lambda subject, progress: cad_step(run, subject, method, progress))
    print(terminal.sentences(method, verdict_step(run, method)))


def _attack(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import attack_step

    run, names = _stepped(options, attack_step, nf4=False)
    for name in names:
        print(terminal.recovery(run, name))


def _stepped(
    options: argparse.Namespace, step: Callable[..., None], *, nf4: bool
) -> tuple[Run, Sequence[str]]:
    """The run and the methods asked for, after a step on each, which must have been measured."""
    run, names = Run.open(options.folder), options.method or ["mansu"]
    for name in names:
        methods.named(name)
        run.measurement(name, nf4=nf4)
    _with_subject(
        run, lambda subject, progress: _each(names, progress, partial(step, run, subject))
    )
    return run, names


def _each(
    names: Sequence[str], progress: methods.Progress, work: Callable[[str, methods.Progress], Any]
) -> None:
    """``work`` on each name, each with its share of the progress."""
    for i, name in enumerate(names):

        def part(share: float, message: str, i: int = i, name: str = name) -> None:
            progress((i + share) / len(names), f"{name}: {message}")

        work(name, part)


def _strengths(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import strengths_step

    run, names = _stepped(options, strengths_step, nf4=True)
    for name in names:
        for point in run.strengths(name)["points"]:
            print(
                f"{point['strength']:4.0%} of {name}: forget {point['forget']:.1%}, in NF4 "
                f"{point['forget_nf4']:.1%}, permanence {point['permanence']:+.2f} nats, retain "
                f"fell {point['retain_fall']:.1%}"
            )


def _reproduce(options: argparse.Namespace) -> None:
    from experiments import reproduce

    experiments = [
        e
        for e in reproduce.EXPERIMENTS
        if options.subject in (None, e.subject) and e.task in (options.task or [e.task])
    ]
    if not experiments:
        known = ", ".join(f"{e.task} on {e.subject}" for e in reproduce.EXPERIMENTS)
        raise MansuError(f"No experiment is on that subject and task: there are {known}.")
    names = options.method or methods.ALL
    for name in names:
        methods.named(name)
    signal.signal(signal.SIGTERM, _cancel)

    def progress(share: float, message: str) -> None:
        print(f"{share:4.0%}  {message}", file=sys.stderr, flush=True)

    runs = reproduce.measure(options.folder, experiments, progress, names)
    found = reproduce.results(runs)
    write_json(options.to / "reproduce.json", found)
    text = reproduce.report(found, reproduce.separation(options.to))
    with replacing(options.to / "reproduce.md") as temporary:
        temporary.write_text(text)
    print(text)


def _run(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import whole_job

    names = options.method or ["mansu"]
    settings = {name: _settings(options, name) for name in names}
    run = _open(options)

    def work(subject: Any, progress: methods.Progress) -> None:
        _each(
            names, progress, lambda name, part: whole_job(run, subject, name, part, settings[name])
        )

    _with_subject(run, work)
    for name in names:
        print(terminal.accuracies(run, name))
        print(terminal.sentences(name, run.verdict(name)))
    print(f"open it: make app, then choose {run.name}")


def _export(options: argparse.Namespace) -> None:

    from mansu import exports

    run, method, folder = Run.open(options.folder), options.method, options.to
    run.edit(method)
    formats = options.format or ["hf"]
    notes: list[str] = []
    commands: list[str] = []
    model = folder if set(formats) & {"hf", "nf4"} else "MODEL"

    def work(subject: Any, progress: methods.Progress) -> None:
        place = folder / exports.HARNESS
        commands.append(exports.harness_command(run.task(), subject, model, place))
        notes.extend(
            exports.write(
                run,
                subject,
                method,
                folder,
                formats,
                double_quant=options.double_quant,
                progress=progress,
            )
        )

    _with_subject(run, work)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"exported to {folder} ({size / 1e6:.1f} MB)")
    if "lm-eval" in formats:
        print(*commands)


def _task(options: argparse.Namespace) -> None:
    from mansu.sets import choices

    forget, retain = (choices.read(s)[: options.rows] for s in (options.wmdp, options.mmlu))
    made = choices.task(options.output.stem, forget, retain, form=options.form, shots=options.shots)
    if options.output.suffix != ".jsonl":
        raise MansuError(f"{options.output} is no .jsonl file: give a name that ends so.")
    with replacing(options.output) as temporary:
        temporary.write_text(made.to_jsonl(), encoding="utf-8")
    counts = ", ".join(f"{len(made.split(s))} {s}" for s in tasks.SPLITS if made.split(s))
    print(f"{options.output}: {counts}; run it: mansu run --task {options.output}")


def _score(options: argparse.Namespace) -> None:
    from mansu import subjects
    from mansu.files import read_json
    from mansu.job.runs import folder
    from mansu.sets import score

    if options.method and not options.run:
        raise MansuError("--method needs --run: give the run folder that holds its edit.")
    run = Run.open(options.run) if options.run else None
    edit = run.edit(options.method) if run and options.method else None
    name = run.subject if run else options.subject
    reference = read_json(options.reference) if options.reference else None
    result = score.score(
        subjects.load(name),
        options.set,
        options.source,
        edit=edit,
        in_nf4=options.nf4,
        form=options.form,
        shots=options.shots,
        tokens=options.tokens,
        reference=reference,
        progress=lambda message: print(message, file=sys.stderr, flush=True),
    )
    place = run.path / "scores" if run else folder() / "scores"
    file = "-".join([options.set, options.method or Path(name).name]) + ".json"
    path = options.output or place / file
    write_json(path, {**result, "run": run and run.name, "method": options.method})
    print(score.table(result))
    print(f"saved: {path}")


if __name__ == "__main__":
    sys.exit(main())
