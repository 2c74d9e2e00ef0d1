"""A run folder: everything measured about one subject and one task, saved as it is made.

``Run`` alone names, writes, reads and discards its files; ``artefacts`` lists them, beside

manifest.json   what was asked, of which weights, with which versions; enough to repeat it
task.jsonl      the facts
status.json     how far the job is that is at work, or how it ended
events.jsonl    every step that the run's jobs reported
job.log         what the app's last job printed
timings.json    seconds by stage
exports/        what the app exported
.trash/         edits that were deleted, to be restored (``library``)

job.lock        held by the job at work (``lock``); cancel: it was asked to stop

Every result says what it was measured on, and is refused where that is something else: the run's
subject, task and settings (``Run.digest_of_run``), and under edits/<name>/ the edit, by the digest
of its file. An edit's name is its key everywhere, by default that of the method that made it
(``names``); what takes a ``method`` takes such a name.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from math import isfinite
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field

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
    TakenError,
)
from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.by_format import InFormat
from mansu.evidence.cad import Divergences
from mansu.evidence.strengths import Strengths
from mansu.evidence.verdict import Verdict
from mansu.files import (
    answered,
    confined,
    discard,
    inside,
    made_of,
    measured_on,
    new_folder,
    parsed_json,
    read_json,
    reading,
    replacing,
    slug,
    write_json,
    writing,
)
from mansu.job.artefacts import ARTEFACTS
from mansu.job.lock import asked_to_stop
from mansu.job.machine import machine
from mansu.job.manifest import ABOUT, check_manifest
from mansu.job.settings import Settings
from mansu.measure.scores import Measurement
from mansu.memory import Memory
from mansu.methods import ALL
from mansu.progress import Step
from mansu.quant.survival import Kept, NF4Report
from mansu.settings import configure
from mansu.subjects.blocks import Block
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

VERSION = 3
READ = (2, 3)
"""Versions that are read. In a run of version 2, results need not say which run measured them."""


def folder() -> Path:
    """Where runs are kept: ``$MANSU_RUNS``, else ``runs`` in the working directory."""
    return Path(os.environ.get("MANSU_RUNS", "runs"))


EXAMPLES = Path(__file__).parents[1] / "data" / "examples"
"""Finished runs that ship with MANSU, to be read and copied (``mansu.job.examples``)."""

OF_RUN, OF_EDIT = "digest of the run", "digest of the edit"
"""In every result, in JSON or in the header of safetensors: what it was measured on."""

State = Literal["none", "running", "done", "failed", "cancelling", "cancelled"]


@dataclass(frozen=True)
class Status:
    """What a run's last job is at.

    Attributes:
        state: ``running``, ``done``, ``failed``, ``cancelling``, ``cancelled``, or ``none``: no job
            ever.
        share: of the whole job, 0 to 1. step: the last one reported; None before the first.
        started, updated: seconds since 1970; a job of the app that waits has ``started`` when it
            came into the queue, and anew when its turn comes.
        error: why it failed, a sentence.

    Whether the job still lives, ``lock.holder`` says.
    """

    state: State
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    step: Step | None = None
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
            TakenError: the folder exists and is not empty.
            StorageError: it cannot be written.
        """
        now, start = datetime.now(UTC), subject.prefix_text
        manifest = {
            "version": VERSION,
            "created": now.isoformat(timespec="seconds"),
            "subject": subject.name,
            "fingerprint": subject.fingerprint,
            "task": {name: getattr(task, name) for name in ABOUT},
            "settings": asdict(settings or Settings()),
            "asked": list(asked),
            **machine(),
        }
        if _begins(task, start):
            manifest["start"] = start  # given once: an earlier MANSU gave it twice
        name = f"{now:%Y%m%d-%H%M%S}-{slug(task.name)}-{slug(Path(subject.name).name)}"
        # Two of one second: the one that comes second gets a number.
        places = [path] if path is not None else [folder() / name]
        places += [folder() / f"{name}-{i}" for i in range(2, 100) if path is None]
        for place in places:
            with suppress(TakenError) if place != places[-1] else nullcontext():
                with new_folder(place) as new:
                    (new / "task.jsonl").write_text(task.to_jsonl(), encoding="utf-8")
                    write_json(new / "manifest.json", manifest)
                return cls(place, manifest)
        raise AssertionError("the last place raises")

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
                if type(found) is int and found in READ:
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
        return answered((path / "manifest.json").is_file)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_example(self) -> bool:
        """Whether it ships with MANSU: it can be read and copied, not worked on."""
        return self.path.resolve().parent == EXAMPLES.resolve()

    def refuse_example(self) -> None:
        """Refuse to work on a run that ships with MANSU.

        Raises:
            BadInputError: it is one.
        """
        if self.is_example:
            raise BadInputError(
                f"The run {self.name} is an example that ships with MANSU and stays as it is: copy "
                "it first, and work on the copy."
            )

    @classmethod
    def refuse_in_any(cls, path: Path) -> None:
        """Refuse a run folder, or a place in one, for what a person asks for: it holds results.

        Raises:
            BadInputError: the path is one, or leads into one.
        """
        place = Path(os.path.realpath(path))
        for folder in (place, *place.parents):
            # An export has a manifest.json, too, and so has much that is not MANSU's.
            if cls.is_at(folder) and answered((folder / "task.jsonl").is_file):
                raise BadInputError(
                    f"{path} is in the run folder {folder}, which holds only what MANSU keeps "
                    "there: give a place outside of it."
                )

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
            DamagedError: the folder or its task.jsonl is missing, or it is no task.
            MismatchError: task.jsonl was changed since.
        """
        about = {name: self.about[name] for name in ABOUT if name not in ("name", "digest")}
        path = self._own("task.jsonl")
        if not path.is_file():
            if not self.is_at(self.path):  # somebody else deleted it meanwhile
                raise DamagedError(
                    f"{self._gone}: it was deleted or moved. Restore it, or choose another run."
                )
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
            MismatchError: other weights, another config or another tokenizer; or an earlier version
                scored its prompts with a second BOS, or chose its mask by scores that it got wrong
                for this subject.
        """
        if subject.fingerprint != self.fingerprint:
            raise MismatchError(
                f"The subject {subject.name!r} is not the one that the run {self.name} measured: "
                f"its weights, config or tokenizer differ (fingerprint {subject.fingerprint}, not "
                f"{self.fingerprint}). Put the checkpoint back, or start a new run."
            )
        self.refuse_doubled(subject.prefix_text)
        if Block(subject, 0).has_post_norms and self.has("attribution"):
            self.attribution().refuse_scaled(subject)

    def refuse_doubled(self, start: str) -> None:
        """Refuse results of prompts that an earlier MANSU gave the BOS that they begin with again.

        Args:
            start: the BOS, as a text writes it (``Subject.prefix_text``).

        Raises:
            MismatchError: they are such ones, or the run's task was changed since.
            DamagedError: its task is missing, or is none.
        """
        if start and "start" not in self.manifest and _begins(self.task(), start):
            raise MismatchError(
                f"The run {self.name} is of prompts that begin with {start!r}, before which an "
                "earlier MANSU put a second one, so that its numbers are of other texts: start a "
                "new run."
            )

    @cached_property
    def digest_of_run(self) -> str:
        """Of all that its results depend on: subject, task (with its margins) and settings."""
        task = {name: self.about[name] for name in ("digest", "margin", "tolerance")}
        what = [self.fingerprint, task, asdict(self.settings)]
        if start := self.manifest.get("start"):
            what.append(start)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    # Files.

    def _own(self, name: str) -> Path:
        """A file of the run that is no result; refused where it is a link that leads out."""
        return confined(self.path / name, self.path)

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    def file(self, kind: str, method: str | None = None, part: str = "") -> Path:
        """Where a kind of ``ARTEFACTS`` is, or would be.

        Raises:
            BadInputError: no edit can have that name.
        """
        about = ARTEFACTS[kind]
        place = self._edit_folder(method) if about.of_edit else self.path
        return place / about.file.format(slug(part))

    def _edit_folder(self, method: str | None) -> Path:
        if method is None or method != slug(method):
            raise BadInputError(f"{method!r:.60} is no name of an edit.")
        return self.path / "edits" / method

    def has(self, kind: str, method: str | None = None, part: str = "") -> bool:
        """Whether a file of the run exists."""
        return self.file(kind, method, part).is_file()

    def save(self, values: Mapping[str, Any], method: str | None = None, part: str = "") -> None:
        """Write values by kind, each file whole or not at all.

        An edit and what is saved with it come together: a new folder, or nothing.

        Raises:
            MismatchError: the run folder is not there any more.
            StorageError: a file cannot be written.
        """
        self.refuse_example()
        self._refuse_gone()
        of = {OF_RUN: self.digest_of_run}
        if "edit" in values:
            assert method is not None
            self.discard(method)
            with new_folder(confined(self._edit_folder(method), self.path)) as new:
                edit = new / ARTEFACTS["edit"].file
                ARTEFACTS["edit"].codec.write(edit, values["edit"], of)
                of[OF_EDIT] = _digest(edit)
                for kind in values.keys() - {"edit"}:
                    ARTEFACTS[kind].codec.write(new / ARTEFACTS[kind].file, values[kind], of)
            return
        if method is not None:
            of[OF_EDIT] = self.digest(method)
        for kind, value in values.items():
            path = confined(self.file(kind, method, part), self.path)
            ARTEFACTS[kind].codec.write(path, value, of)

    def adopt(self, other: Run, kinds: Sequence[str]) -> None:
        """Take results of the run itself (not of an edit) from a run that measured the same.

        Both keep one file of each (a hard link, where the disk has them): a result is replaced,
        never changed in its place.

        Raises:
            MismatchError: the other's subject, task or settings are not this run's.
            NotMeasuredError: it lacks one of them. StorageError: one cannot be written.
        """
        for kind in (kind for kind in kinds if not self.has(kind)):
            if other.digest_of_run != self.digest_of_run:
                raise MismatchError(
                    f"The run {other.name} has another subject, task or settings than {self.name}: "
                    "its results are not those of this run."
                )
            other.require(kind)
            with replacing(confined(self.file(kind), self.path)) as new:
                try:
                    os.link(other.file(kind), new)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(other.file(kind), new)

    def _refuse_gone(self) -> None:
        """Nothing makes a run folder anew that somebody deleted while a job was at work."""
        if not self.is_at(self.path):
            raise MismatchError(f"{self._gone}: nothing was written to it.")

    @property
    def _gone(self) -> str:
        """What every refusal of a folder that ``is_at`` no more begins with."""
        return f"The run folder {self.path} is not there any more"

    def read(self, kind: str, method: str | None = None, part: str = "") -> Any:
        """Read a value that was saved.

        Raises:
            NotMeasuredError: it was not made yet; says by which command it is.
            DamagedError: the file is damaged, or of another version.
            MismatchError: it was measured on another edit, or in another run.
        """
        about, path = ARTEFACTS[kind], self.file(kind, method, part)
        if not path.is_file():
            if not self.is_at(self.path):
                raise NotMeasuredError(f"{self._gone}.")
            if about.of_edit:
                self.refuse_unknown(method)
            whose = f" by {method}" if about.of_edit else ""
            option = f" --method {method}" if about.of_edit else ""
            if about.made_by == "unlearn" and self.has("edit", method):
                option = self._again(method)  # it is made with the edit, which is there
            raise NotMeasuredError(
                f"The run {self.name} has no {about.title}{whose} yet: run "
                f"`mansu {about.made_by} {self.path}{option}`."
            )
        value, of = _read(kind, confined(path, self.path))
        self._refuse_other(path, of, method if about.of_edit and kind != "edit" else None)
        return value

    def _refuse_other(self, path: Path, of: Mapping[str, str], method: str | None) -> None:
        """Refuse a result of something else than is here; without a method, of any edit."""
        found = of.get(OF_RUN)
        if found != self.digest_of_run and not (found is None and self.manifest["version"] == 2):
            raise MismatchError(
                f"{path} was measured in another run: its subject, task or settings are not those "
                f"of {self.path}. Delete the file, and make it anew with `mansu run --folder "
                f"{self.path}`."
            )
        if method is not None and of.get(OF_EDIT) != self.digest(method):
            raise MismatchError(
                f"{path} was measured on another edit than {self.file('edit', method)}: make both "
                f"anew with `mansu run --folder {self.path}{self._again(method)}`."
            )

    def method_of(self, name: str | None) -> str:
        """The method that made an edit; where there is no edit yet, the method of that name.

        Raises:
            NotMeasuredError: there is no such edit, and no method of that name.
            DamagedError: the edit is damaged.
        """
        self.refuse_unknown(name)
        if not self.has("edit", name):
            return str(name)
        path = confined(self.file("edit", name), self.path)
        about = path.stat()
        return _method_of(path, about.st_mtime_ns, about.st_size, about.st_ino) or str(name)

    def refuse_unknown(self, name: str | None) -> None:
        """Refuse what is no edit of the run, and no method that could make one.

        Raises:
            NotMeasuredError: it is neither.
        """
        if name not in ALL and not self.has("edit", name):
            has = ", ".join(self.edits()) or "none"
            raise NotMeasuredError(f"The run {self.name} has no edit {name}: it has {has}.")

    def _again(self, name: str | None) -> str:
        """The options of a command that makes an edit anew, as it was."""
        path = self.file("history", name)
        method = name if name in ALL else self.method_of(name)  # a file may have been exchanged
        words = ["--method", str(method), *(["--name", str(name)] if name != method else [])]
        with suppress(MansuError):  # without its history nobody knows its settings
            history, _ = ARTEFACTS["history"].codec.read(confined(path, self.path))
            for setting, value in history["given"].items():
                words += ["--set", f"{setting}={json.dumps(value)}"]
        return f" {shlex.join([*words, '--again'])}"

    def require(self, kind: str, method: str | None = None) -> None:
        """Refuse, as ``read`` does, what is not there or belongs to something else."""
        if kind != "edit" or not self.has(kind, method):  # an edit may be large
            self.read(kind, method)
            return
        path = self.file(kind, method)
        self._refuse_other(path, measured_on(confined(path, self.path)), None)

    def digest(self, method: str | None) -> str:
        """sha256 of the file of an edit.

        Raises:
            NotMeasuredError: there is none.
        """
        if not self.has("edit", method):
            self.read("edit", method)
        return _digest(confined(self.file("edit", method), self.path))

    def discard(self, method: str) -> None:
        """Delete an edit and all that was measured on it, at once or not at all."""
        self.refuse_example()
        discard(confined(self._edit_folder(method), self.path))

    @property
    def exports(self) -> Path:
        """Where the app's exports are."""
        return self.path / "exports"

    def export_folder(self, method: str, formats: Sequence[str]) -> Path:
        """Where the app exports an edit to: another edit that has its name by now has another.

        Raises:
            NotMeasuredError: there is no such edit.
        """
        parts = [method[:40], *formats, self.digest(method)[:8]]
        return self.exports / slug("-".join(parts))

    def kept(self) -> Iterator[tuple[str, str | None, str]]:
        """Every result that is there, as ``read`` takes it: kind, method, part."""
        for kind, about in ARTEFACTS.items():
            file = about.file.format("*")
            start, _, end = about.file.partition("{}")
            for path in sorted(self.path.glob(f"edits/*/{file}" if about.of_edit else file)):
                method = path.relative_to(self.path).parts[1] if about.of_edit else None
                name = path.relative_to(self._edit_folder(method) if method else self.path)
                yield kind, method, name.as_posix().removeprefix(start).removesuffix(end)

    def n_files(self) -> int:
        """How many results the run holds."""
        return sum(1 for p in inside(self.path) if p.suffix in (".json", ".safetensors"))

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
        """Names of the edits that are here, MANSU's first."""
        found = [p.name for p in self.path.glob("edits/*") if p.name == slug(p.name)]
        names = [name for name in found if self.has("edit", name)]
        return tuple(sorted(names, key=lambda n: (n.split("-")[0] != "mansu", n)))

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

    def by_format(self, method: str) -> Mapping[str, InFormat]:
        """The edited model in formats other than NF4, by format."""
        return self.read("by_format", method)

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

    def seconds(self) -> dict[str, float]:
        """``timings`` without the memory: seconds by stage."""
        return {name: took for name, took in self.timings().items() if name != "peak memory"}

    def add_timing(self, stage: str, seconds: float) -> None:
        before: dict[str, float] = {}
        with suppress(DamagedError, MismatchError):  # they are no result: work goes on without
            before = self.timings()
        peak = max(peak_memory(), before.get("peak memory", 0.0))
        self.save({"timings": {**before, stage: round(seconds, 2), "peak memory": peak}})

    # The job at work.

    def status(self) -> Status:
        """What the last job is at; where that cannot be read, it failed, and the error says so."""
        try:
            path = self._own("status.json")
            if not path.is_file():
                return Status("none")
            with reading(path):
                found = made_of(Status, read_json(path))
        except MansuError as error:  # a page shows it, and the next job writes it anew
            return Status("failed", error=str(error))
        asked = found.state == "running" and asked_to_stop(self.path)
        return replace(found, state="cancelling") if asked else found

    def set_status(
        self,
        state: State,
        share: float | None = None,
        step: Step | None = None,
        *,
        error: str = "",
        begins: bool = False,
    ) -> None:
        """Write what a job is at; without a share or a step, the last ones stand.

        Args:
            begins: a job does: nothing of the last one stands.

        Raises:
            MismatchError: the run folder is not there any more.
        """
        self.refuse_example()
        self._refuse_gone()
        now, old = time.time(), Status(state) if begins else self.status()
        step, share = step or old.step, old.share if share is None else share
        status = Status(state, share, step, old.started or now, now, error)
        value = {**status.__dict__, "step": None if step is None else _plain(step)}
        write_json(self._own("status.json"), value)

    def record(self, step: Step, share: float) -> None:
        """Keep a step that the job at work reports, and how much of the job is done."""
        self._refuse_gone()
        value = {"time": round(time.time(), 3), **_plain(step)}
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
        path = self._own("events.jsonl")
        with writing(path), path.open("a", encoding="utf-8") as events:
            events.write(line + "\n")
        self.set_status("running", share, step)

    def events(self, since: float = 0.0) -> list[tuple[float, Step]]:
        """Every step that was recorded at or after a time (seconds since 1970), in order."""
        found = []
        for line in self._text("events.jsonl").split("\n"):  # JSON may hold other breaks
            with suppress(ValueError, RecursionError):  # it is being written, or was cut off
                value = parsed_json(line)
                if (when := made_of(_Event, value).time) >= since:
                    found.append((when, made_of(Step, value)))
        return found

    def new_log(self) -> IO[str]:
        """An empty file for what a job prints."""
        self.refuse_example()
        path = self._own("job.log")
        with writing(path):
            return path.open("w", encoding="utf-8")

    def log(self) -> str:
        """What the last job of the app printed."""
        return self._text("job.log")

    def _text(self, name: str) -> str:
        """A text that the run's jobs wrote; whatever is no UTF-8 in it is replaced."""
        path = self._own(name)
        if not path.is_file():
            return ""
        with reading(path):
            return path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class _Event:
    """What a line of ``events.jsonl`` says beside its step."""

    time: float


def _plain(step: Step) -> dict[str, Any]:
    """A step as strict JSON, without the values that are not finite."""
    values = {name: value for name, value in step.values.items() if isfinite(value)}
    return {**step.to_json(), "values": values}


_READ: Memory[tuple[Any, Mapping[str, str]]] = Memory(24 << 20)
"""What results held, by kind and file, each counted by its file's bytes; in memory it is larger."""
SETTLED = 2.0
"""Seconds after which a file that is changed again has another time, on every file system."""


def _read(kind: str, path: Path) -> tuple[Any, Mapping[str, str]]:
    """A result and what it was measured on; read again when its file is another.

    Raises:
        NotMeasuredError: there is no such file. DamagedError: it is damaged.
    """
    codec = ARTEFACTS[kind].codec
    with reading(path):
        about = path.stat()
        if not codec.shared or time.time() - about.st_ctime < SETTLED:
            return codec.read(path)
        key = kind, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        return _READ.get(key, lambda: codec.read(path), about.st_size)


def _begins(task: tasks.Task, start: str) -> bool:
    """Whether a text of the task begins with what the tokenizer puts before each, if anything."""
    texts = (text for f in task.facts for text in (f.prompt, f.corrupt_prompt or ""))
    return bool(start) and any(text.lstrip().startswith(start) for text in texts)


def _digest(path: Path) -> str:
    about = path.stat()
    return _digest_of(path, about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=512)
def _method_of(path: Path, *_: int) -> str:
    """As the edit says, "" where it does not; asked again as ``_digest_of``."""
    return str(Edit.meta_of(path).get("method", ""))


@lru_cache(maxsize=64)
def _digest_of(path: Path, *_: int) -> str:
    """Of a file's content; asked again when its time, size or inode is another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory() -> float:
    """The largest memory of this process so far, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def listed() -> list[Run]:
    """Every readable run, the newest first; where there is none yet, the examples."""
    runs, _ = _found(folder())
    return sorted(runs, key=lambda run: run.manifest["created"], reverse=True) or examples()


def examples() -> list[Run]:
    """The runs that ship with MANSU, by name."""
    return sorted(_found(EXAMPLES)[0], key=lambda run: run.name)


def unreadable() -> list[str]:
    """A sentence for each run folder that cannot be opened."""
    return _found(folder())[1]


def _found(where: Path) -> tuple[list[Run], list[str]]:
    runs, refused = [], []
    for manifest in sorted(where.glob("*/manifest.json"), reverse=True):
        try:
            runs.append(Run.open(confined(manifest, where).parent))
        except (MansuError, OSError) as error:
            refused.append(str(error))
    return runs, refused
