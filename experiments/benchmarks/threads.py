"""Which results have the same bytes with one thread as with two, and how far the others are apart.

    python -m experiments.benchmarks.threads --subject tiny --method mansu
    python -m experiments.benchmarks.threads --subject smollm2-135m-instruct --short

The whole main job is done twice by MANSU's own commands, each with so many threads; ``--short``
ends with the edit's measurement. Times and memory are not compared. The exit code is 1 where
anything differs: then a run's manifest is what has to match, and a run that goes on takes the
threads that it was begun with (``mansu.job.machine``).
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

from mansu.files import SUM, inside, parsed_json

COUNTS = (1, 2)
PASSED_OVER = {"manifest.json", "status.json", "timings.json"}
TIMES = ("seconds", "peak_memory", "time", "digest of the edit", "digest of the run", SUM)
"""Of a JSON object: what no two jobs share, and what only says which edit was measured."""


def work(subject: str, method: str, folder: Path, threads: int, short: bool) -> None:
    """The job by so many threads, in processes of its own."""
    new, edit = ("--folder", str(folder), "--subject", subject), (str(folder), "--method", method)
    commands = [("run", *new, "--method", method)]
    if short:
        commands = [("attribute", *new), ("circuit", str(folder))]
        commands += [("unlearn", *edit), ("quantize", *edit)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for command in commands:
        whole = [sys.executable, "-m", "mansu", *command]
        subprocess.run(whole, env=environment, stdout=subprocess.DEVNULL, check=True)


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
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home:
        one, two = folders = [Path(home) / f"{count}" for count in COUNTS]
        for count, folder in zip(COUNTS, folders, strict=True):
            print(f"with {count} threads …", file=sys.stderr, flush=True)
            work(options.subject, options.method, folder, count, options.short)
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
