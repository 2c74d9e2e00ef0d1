"""A run folder: everything measured about one subject and one task, saved as it is made.

manifest.json               what was asked, with which versions; enough to repeat it
task.jsonl                  the facts
attribution.safetensors, circuit.safetensors, mask.safetensors
base.json, base-nf4.json    the unedited model, in full precision and in NF4
base-scores.safetensors     its edge scores by group of pairs, and with the circuit ablated, for CAD
suppressor-<%>.safetensors  those of the suppressor with that forget accuracy
attacks-base.json           recovery attacks on the unedited model
edits/<method>/             edit.safetensors, history.json, full.json, nf4.json,
                            survival.json, formats.json, bound.json, strengths.json,
                            cad.json, verdict.json, attacks.json
status.json                 what is running, how far it is
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mansu import tasks
from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.circuits.mask import Mask
from mansu.errors import MansuError
from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.cad import Divergences
from mansu.evidence.verdict import Verdict
from mansu.files import read_json, write_json
from mansu.measure.scores import Measurement
from mansu.quant.survival import Kept, NF4Report
from mansu.subjects.edit import Edit

VERSION = 1


PACKAGES = ("torch", "transformers", "transformer-lens", "bitsandbytes")


def folder() -> Path:
    """Where runs are kept: ``$MANSU_RUNS``, else ``runs`` in the working directory."""
    return Path(os.environ.get("MANSU_RUNS", "runs"))


@dataclass(frozen=True)
class Run:
    """A run folder. Values are read from it when asked for.

    Attributes:
        path: the folder. manifest: what was asked.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def create(
        cls, subject: str, task: tasks.Task, settings: Mapping[str, Any], path: Path | None = None
    ) -> Run:
        """Make a new run folder; by default named after the time, the task and the subject.

        Raises:
            MansuError: the folder exists and is not empty.
        """
        now = datetime.now(UTC)
        if path is None:
            short = Path(subject).name
            path = folder() / f"{now:%Y%m%d-%H%M%S}-{task.name}-{short}"
        if path.exists() and any(path.iterdir()):
            raise MansuError(f"The folder {path} is not empty: give a new one.")
        manifest = {
            "version": VERSION,
            "created": now.isoformat(timespec="seconds"),
            "subject": subject,
            "task": {
                "name": task.name,
                "title": task.title,
                "description": task.description,
                "provenance": task.provenance,
                "margin": task.margin,
                "tolerance": task.tolerance,
                "digest": task.digest,
            },
            "settings": dict(settings),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
        }
        path.mkdir(parents=True, exist_ok=True)
        (path / "task.jsonl").write_text(task.to_jsonl())
        write_json(path / "manifest.json", manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder.

        Raises:
            MansuError: it is not a run folder, or one of another version.
        """
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise MansuError(f"{path} is not a run folder: it has no manifest.json.")
        manifest = read_json(path / "manifest.json")
        found = manifest.get("version") if isinstance(manifest, dict) else None
        if found != VERSION:
            raise MansuError(
                f"The run folder {path} is of version {found}, and this MANSU reads version "
                f"{VERSION}: make the run again."
            )
        return cls(path, manifest)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def subject(self) -> str:
        return self.manifest["subject"]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.manifest["settings"]

    def has(self, *parts: str) -> bool:
        """Whether a file of the run exists."""
        return self.path.joinpath(*parts).is_file()

    def task(self) -> tasks.Task:
        about = {k: v for k, v in self.manifest["task"].items() if k not in ("name", "digest")}
        text = (self.path / "task.jsonl").read_text()
        return tasks.parse(text, self.manifest["task"]["name"], **about)

    def attribution(self) -> Attribution:
        return Attribution.load(self.path)

    def circuit(self) -> Circuit:
        return Circuit.load(self.path)

    def mask(self) -> Mask:
        return Mask.load(self.path)

    def trust(self) -> dict[str, Any]:
        """How far the circuit can be trusted, as ``pipeline.trust_step`` measured it."""
        return read_json(self.path / "trust.json")

    def base(self, *, nf4: bool) -> Measurement:
        """The unedited model's measurement."""
        name = "base-nf4.json" if nf4 else "base.json"
        return Measurement.from_json(read_json(self.path / name))

    def save_base(self, measurement: Measurement, *, nf4: bool) -> None:
        name = "base-nf4.json" if nf4 else "base.json"
        write_json(self.path / name, measurement.to_json())

    def edits(self) -> tuple[str, ...]:
        """Names of the methods that have an edit here, MANSU first."""
        names = [p.parent.name for p in self.path.glob("edits/*/edit.safetensors")]
        return tuple(sorted(names, key=lambda n: (n != "mansu", n)))

    def judged(self) -> tuple[str, ...]:
        """Those that have a verdict."""
        return tuple(n for n in self.edits() if self.has("edits", n, "verdict.json"))

    def edit_folder(self, method: str) -> Path:
        return self.path / "edits" / method

    def edit(self, method: str) -> Edit:
        path = self.edit_folder(method) / "edit.safetensors"
        if not path.is_file():
            raise MansuError(
                f"The run {self.name} has no edit by {method}: run `mansu unlearn {self.path} "
                f"--method {method}`."
            )
        return Edit.load(path)

    def history(self, method: str) -> dict[str, Any]:
        """``steps`` (one object a step), ``stopped``, ``settings``, ``seconds``."""
        return read_json(self.edit_folder(method) / "history.json")

    def measurement(self, method: str, *, nf4: bool) -> Measurement:
        name = "nf4.json" if nf4 else "full.json"
        return Measurement.from_json(read_json(self.edit_folder(method) / name))

    def survival(self, method: str) -> NF4Report:
        return NF4Report.load(self.edit_folder(method) / "survival.json")

    def formats(self, method: str) -> dict[str, Kept]:
        """How many moved weights change their code, by format."""
        data = read_json(self.edit_folder(method) / "formats.json")
        return {name: Kept(**kept) for name, kept in data.items()}

    def bounds(self, method: str) -> Bounds:
        return Bounds(**read_json(self.edit_folder(method) / "bound.json"))

    def strengths(self, method: str) -> dict[str, Any]:
        """The edit at parts of its strength: ``thinned`` (or scaled), ``points``."""
        return read_json(self.edit_folder(method) / "strengths.json")

    def divergences(self, method: str) -> Divergences:
        return Divergences.from_json(read_json(self.edit_folder(method) / "cad.json"))

    def verdict(self, method: str) -> Verdict:
        return Verdict.from_json(read_json(self.edit_folder(method) / "verdict.json"))

    def attacks(self, method: str | None) -> Attacks:
        """Recovery attacks on an edit, or (None) on the unedited model."""
        folder = self.path if method is None else self.edit_folder(method)
        name = "attacks-base.json" if method is None else "attacks.json"
        return Attacks.from_json(read_json(folder / name))

    def timings(self) -> dict[str, float]:
        """Seconds by step, and ``peak memory`` in GiB."""
        return read_json(self.path / "timings.json") if self.has("timings.json") else {}

    def add_timing(self, step: str, seconds: float) -> None:
        before = self.timings()
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        peak = max(peak, before.get("peak memory", 0.0))
        timings = {**before, step: round(seconds, 2), "peak memory": peak}
        write_json(self.path / "timings.json", timings)

    def status(self) -> dict[str, Any]:
        """What is going on: state, share, message, pid, started, updated. Empty if nothing ever."""
        return read_json(self.path / "status.json") if self.has("status.json") else {}

    def set_status(self, state: str, share: float, message: str) -> None:
        now = time.time()
        old = self.status()
        started = old.get("started", now) if old.get("pid") == os.getpid() else now
        status = {"state": state, "share": share, "message": message, "pid": os.getpid()}
        write_json(self.path / "status.json", {**status, "started": started, "updated": now})


def listed() -> list[Run]:
    """Every readable run, the newest first."""
    found = []
    for manifest in sorted(folder().glob("*/manifest.json"), reverse=True):
        try:
            found.append(Run.open(manifest.parent))
        except MansuError:
            continue
    return sorted(found, key=lambda run: run.manifest["created"], reverse=True)
