"""How long a job goes on after the flag alone asks it to stop, in each stage of the main job.

    python -m experiments.benchmarks.cancel --subject tiny --method ga --times 10

No signal is sent: so it is where whoever cancels is on another machine. The job is cancelled as
many times as asked in each stage, at a moment of chance, and goes on with the same run. One line is
printed for each, then the worst of each stage. A job that goes on for more than two seconds is
aborted, what it was at is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from mansu.errors import MansuError
from mansu.job.lock import FILE, FLAG
from mansu.job.runs import Run

LIMIT = 2.0
"""Seconds that a job may go on."""


def stage_of(folder: Path, since: float) -> str:
    """The stage that a job begun since then is in; "" before its first."""
    try:
        status = Run.open(folder).status()
    except MansuError:  # the run is being made
        return ""
    return "" if status.step is None or status.started < since else status.step.stage


def cancelled(job: subprocess.Popen[bytes], folder: Path) -> float:
    """Seconds from the flag to the job's end."""
    (folder / FLAG).write_bytes((folder / FILE).read_bytes())
    start = time.monotonic()
    try:
        job.wait(LIMIT)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGABRT)  # faulthandler says what each thread is at
        job.wait()
    return time.monotonic() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.cancel")
    parser.add_argument("--subject", default="tiny")
    parser.add_argument("--method", default="ga")
    parser.add_argument("--times", type=int, default=1, help="in each stage")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds in a stage, at most")
    parser.add_argument("--stage", action="append", help="only in this one, as it is printed")
    parser.add_argument("--set", action="append", default=[], help="a setting of the method")
    options = parser.parse_args(arguments)
    chance, done = random.Random(0), Counter[str]()
    took: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        folder, code = Path(home) / "run", 130
        command = [sys.executable, "-X", "faulthandler", "-m", "mansu", "run"]
        command += ["--folder", str(folder)]
        command += ["--subject", options.subject, "--method", options.method]
        command += [part for each in options.set for part in ("--set", each)]
        while code in (130, -signal.SIGABRT):  # cancelled, as it ends with
            with (Path(home) / "log").open("wb") as log:
                job = subprocess.Popen(command, stdout=log, stderr=log)
            seen, since = "", time.time()
            while job.poll() is None:
                time.sleep(0.02)
                stage = stage_of(folder, since)
                wanted = stage and stage in (options.stage or [stage])
                if not wanted or stage == seen or done[stage] >= options.times:
                    continue
                seen = stage
                time.sleep(chance.uniform(0, options.wait))
                if job.poll() is None and stage_of(folder, since) == stage:
                    seconds = cancelled(job, folder)
                    done[stage] += 1
                    took[stage].append(seconds)
                    print(f"{stage:16} {seconds:5.2f} s, exit {job.returncode}", flush=True)
                    if seconds > LIMIT:
                        print((Path(home) / "log").read_text(), flush=True)
            code = job.returncode
        if code:  # it failed
            print((Path(home) / "log").read_text(), file=sys.stderr)
            return 1
    if not took:
        print("No stage was still on when it was to be cancelled: shorten --wait.", file=sys.stderr)
        return 1
    for stage, found in took.items():
        print(f"{stage:16} {len(found)} times, at most {max(found):.2f} s")
    return int(max(map(max, took.values())) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
