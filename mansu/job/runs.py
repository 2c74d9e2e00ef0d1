"""A run folder: everything measured about one subject and one task, saved as it is made.

``Run`` alone names, writes, reads and discards its files; ``artefacts`` lists them, beside

manifest.json   what was asked, of which weights, with which versions; enough to repeat it
task.jsonl      the facts
status.json     how far the job is that is at work, or how it ended
events.jsonl    every step that the run's jobs reported
job.log         what the app's last job printed
timings.json    seconds by stage
exports/        what the app exported

Everything under edits/<method>/ says which edit it was measured on, by the digest of its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import IO, Any

import torch

from mansu import tasks
from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.circuits.diff import Scores
from mansu.circuits.mask import Mask
from mansu.circuits.trust import Trust
from mansu.errors import (
    BadInputError,
    DamagedError,
    MansuError,
    MismatchError,
    NotMeasuredError,
)
from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.cad import Divergences
from mansu.evidence.strengths import Strengths
from mansu.evidence.verdict import Verdict
from mansu.files import new_folder, read_json, reading, typed, write_json
from mansu.job.artefacts import ARTEFACTS
from mansu.job.manifest import check_manifest
from mansu.job.settings import Settings
from mansu.measure.scores import Measurement
from mansu.progress import Step
from mansu.quant.survival import Kept, NF4Report
from mansu.settings import configure
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

VERSION = 2
PACKAGES = ("torch", "transformers", "transformer-lens", "bitsandbytes")


def folder() -> Path:
    """Where runs are kept: ``$MANSU_RUNS``, else ``runs`` in the working directory."""
    return Path(os.environ.get("MANSU_RUNS", "runs"))


BOUND = "digest of the edit"
"""In every JSON file that was measured on an edit: which one. Others say it as their ``edit``."""


@dataclass(frozen=True)
class Status:
    """What a run's last job is at.

    Attributes:
        state: ``running``, ``done``, ``failed``, ``cancelling``, ``cancelled``, or ``none``: no job
            ever.
        share: of the whole job, 0 to 1. step: the last one reported; None before the first.
        pid: of the process. started, updated: seconds since 1970.
        error: why it failed, a sentence.
    """

    state: str = "none"
    share: float = 0.0
    step: Step | None = None
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run folder. Values are read from it when asked for.

    Use: ``run = Run.open("runs/mine"); run.verdict("mansu").status``.

    Attributes:
        path: the folder. manifest: what was asked.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def create(
        cls,
        subject: Subject,
        task: tasks.Task,
        settings: Settings | None = None,
        path: Path | None = None,
        *,
        asked: Sequence[str] = ("mansu",),
    ) -> Run:
        """Make a new run folder; by default named after the time, the task and the subject.

        Args:
            asked: the methods that the run is for.

        Raises:
            BadInputError: the folder exists and is not empty.
        """
        now = datetime.now(UTC)
        if path is None:
            short = Path(subject.name).name
            path = folder() / f"{now:%Y%m%d-%H%M%S}-{task.name}-{short}"
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BadInputError(f"The folder {path} is not empty: give a new one.")
        manifest = {
            "version": VERSION,
            "created": now.isoformat(timespec="seconds"),
            "subject": subject.name,
            "fingerprint": subject.fingerprint,
            "task": {
                "name": task.name,
                "title": task.title,
                "description": task.description,
                "provenance": task.provenance,
                "margin": task.margin,
                "tolerance": task.tolerance,
                "digest": task.digest,
            },
            "settings": asdict(settings or Settings()),
            "asked": list(asked),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "threads": torch.get_num_threads(),
        }
        path.mkdir(parents=True, exist_ok=True)
        (path / "task.jsonl").write_text(task.to_jsonl(), encoding="utf-8")
        write_json(path / "manifest.json", manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder.

        Raises:
            BadInputError: it is not a run folder.
            DamagedError: its manifest is damaged, or of another version.
        """
        path = Path(path)
        if not cls.is_at(path):
            raise BadInputError(f"{path} is not a run folder: it has no manifest.json.")
        try:
            with reading(path / "manifest.json"):
                manifest = read_json(path / "manifest.json")
                found = manifest["version"]
                if found == VERSION:
                    check_manifest(manifest)
                    return cls(path, manifest)
        except MansuError as error:
            raise DamagedError(
                f"The manifest of the run folder {path} is damaged ({error}): start a new run."
            ) from error
        again = "start a new run with `mansu run`, or read it with the MANSU that made it"
        if found == 1:
            again = "it does not say which weights it measured, so make it again, in a new folder"
        raise DamagedError(
            f"The run folder {path} is of version {found}, and this MANSU reads version {VERSION}: "
            f"{again}."
        )

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a run folder is there."""
        return (path / "manifest.json").is_file()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def subject(self) -> str:
        return str(self.manifest["subject"])

    @property
    def fingerprint(self) -> str:
        """Of the weights, config and tokenizer that were measured (``Subject.fingerprint``)."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def settings(self) -> Settings:
        return configure(Settings, self.manifest["settings"], f"the run {self.name}")

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods that the run is for."""
        return tuple(self.manifest["asked"])

    @property
    def about(self) -> Mapping[str, Any]:
        """The task: ``name``, ``title``, ``description``, ``margin``, ``tolerance``, ``digest``."""
        return self.manifest["task"]

    def task(self) -> tasks.Task:
        """The facts, as they were when the run was made.

        Raises:
            DamagedError: task.jsonl is missing or is no task.
            MismatchError: task.jsonl was changed since.
        """
        about = {k: v for k, v in self.about.items() if k not in ("name", "digest")}
        path = self.path / "task.jsonl"
        if not path.is_file():
            raise DamagedError(
                f"There is no task.jsonl in the run folder {self.path}, the facts that it is "
                "about: put it back, or start a new run."
            )
        with reading(path):
            text = path.read_text(encoding="utf-8")
            task = tasks.parse(text, self.about["name"], **about)
        if task.digest != self.about["digest"]:
            raise MismatchError(
                f"{self.path / 'task.jsonl'} is not the task that the run {self.name} was made "
                f"for (digest {task.digest}, not {self.about['digest']}): put it back, or start a "
                "new run."
            )
        return task

    def check(self, subject: Subject) -> None:
        """Refuse a subject that is not the one that this run measured.

        Raises:
            MismatchError: other weights, another config or another tokenizer.
        """
        if subject.fingerprint != self.fingerprint:
            raise MismatchError(
                f"The subject {subject.name!r} is not the one that the run {self.name} measured: "
                f"its weights, config or tokenizer differ (fingerprint {subject.fingerprint}, not "
                f"{self.fingerprint}). Put the checkpoint back, or start a new run."
            )

    # Files.

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    def file(self, kind: str, method: str | None = None, part: str = "") -> Path:
        """Where a kind of ``ARTEFACTS`` is, or would be."""
        about = ARTEFACTS[kind]
        place = self._edit_folder(method) if about.of_edit else self.path
        return place / about.file.format(part)

    def _edit_folder(self, method: str | None) -> Path:
        assert method, "a file of an edit needs the name of its method"
        return self.path / "edits" / method

    def has(self, kind: str, method: str | None = None, part: str = "") -> bool:
        """Whether a file of the run exists."""
        return self.file(kind, method, part).is_file()

    def save(self, values: Mapping[str, Any], method: str | None = None, part: str = "") -> None:
        """Write values by kind, each file whole or not at all.

        An edit and what is saved with it come together: a new folder, or nothing.
        """
        if "edit" in values:
            assert method is not None
            self.discard(method)
            with new_folder(self._edit_folder(method)) as new:
                edit = new / ARTEFACTS["edit"].file
                values["edit"].save(edit)
                for kind in values.keys() - {"edit"}:
                    self._write(kind, new / ARTEFACTS[kind].file, values[kind], _digest(edit))
            return
        for kind, value in values.items():
            bound = self.digest(method) if ARTEFACTS[kind].of_edit and method else None
            self._write(kind, self.file(kind, method, part), value, bound)

    def _write(self, kind: str, path: Path, value: Any, bound: str | None) -> None:
        codec = ARTEFACTS[kind].codec
        if bound is None:
            codec.write(path, value)
        elif codec.to_json is None:
            codec.write(path, replace(value, edit=bound))
        else:
            write_json(path, {**codec.to_json(value), BOUND: bound})

    def read(self, kind: str, method: str | None = None, part: str = "") -> Any:
        """Read a value that was saved.

        Raises:
            NotMeasuredError: it was not made yet; says by which command it is.
            DamagedError: the file is damaged, or of another version.
            MismatchError: it was measured on another edit than the one that is there.
        """
        about, path = ARTEFACTS[kind], self.file(kind, method, part)
        if not path.is_file():
            whose = f" by {method}" if about.of_edit else ""
            option = f" --method {method}" if about.of_edit else ""
            if about.made_by == "unlearn" and self.has("edit", method):
                option += " --again"  # it is made with the edit, which is there
            raise NotMeasuredError(
                f"The run {self.name} has no {about.title}{whose} yet: run "
                f"`mansu {about.made_by} {self.path}{option}`."
            )
        with reading(path):
            if not about.of_edit or kind == "edit":
                return about.codec.read(path)
            if about.codec.from_json is None:
                value = about.codec.read(path)
                bound = value.edit
            else:
                data = read_json(path)
                bound = data.pop(BOUND, None)
                value = about.codec.from_json(data)
        if bound != self.digest(method):
            raise MismatchError(
                f"{path} was measured on another edit than {self.file('edit', method)}: make both "
                f"anew with `mansu run --folder {self.path} --method {method} --again`."
            )
        return value

    def require(self, kind: str, method: str | None = None) -> None:
        """Refuse, as ``read`` does, what is not there or belongs to another edit."""
        bound = ARTEFACTS[kind].of_edit and kind != "edit"
        if bound or not self.has(kind, method):
            self.read(kind, method)

    def digest(self, method: str | None) -> str:
        """sha256 of the file of an edit.

        Raises:
            NotMeasuredError: there is none.
        """
        if not self.has("edit", method):
            self.read("edit", method)
        return _digest(self.file("edit", method))

    def discard(self, method: str) -> None:
        """Delete a method's edit and all that was measured on it."""
        shutil.rmtree(self._edit_folder(method), ignore_errors=True)

    def export_folder(self, method: str, formats: Sequence[str]) -> Path:
        """Where the app exports an edit to."""
        return self.path / "exports" / "-".join([method, *formats])

    def n_files(self) -> int:
        """How many results the run holds."""
        return sum(1 for p in self.path.rglob("*") if p.suffix in (".json", ".safetensors"))

    # Values.

    def attribution(self) -> Attribution:
        return self.read("attribution")

    def circuit(self) -> Circuit:
        return self.read("circuit")

    def mask(self) -> Mask:
        return self.read("mask")

    def trust(self) -> Trust:
        return self.read("trust")

    def base(self, *, nf4: bool) -> Measurement:
        """The unedited model's measurement."""
        return self.read("base_nf4" if nf4 else "base")

    def edits(self) -> tuple[str, ...]:
        """Names of the methods that have an edit here, MANSU first."""
        names = [p.name for p in self.path.glob("edits/*") if self.has("edit", p.name)]
        return tuple(sorted(names, key=lambda n: (n != "mansu", n)))

    def judged(self) -> tuple[str, ...]:
        """Those that have a verdict."""
        return tuple(n for n in self.edits() if self.has("verdict", n))

    def edit(self, method: str) -> Edit:
        return self.read("edit", method)

    def history(self, method: str) -> dict[str, Any]:
        """``steps`` (one object a step), ``stopped``, ``settings``, ``given``, ``seconds``, …"""
        return self.read("history", method)

    def measurement(self, method: str, *, nf4: bool) -> Measurement:
        return self.read("nf4" if nf4 else "full", method)

    def survival(self, method: str) -> NF4Report:
        return self.read("survival", method)

    def formats(self, method: str) -> dict[str, Kept]:
        """How many moved weights change their code, by format."""
        return self.read("formats", method)

    def bounds(self, method: str) -> Bounds:
        return self.read("bounds", method)

    def strengths(self, method: str) -> Strengths:
        return self.read("strengths", method)

    def divergences(self, method: str) -> Divergences:
        return self.read("cad", method)

    def edge_scores(self, method: str) -> Scores:
        """Of the unedited model, the edited one, and that in NF4."""
        return self.read("edges", method)

    def verdict(self, method: str) -> Verdict:
        return self.read("verdict", method)

    def attacks(self, method: str | None) -> Attacks:
        """Recovery attacks on an edit, or (None) on the unedited model."""
        return self.read("base_attacks") if method is None else self.read("attacks", method)

    def timings(self) -> dict[str, float]:
        """Seconds by stage, and ``peak memory`` in GiB."""
        return self.read("timings") if self.has("timings") else {}

    def add_timing(self, stage: str, seconds: float) -> None:
        before = self.timings()
        peak = max(peak_memory(), before.get("peak memory", 0.0))
        self.save({"timings": {**before, stage: round(seconds, 2), "peak memory": peak}})

    # The job at work.

    def status(self) -> Status:
        """What the last job is at.

        Raises:
            DamagedError: status.json is damaged.
        """
        path = self.path / "status.json"
        if not path.is_file():
            return Status()
        with reading(path):
            value = read_json(path)
            step = value.pop("step")
            return typed(Status(**value, step=None if step is None else Step.from_json(step)))

    def set_status(
        self,
        state: str,
        share: float | None = None,
        step: Step | None = None,
        *,
        pid: int | None = None,
        error: str = "",
    ) -> None:
        """Write what a job is at; without a share or a step, the last ones stand.

        Args:
            pid: of the job; this process by default.
        """
        now, pid = time.time(), pid or os.getpid()
        try:
            old = self.status()
        except MansuError:
            old = Status()
        same = old.pid == pid
        step = step or (old.step if same else None)
        share = share if share is not None else old.share if same else 0.0
        status = Status(state, share, step, pid, old.started if same else now, now, error)
        value = {**status.__dict__, "step": None if step is None else _plain(step)}
        write_json(self.path / "status.json", value)

    def record(self, step: Step, share: float) -> None:
        """Keep a step that the job at work reports, and how much of the job is done."""
        line = json.dumps({"time": round(time.time(), 3), **_plain(step)}, ensure_ascii=False)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as events:
            events.write(line + "\n")
        self.set_status("running", share, step)

    def events(self, since: float = 0.0) -> list[tuple[float, Step]]:
        """Every step that was recorded at or after a time (seconds since 1970), in order."""
        path, found = self.path / "events.jsonl", []
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                value = json.loads(line)
                when = float(value.pop("time"))
                if when >= since:
                    found.append((when, typed(Step.from_json(value))))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                continue  # a line that is being written, or was cut off
        return found

    def new_log(self) -> IO[str]:
        """An empty file for what a job prints."""
        return (self.path / "job.log").open("w", encoding="utf-8")

    def log(self) -> str:
        """What the last job of the app printed."""
        path = self.path / "job.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _plain(step: Step) -> dict[str, Any]:
    """A step as strict JSON, without the values that are not finite."""
    values = {name: value for name, value in step.values.items() if isfinite(value)}
    return {**step.to_json(), "values": values}


def _digest(path: Path) -> str:
    about = path.stat()
    return _digest_of(path, about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=64)
def _digest_of(path: Path, *_: int) -> str:
    """Of a file's content; asked again when its time, size or inode is another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory() -> float:
    """The largest memory of this process so far, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def listed() -> list[Run]:
    """Every readable run, the newest first."""
    runs, _ = _found()
    return sorted(runs, key=lambda run: run.manifest["created"], reverse=True)


def unreadable() -> list[str]:
    """A sentence for each run folder that cannot be opened."""
    return _found()[1]


def _found() -> tuple[list[Run], list[str]]:
    runs, refused = [], []
    for manifest in sorted(folder().glob("*/manifest.json"), reverse=True):
        try:
            runs.append(Run.open(manifest.parent))
        except (MansuError, OSError) as error:
            refused.append(str(error))
    return runs, refused
