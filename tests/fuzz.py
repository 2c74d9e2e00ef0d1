"""Damages files, tasks, settings, names, command lines and links: only a ``MansuError`` comes out.

    python -m tests.fuzz --cases 50000 --seed 1 [--run FOLDER]

A case is its number alone: ``Fuzzer(run).case(n)`` does the same to the same run each time. Cases
that have found a fault stand in ``KEPT``, and the tests do them again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mansu import methods, tasks
from mansu.cli import commands
from mansu.cli.common import given_settings, wanted
from mansu.cli.dossier import _pairs
from mansu.errors import MansuError
from mansu.files import OF, SUM, confined, slug
from mansu.job.artefacts import ARTEFACTS
from mansu.job.judging import judged
from mansu.job.pipeline import VERDICT
from mansu.job.runs import Run, listed, unreadable
from mansu.job.settings import Settings
from mansu.progress import silent
from mansu.settings import configure, typed_in

KEPT: tuple[int, ...] = (813, 925, 1349, 35099, 702728)
"""Cases that ended in a foreign exception once."""

SLOW = 10.0
"""Seconds of the processor after which a case counts as one that hangs."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, -0.5, 1e308,
    1e-320, float("nan"), float("inf"), -float("inf"), "", "x", "1", "NaN", "ü 😀", "\ud800", "\0",
    "../../x", "x" * 5000, [], [[]], [1], [None], {}, {"a": 1}, {"": None}, [0] * 1000,
)  # fmt: skip
TEXTS = (
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "x" * 5000, "\0", "\n", "ü 😀", "\ud800",
    "-rf", "con", "a\x1b[31m", " ", "%2e%2e%2f", "~", "$HOME", "*",
)  # fmt: skip
VALUES = (
    "nan", "NaN", "inf", "-inf", "Infinity", "1e999", "9" * 5000, "-1", "0", "1e-400", "true",
    "null",
    "[]", "{}", '"x"', "[" * 100_000, "", " ", "0x10", "1_000", "١", "\0", "1e308", "--", "=",
)  # fmt: skip
LINES = (
    ("run", "--subject", "tiny", "--task", "tiny-colours", "--method", "ga", "--set", "steps=1"),
    ("attribute", "--subject", "tiny", "--pairs", "8", "--steps", "1", "--tau", "0.5"),
    ("dossier", "RUN", "--method", "ga", "--threshold", "kept=1"),
    ("unlearn", "RUN", "--method", "ga", "--set", "steps=1"),
    ("export", "RUN", "--method", "ga", "--format", "hf", "--to", "x"),
    ("score", "x.jsonl", "--set", "mmlu", "--shots", "2", "--tokens", "3"),
    ("bundle", "RUN", "--method", "ga"),
    ("app", "--port", "8501", "--jobs", "2", "--memory", "1"),
)
PAGES = Path(__file__).parents[1] / "pages"
SHOWN = ("home", "attribution", "unlearn", "nf4", "compare", "review", "learn", "glossary")
"""Pages that load no model to be drawn, but the lesson's."""
CHOSEN = ("run", "method", "view", "step", "subject", "task", "baseline", "pairs", "steps", "tau",
          "model", "x")  # fmt: skip


class Fuzzer:
    """Cases on one run folder, whose files are put back after each."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.methods = run.edits()
        skip = (".log", ".lock")
        files = [p for p in sorted(run.path.rglob("*")) if p.is_file() and p.suffix not in skip]
        self.contents = {path: path.read_bytes() for path in files}
        self.task = (run.path / "task.jsonl").read_text(encoding="utf-8")
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def case(self, number: int) -> None:
        """Do one case.

        Raises:
            AssertionError: an error of more than one line, or one that took too long.
            Exception: a foreign one.
        """
        rng = random.Random(number)
        kinds: list[Callable[[random.Random], None]] = [self._file] * 12
        kinds += [self._a_task, self._a_setting, self._a_name]
        if number % 4 == 3:
            kinds = [self._a_link] if number % 256 == 3 else [self._a_line]  # a page takes longer
        kind = rng.choice(kinds)
        start = time.process_time()  # a busy machine makes it no longer
        self.done[kind.__name__.strip("_")] += 1
        try:
            kind(rng)
        except MansuError as error:
            self.refused[kind.__name__.strip("_")] += 1
            assert str(error) and "\n" not in str(error), f"{error!r} is no sentence"
        assert time.process_time() - start < SLOW, "it took too long"

    def _file(self, rng: random.Random) -> None:
        path = rng.choice(list(self.contents))
        whole = self.contents[path]
        try:
            path.write_bytes(damaged(whole, path.suffix, rng))
            self._read(path, rng)
        finally:
            path.write_bytes(whole)

    def _read(self, path: Path, rng: random.Random) -> None:
        """What commands and pages read of a file, and make of it."""
        if path.name == "manifest.json":
            own = [run for run in listed() if not run.is_example]  # shown where there is none
            assert len(own) + len(unreadable()) == 1
        run = Run.open(self.run.path)
        _ = run.digest_of_run, run.status(), run.events(), run.edits(), run.judged()
        if path.name == "task.jsonl":
            run.task()
        inside = path.relative_to(run.path).as_posix()
        method = inside.split("/")[1] if inside.startswith("edits/") else None
        for kind, about in ARTEFACTS.items():
            name = inside.split("/", 2)[-1] if about.of_edit else inside
            matched = re.fullmatch(re.escape(about.file).replace(r"\{\}", "(.+)"), name)
            if matched and about.of_edit is (method is not None):
                str(run.read(kind, method, *matched.groups()))
        if path.suffix == ".json" and rng.random() < 0.1 and self.methods:
            session: Any = SimpleNamespace(run=run)
            for verdict in VERDICT.make(session, self.methods[0], silent):
                str(verdict)

    def _a_task(self, rng: random.Random) -> None:
        lines = self.task.splitlines()
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(lines))
            line = lines[i].encode(errors="surrogateescape")
            lines[i] = damaged(line, ".json", rng).decode(errors="surrogateescape")
        made = tasks.parse("\n".join(lines), rng.choice(TEXTS))
        assert tasks.parse(made.to_jsonl(), made.name).digest == made.digest
        str(made)

    def _a_setting(self, rng: random.Random) -> None:
        value = rng.choice(VALUES)
        if rng.random() < 0.5:
            method = methods.named(rng.choice(list(methods.ALL)))
            name = rng.choice([*method.options(), "x", ""])
            methods.parse_settings(method, [rng.choice([f"{name}={value}", name, value])])
        else:
            name = rng.choice([*Settings.__dataclass_fields__, "x"])
            configure(Settings, {name: rng.choice([typed_in(value), *ODD])}, "a run")

    def _a_line(self, rng: random.Random) -> None:
        """A command line: read in whole; done, where that only reads the run."""
        words = list(rng.choice(LINES))
        words = [str(self.run.path) if word == "RUN" else word for word in words]
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(1, len(words) + 1)
            odd = rng.choice([*VALUES[:14], *TEXTS, "--threshold", "--method=x", "--set=rate=x"])
            words[at:at] = [odd] if rng.random() < 0.4 else []
            words[at : at + 1] = [odd] if rng.random() < 0.7 else words[at : at + 1]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                options = commands.parser(words).parse_args(words)
                if words[0] in ("run", "attribute"):
                    given_settings(options)
                    if words[0] == "run":
                        wanted(options, options.method or ())
                elif words[0] == "dossier" and options.folder:
                    given = _pairs(options.threshold, "--threshold")
                    changes = {name: typed_in(text) for name, text in given}
                    judged(Run.open(options.folder), options.method, changes)
            except SystemExit as end:  # argparse has said what is wrong
                assert end.code in (0, 2), words

    def _a_link(self, rng: random.Random) -> None:
        """A link into the app, with odd choices in it."""
        from streamlit.testing.v1 import AppTest

        path = PAGES / f"{rng.choice(SHOWN)}.py"
        if path.stem == "home":  # whose links are of the whole app
            path = PAGES.parent / "app" / "main.py"
        at = AppTest.from_file(str(path), default_timeout=60)
        names = rng.sample(CHOSEN, rng.randint(1, 4))
        texts = [text for text in (*TEXTS, *VALUES[:14]) if text.isprintable()]
        known = [self.run.name, "ga", "mansu", "9", "Teacher", "New run", "All"]
        at.query_params |= {name: rng.choice([*texts, *known]) for name in names}
        at.run()
        assert not at.exception, (path.name, dict(at.query_params), at.exception)

    def _a_name(self, rng: random.Random) -> None:
        text = "".join(rng.choices(TEXTS, k=rng.randint(1, 3)))
        found = slug(text)
        assert found and "/" not in found and found[0] != "." and len(found.encode()) <= 80
        assert slug(found) == found
        confined(self.run.path / found, self.run.path)
        kind = rng.choice(list(ARTEFACTS))
        self.run.has(kind, text, text)
        self.run.read(kind, text, text)


def damaged(whole: bytes, suffix: str, rng: random.Random) -> bytes:
    """A file's content, changed: as bytes, as JSON, or as safetensors."""
    if rng.random() < 0.2 or len(whole) < 10:
        return _bytes(whole, rng)
    if suffix == ".safetensors":
        return _tensors(whole, rng)
    if suffix == ".jsonl":
        lines = whole.splitlines()
        i = rng.randrange(len(lines))
        lines[i] = damaged(lines[i], ".json", rng)
        return b"\n".join(lines)
    try:
        value = json.loads(whole)
    except (ValueError, RecursionError):  # a line that was damaged before
        return _bytes(whole, rng)
    return _dumped(_value(_older(value), rng)).encode("utf-8", "surrogatepass")


def _older(value: Any) -> Any:
    """Without the digest, which would refuse whatever is changed before it is looked into."""
    for place in (value, value.get(OF)) if isinstance(value, dict) else ():
        if isinstance(place, dict):
            place.pop(SUM, None)
    return value


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bytes(whole: bytes, rng: random.Random) -> bytes:
    found = bytearray(whole)
    at = rng.randrange(len(found) + 1)
    what = rng.randrange(6)
    if what == 0:
        return bytes(found[:at])
    if what == 1:
        return bytes(found[:at] + rng.randbytes(rng.randint(1, 40)) + found[at:])
    if what == 2:
        return bytes(found[:at] + found[at + rng.randint(1, 400) :])
    if what == 3:
        return rng.choice([b"", b"[" * 50_000, b"null", b"[]", b"{}", b"NaN", b'"x"', b"\xff\xfe"])
    for _ in range(rng.randint(1, 8)):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def _value(value: Any, rng: random.Random) -> Any:
    """JSON with something in it replaced, left out, doubled or added."""
    places: list[tuple[Any, Any]] = []

    def walk(inside: Any, depth: int = 0) -> None:
        keys: Any = ()
        if isinstance(inside, dict):
            keys = list(inside)
        elif isinstance(inside, list):
            keys = rng.sample(range(len(inside)), min(len(inside), 8))
        for key in keys:
            places.append((inside, key))
            walk(inside[key], depth + 1)

    walk(value)
    if not places or rng.random() < 0.03:
        return rng.choice(ODD)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        inside, key = rng.choice(places)
        what = rng.randrange(6)
        if (isinstance(inside, list) and key >= len(inside)) or (
            isinstance(inside, dict) and key not in inside
        ):
            continue
        if what == 0:
            del inside[key]
        elif what == 1 and isinstance(inside, list):
            inside.append(inside[key])
        elif what == 1 and isinstance(inside, dict):
            inside[rng.choice(["x", "", "digest of the run"])] = rng.choice(ODD)
        elif what == 2 and isinstance(inside, list):
            rng.shuffle(inside)
        elif what == 3 and isinstance(inside[key], (int, float)):
            inside[key] = rng.choice([-inside[key], inside[key] * 1000, inside[key] + 0.5])
        else:
            inside[key] = rng.choice(ODD)
    return value


def _tensors(whole: bytes, rng: random.Random) -> bytes:
    """safetensors: its header, what our own header says in it, or the numbers."""
    (size,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + size]), bytearray(whole[8 + size :])
    told = header.get("__metadata__", {})
    told |= {n: _dumped(_older(json.loads(t))) for n, t in told.items() if t[:1] == "{"}
    what = rng.randrange(3)
    if what == 0:
        header = _value(header, rng)
    elif what == 1:
        meta = header.get("__metadata__", {})
        name = rng.choice([*meta, "mansu"])
        inner = meta.get(name, "{}")
        meta[name] = _dumped(_value(json.loads(inner), rng)) if inner[:1] == "{" else "x"
    elif body:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(max(len(body) - 8, 1)) // 8 * 8
            odd = rng.choice([b"\xff" * 8, b"\0\0\xc0\x7f" * 2, rng.randbytes(8), b"\0" * 8])
            body[at : at + 8] = odd[: len(body[at : at + 8])]
    text = _dumped(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + bytes(body)


def made(folder: Path) -> Run:
    """A run of the tiny subject with every kind of file."""
    from mansu import cli

    path = folder / "run"
    steps = ["--subject", "tiny", "--pairs", "8", "--steps", "1", "--folder", str(path)]
    assert cli.main(["run", *steps, "--method", "ga", "--set", "steps=1"]) == 0
    for command in ("trust", "attack", "strengths", "formats"):
        method = [] if command == "trust" else ["--method", "ga"]
        assert cli.main([command, str(path), *method]) == 0
    return Run.open(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--run", type=Path, help="a run folder to copy, instead of a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MANSU_RUNS"] = home
        if options.run:
            run = Run.open(shutil.copytree(options.run, Path(home) / "run"))
        else:
            run = made(Path(home))
        fuzzer, failed = Fuzzer(run), []
        faults: Counter[str] = Counter()
        for number in range(options.seed, options.seed + options.cases):
            try:
                fuzzer.case(number)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                fault = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                faults[fault] += 1
                if faults[fault] == 1:
                    print(f"case {number}: {fault}: {error!r:.200}", flush=True)
                failed.append(number)
    print(f"{options.cases} cases from {options.seed}: {len(failed)} failed; first {failed[:20]}")
    for area, n in fuzzer.done.items():
        print(f"  {area}: {n} cases, {fuzzer.refused[area]} refused with a sentence")
    for fault, n in faults.most_common():
        print(f"  {n} × {fault}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
