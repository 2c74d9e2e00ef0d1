"""A class on one server: sessions click through its pages while jobs are queued.

    python -m tests.classroom [--sessions 20] [--jobs 5] [--minutes 30] [--memory 4]

Starts the real server and speaks its own protocol, a session each: what a browser would ask for
is asked for (pages, choices, the fragments that redraw themselves), and nothing is drawn. A page's
time is that from the click to the end of its script; a browser's own work, on another machine,
comes on top. Prints p95, the server's memory and every exception; ends with 1 where there was one.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from app import jobs
from mansu import subjects, tasks
from mansu.job import queue
from mansu.job.limits import limits
from mansu.job.runs import EXAMPLES, Run
from mansu.job.settings import Settings
from mansu.subjects.shipped import TABLE

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0
"""Seconds after which a page counts as one that hangs."""
PAGES = (
    "", "attribution", "circuit", "ask", "unlearn", "nf4", "compare", "review", "learn", "glossary"
)  # fmt: skip
CLICKED = ("Next", "Back", "Show", "Answer", "Reveal", "My sheet")
"""Buttons that a session presses: those that only look."""


@dataclass
class Seen:
    """What all sessions saw.

    Attributes:
        pages: seconds by page. redrawn: seconds of fragments that redrew themselves.
        faults: sentences.
    """

    pages: list[tuple[str, float]] = field(default_factory=list)
    redrawn: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Student:
    """A session, as a browser has it.

    Args:
        address: ``host:port``. runs: names that links may choose.
        pause: mean seconds between clicks.
    """

    def __init__(
        self, address: str, runs: Sequence[str], seen: Seen, seed: int, pause: float
    ) -> None:
        self.address, self.runs, self.seen, self.pause = address, runs, seen, pause
        self.rng = random.Random(seed)
        self.hashes: dict[str, str] = {}
        self.page, self.query = "", ""
        self.widgets: dict[str, tuple[str, Any, str]] = {}  # by id: kind, element, fragment
        self.values: dict[str, WidgetState] = {}
        self.redraws: dict[str, tuple[float, float]] = {}  # by fragment: interval, when next

    def work(self, until: float) -> None:
        """Click until then (``time.monotonic``)."""
        try:
            with self._connected() as self.socket:
                self._click(self._open, "")
                while time.monotonic() < until:
                    self._wait(min(until, time.monotonic() + self.rng.expovariate(1 / self.pause)))
                    if self.rng.random() < 0.5 or not self._choices():
                        self._click(self._open, self.rng.choice(PAGES))
                    else:
                        self._click(self._choose)
        except Exception as error:  # whatever it is, the session ends there
            self.seen.faults.append(f"{self.page or 'home'}: {error!r:.200}")

    def look_round(self) -> None:
        """Open every page on every run once, so that all that is shared is loaded."""
        with self._connected() as self.socket:
            for page, run in itertools.product(PAGES, self.runs):
                self._click(self._open, page, run)

    def _connected(self) -> ClientConnection:
        return connect(
            f"ws://{self.address}/_stcore/stream",
            subprotocols=[Subprotocol("streamlit")],
            max_size=None,
            ping_interval=None,  # nor does a browser ask
        )

    def _click(self, what: Callable[..., None], *given: Any) -> None:
        start = time.monotonic()
        what(*given)
        self.seen.pages.append((self.page or "home", time.monotonic() - start))

    def _open(self, page: str, run: str = "") -> None:
        self.page = page
        self.query = urlencode({"run": run or self.rng.choice(self.runs)})
        self.values.clear()
        self._run("")

    def _choices(self) -> list[str]:
        return [
            name
            for name, (kind, about, _) in self.widgets.items()
            if not about.disabled
            and (kind != "button" or about.label in CLICKED)
            and (kind in ("button", "checkbox") or len(about.options) > 1)
        ]

    def _choose(self) -> None:
        name = self.rng.choice(self._choices())
        kind, about, fragment = self.widgets[name]
        state = WidgetState(id=name)
        if kind == "button":
            state.trigger_value = True
        elif kind == "checkbox":
            before = self.values.get(name)
            state.bool_value = not (about.default if before is None else before.bool_value)
        elif kind == "button_group":
            state.string_array_value.data.append(self.rng.choice(about.options).content)
        else:
            state.string_value = self.rng.choice(about.options)
        self.values[name] = state
        self._run(fragment)
        if kind == "button":
            self.values.pop(name, None)

    def _wait(self, until: float) -> None:
        """Redraw what redraws itself, as a browser does, until then."""
        while (now := time.monotonic()) < until:
            following = min(self.redraws.items(), key=lambda each: each[1][1], default=None)
            if following is None or following[1][1] > until:
                time.sleep(until - now)
                return
            fragment, (interval, when) = following
            time.sleep(max(0.0, when - now))
            start = time.monotonic()
            self._run(fragment, auto=True)
            self.seen.redrawn.append(time.monotonic() - start)
            if fragment in self.redraws:
                self.redraws[fragment] = (interval, time.monotonic() + interval)

    def _run(self, fragment: str, *, auto: bool = False) -> None:
        """Ask for a script or a fragment, and read all until it has ended."""
        asked = BackMsg()
        client = asked.rerun_script
        client.query_string, client.fragment_id, client.is_auto_rerun = self.query, fragment, auto
        client.page_script_hash = self.hashes.get(self.page, "")
        client.page_name = "" if self.page in self.hashes else self.page
        client.widget_states.widgets.extend(self.values.values())
        self.socket.send(asked.SerializeToString())
        until = time.monotonic() + PATIENCE
        while True:
            message = ForwardMsg()
            found = self.socket.recv(timeout=max(0.1, until - time.monotonic()))
            message.ParseFromString(found if isinstance(found, bytes) else found.encode())
            kind = message.WhichOneof("type")
            if kind == "new_session" and not message.metadata.run.fragment_ids:
                self.redraws.clear()
                self.widgets.clear()
            elif kind == "delta":
                self._drawn(message.delta)
            elif kind == "navigation":
                self.hashes = {
                    p.url_pathname: p.page_script_hash for p in message.navigation.app_pages
                }
                first = next(p for p in message.navigation.app_pages if p.is_default)
                self.hashes[""] = first.page_script_hash
            elif kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "auto_rerun":
                about = message.auto_rerun
                self.redraws[about.fragment_id] = (
                    about.interval, time.monotonic() + about.interval
                )  # fmt: skip
            elif kind == "stop_auto_rerun":
                for each in message.stop_auto_rerun.fragment_ids:
                    self.redraws.pop(each, None)
            elif kind == "page_not_found":
                self.seen.faults.append(f"no page {self.page}")
            elif (
                kind == "script_finished"
                and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
            ):
                break
        drawn = {*self.widgets}
        self.values = {name: state for name, state in self.values.items() if name in drawn}

    def _drawn(self, delta: Any) -> None:
        element = delta.new_element
        kind = element.WhichOneof("type")
        if kind == "exception":
            about = element.exception
            self.seen.faults.append(f"{self.page or 'home'}: {about.type}: {about.message:.300}")
        elif kind in ("button", "checkbox", "button_group", "selectbox", "radio"):
            about = getattr(element, kind)
            if not about.form_id:
                self.widgets[about.id] = (kind, about, delta.fragment_id)


class Work(threading.Thread):
    """Keeps so many jobs in the queue."""

    def __init__(self, home: Path, subject: str, n: int) -> None:
        super().__init__(daemon=True)
        self.home, self.subject, self.n = home, subject, n
        self.model = subjects.load(subject)
        self.task = tasks.load(TABLE[subject].task)
        self.ended = threading.Event()
        self.made: list[Run] = []

    def run(self) -> None:
        for i in itertools.count():
            while len(queue.order(self.home)) >= self.n:
                if self.ended.wait(1):
                    return
            path = self.home / f"job-{i}"
            run = Run.create(self.model, self.task, Settings(), path, asked=["ga"])
            jobs.start(["run", "--folder", str(path), "--method", "ga"], path)
            self.made.append(run)

    def end(self) -> tuple[int, list[str]]:
        """Cancel what is left.

        Returns:
            How many ended by themselves, and the errors of those that failed.
        """
        self.ended.set()
        self.join()
        states = [jobs.state(run) for run in self.made]
        for run in reversed(self.made):  # else the next in turn begins
            jobs.cancel(run)
        failed = [run.status().error for run in self.made if jobs.state(run) == "failed"]
        return states.count("done"), failed


def served(home: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The app's server on these runs, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mansu", "app", "--headless", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "MANSU_RUNS": str(home)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    for _ in range(300):
        with suppress(OSError):
            urlopen(f"http://localhost:{port}/_stcore/health", timeout=2).close()
            return server, f"localhost:{port}"
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


def p95(times: Sequence[float]) -> float:
    return quantiles(times, n=20)[-1] if len(times) > 1 else sum(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=5, help="in the queue all the time")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--pause", type=float, default=10, help="mean seconds between clicks")
    parser.add_argument("--subject", default=subjects.DEFAULT, help="of the jobs")
    parser.add_argument("--memory", type=float, help="GiB that models and edits may take")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, seen = Path(folder) / "runs", Seen()
        os.environ["MANSU_RUNS"] = str(home)
        if options.memory:
            os.environ["MANSU_MEMORY"] = str(options.memory)
        names = [shutil.copytree(p, home / p.name).name for p in EXAMPLES.iterdir() if p.is_dir()]
        server, address = served(home, Path(folder) / "server.log")
        process = psutil.Process(server.pid)
        memory: list[tuple[float, float]] = []

        def students(n: int, seconds: float, pause: float) -> float:
            begun = time.monotonic()
            some = [Student(address, names, seen, i, pause) for i in range(n)]
            threads = [
                threading.Thread(target=each.work, args=[begun + seconds], daemon=True)
                for each in some
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                taken = process.memory_info().rss / 2**20
                memory.append((time.monotonic() - begun, taken))
                time.sleep(1)
            return time.monotonic() - begun

        try:
            Student(address, names, Seen(), -1, 0).look_round()
            work = Work(home, options.subject, options.jobs)
            if options.jobs:
                work.start()
            took = students(options.sessions, options.minutes * 60, options.pause)
            done, failed = work.end() if options.jobs else (0, [])
            seen.faults += [f"a job failed: {error}" for error in failed]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                seen.faults.append("the server did not end within a minute")
                server.kill()
        log = (Path(folder) / "server.log").read_text()
        tell(options, seen, took, memory, done)
        if "Traceback" in log:
            seen.faults.append("the server's log has a traceback")
            print(log[-3000:])
        for fault in sorted({*seen.faults}):
            print(f"  {seen.faults.count(fault)} × {fault}")
        return 1 if seen.faults else 0


def tell(
    options: argparse.Namespace,
    seen: Seen,
    took: float,
    memory: Sequence[tuple[float, float]],
    done: int,
) -> None:
    """Print what was measured."""
    times = [seconds for _, seconds in seen.pages] or [math.nan]
    print(
        f"{options.sessions} sessions, {options.jobs} jobs of {options.subject} in the queue "
        f"({done} ended), {took / 60:.1f} minutes, {os.cpu_count()} cores"
    )
    print(f"pages: {len(times)}, {len(times) / took:.2f} a second; p50 {median(times):.2f} s, "
          f"p95 {p95(times):.2f} s, longest {max(times):.2f} s")  # fmt: skip
    for page in sorted({page for page, _ in seen.pages}):
        some = [seconds for name, seconds in seen.pages if name == page]
        print(f"  {page}: {len(some)}, p50 {median(some):.2f} s, p95 {p95(some):.2f} s")
    if seen.redrawn:
        print(f"redrawn by themselves: {len(seen.redrawn)}, p95 {p95(seen.redrawn):.2f} s")
    taken = [mib for _, mib in memory]
    tenths = [taken[len(taken) * i // 10 : len(taken) * (i + 1) // 10] for i in range(10)]
    print(
        "server's memory by tenths of the time, MiB: "
        + ", ".join(f"{sum(some) / len(some):.0f}" for some in tenths if some)
        + f"; {max(taken):.0f} at most; "
        f"models and edits, whoever looks at them, may take {1024 * (limits().memory or 0):.0f}"
    )
    print(f"exceptions: {len(seen.faults)}")


if __name__ == "__main__":
    sys.exit(main())
