"""Which results have the same bytes with one thread as with two, and how far the others are apart.

    python -m experiments.benchmarks.threads --subject tiny --method mansu
    python -m experiments.benchmarks.threads --subject smollm2-135m-instruct --short

The whole main job is done twice, each in a process of its own that begins its run with so many
threads; ``--short`` ends after the edit's first measurement. Times and memory are not compared. The
exit code is 1 where anything differs: then a run's manifest is what has to match, and a run that
goes on takes the threads that it was begun with (``mansu.job.machine``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mansu import subjects, tasks
from mansu.files import inside, parsed_json
from mansu.job import pipeline
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.job.working import Work
from mansu.subjects import shipped

COUNTS = (1, 2)
PASSED_OVER = {"manifest.json", "status.json", "timings.json"}
TIMES = ("seconds", "peak_memory", "time", "digest of the edit", "digest of the run")
"""Of a JSON object: what no two jobs share, and what only says which edit was measured."""


def work(subject: str, method: str, folder: Path, short: bool) -> None:
    """The job, in this process and with its threads."""
    made = subjects.load(subject)
    known = shipped.TABLE.get(subject)
    task = tasks.load(known.task if known else "chemical-symbols")
    run = Run.create(made, task, Settings(), folder)
    job = Work(run)
    stages: tuple[pipeline.Stage, ...] = pipeline.whole(method)
    if short:
        edit = pipeline.unlearning(method)
        stages = (*pipeline.CIRCUIT, edit, pipeline.BASE_NF4, pipeline.QUANTIZE)
    with job.held():
        pipeline.perform(Session(run, made), stages, method, on_step=job.on_step)


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of JSON with its place, but for times."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from numbers(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{place}[{i}]")
    else:
        yield place, value


def leaves(file: Path) -> dict[str, Any]:
    """What a result holds, by place; a tensor as its numbers."""
    if file.suffix == ".safetensors":
        return {n: t.flatten().double().tolist() for n, t in load_file(file).items()}
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return dict(numbers(parsed_json(text)))
    return dict(numbers([json.loads(line) for line in text.splitlines()]))


def apart(one: Any, two: Any) -> float:
    """How far two leaves are apart, of the larger; infinitely, where one is no number."""
    a, b = (x if isinstance(x, list) else [x] for x in (one, two))
    if len(a) != len(b):
        return math.inf
    if a == b:
        return 0.0
    if not all(isinstance(x, int | float) for x in (*a, *b)):
        return math.inf
    size = max(max(map(abs, a)), max(map(abs, b)))
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / size


def compared(one: Path, two: Path) -> str:
    """What differs in two files of one name; "" where nothing does."""
    if one.read_bytes() == two.read_bytes():
        return ""
    a, b = leaves(one), leaves(two)
    if a.keys() != b.keys():
        return "not the same entries"
    far = {place: apart(a[place], b[place]) for place in a}
    found = {place: value for place, value in far.items() if value}
    if not found:
        return ""
    worst = max(found, key=found.__getitem__)
    return f"{len(found)} of {len(far)} entries, by {found[worst]:.2g} of the value at {worst}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.threads")
    parser.add_argument("--subject", default="tiny")
    parser.add_argument("--method", default="mansu")
    parser.add_argument("--short", action="store_true", help="no judging")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of one of the two
    options = parser.parse_args(arguments)
    if options.folder:
        work(options.subject, options.method, options.folder, options.short)
        return 0
    with tempfile.TemporaryDirectory() as home:
        one, two = folders = [Path(home) / f"{count}" for count in COUNTS]
        command = [sys.executable, "-m", "experiments.benchmarks.threads"]
        command += ["--subject", options.subject, "--method", options.method]
        for count, folder in zip(COUNTS, folders, strict=True):
            print(f"with {count} threads …", file=sys.stderr, flush=True)
            more = ["--folder", str(folder), *["--short"] * options.short]
            environment = {**os.environ, "OMP_NUM_THREADS": str(count)}
            subprocess.run([*command, *more], env=environment, check=True)
        names = [[str(f.relative_to(x)) for f in inside(x) if f.is_file()] for x in folders]
        differ = int(names[0] != names[1])
        for name in sorted(set(names[0]) & set(names[1])):
            if name in PASSED_OVER or name.endswith((".lock", "events.jsonl")):
                continue
            said = compared(one / name, two / name)
            differ |= bool(said)
            print(f"{name:40} {said or 'the same'}")
    return differ


if __name__ == "__main__":
    sys.exit(main())
