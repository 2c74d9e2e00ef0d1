"""The dossier of an edit: all that a reviewer who signs must see, as JSON and as one HTML file.

::

    found = dossier(Run.open("runs/mine"), "mansu")
    found.save("mine.html")          # and mine.json beside it
    print(differences(found, Dossier.load("theirs.json")))

Nothing is measured here, and nothing in it is a path of this machine.
"""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from math import isclose
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mansu import __version__, methods
from mansu.errors import BadInputError, DamagedError, MansuError
from mansu.evidence.attacks import ATTACKS
from mansu.evidence.review import Decision, Review
from mansu.evidence.verdict import ABOUT, LIMITS, Status, Thresholds, Verdict
from mansu.files import json_bytes, read_json, reading, replacing_both
from mansu.job.artefacts import ARTEFACTS
from mansu.job.judging import judged, originals
from mansu.job.runs import Run
from mansu.quant.survival import EDGES
from mansu.report import repeat
from mansu.report.changes import Changes
from mansu.report.changes import changes as changes_of
from mansu.report.flips import FAILING, Flip, counts, flips
from mansu.report.rows import attacked_rows, under
from mansu.settings import configure
from mansu.show import numbers
from mansu.show.sentences import capitalised
from mansu.show.table import Table
from mansu.statistics import Interval
from mansu.subjects.shipped import TABLE

VERSION = 1
MODELS = ("unedited", "unedited, NF4", "this edit", "this edit, NF4")
"""Whose accuracies there are, in order."""


@dataclass(frozen=True)
class About:
    """What was judged.

    Attributes:
        run, made: name of the run, and when it was made. subject, fingerprint, licence: the model.
        task, title, description, provenance, digest: what was to be forgotten.
        rows: of the task, by split. method: the edit's name. by: what the method that made it does.
        settings: of the method. run_settings: of the run. seed: of everything random.
        moved, fraction: how many parameters the edit moves, and what share that is.
    """

    run: str
    made: str
    subject: str
    fingerprint: str
    licence: str
    task: str
    title: str
    description: str
    provenance: str
    digest: str
    rows: Mapping[str, int]
    method: str
    by: str
    settings: Mapping[str, Any]
    run_settings: Mapping[str, Any]
    seed: int
    moved: int
    fraction: float


@dataclass(frozen=True)
class Histogram:
    """Moved weights that NF4 quantises, by log10(update ÷ bin width).

    Attributes:
        edges: of the bins, one more than counts. before, after: counts before and after NF4.
        median: of update ÷ bin width. codes: share of the codes that change.
    """

    edges: Sequence[float]
    before: Sequence[int]
    after: Sequence[int]
    median: float | None
    codes: float | None


@dataclass(frozen=True)
class Dossier:
    """Everything that is shown of one edit.

    Attributes:
        version: of this format. mansu: the version that wrote it. python, packages: what the run
            was made with.
        about: what was judged. status: the verdict together, by the thresholds in ``thresholds``.
        verdict: as ``Verdict.to_json`` gives it. original: the same by the original thresholds;
            None where none was moved.
        thresholds: that the verdict is held against; originals: the task's and MANSU's own.
        accuracies: set → value with interval of each of ``MODELS``.
        histogram: None where the edit was not measured in NF4.
        facts: every row that was asked, with what became of it.
        attacks: attack → value with interval of the unedited and of the edited model; None where
            they were not tried.
        limits: what the verdict does not say. commands: what repeats it.
        files: sha256 of each file that was read, by its place in the run.
        review: who signed, and what was decided; None of a dossier without a signature.
        circuit: what the edit leaves of the circuit; None where its edges were not measured.
        attacked: how many rows the attacks ask, the half that the attacker does not know; None
            where they were not tried, or in a dossier of before.
    """

    version: int
    mansu: str
    python: str
    packages: Mapping[str, str]
    about: About
    status: str
    verdict: Mapping[str, Any]
    original: Mapping[str, Any] | None
    thresholds: Mapping[str, float]
    originals: Mapping[str, float]
    accuracies: Mapping[str, Sequence[Sequence[float] | None]]
    histogram: Histogram | None
    facts: Sequence[Flip]
    attacks: Mapping[str, Sequence[Sequence[float] | None]] | None
    limits: Sequence[str]
    commands: Sequence[str]
    files: Mapping[str, str]
    review: Mapping[str, Any] | None
    circuit: Changes | None = None
    attacked: int | None = None

    @property
    def judged(self) -> Verdict:
        """The verdict by the dossier's thresholds."""
        return Verdict.from_json(self.verdict)

    @property
    def held_against(self) -> tuple[Thresholds, Thresholds]:
        """The dossier's thresholds, and the original ones."""
        now, first = (configure(Thresholds, t, "it") for t in (self.thresholds, self.originals))
        return now, first

    @property
    def signed(self) -> Review | None:
        """The review, if there is one."""
        return None if self.review is None else Review.from_json(self.review)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, to ``schema()``."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def from_json(cls, text: str | bytes) -> Dossier:
        """Read the text of a dossier's JSON file.

        Raises:
            DamagedError: it is something else, damaged, or of another version.
        """
        try:
            text = text.removeprefix(BOM_UTF8) if isinstance(text, bytes) else text
            found = _ADAPTER.validate_json(text, strict=True, extra="forbid")
            _ = found.judged, found.held_against, remarks(found)
            for values in [*found.accuracies.values(), *(found.attacks or {}).values()]:
                _ = [interval(value) for value in values]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DamagedError(
                f"This is no dossier of MANSU ({where}: {first['msg']}): give the JSON file that "
                "lies beside a dossier."
            ) from error
        except (MansuError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"This dossier is damaged ({error}): make it again.") from error
        if found.version != VERSION:
            raise DamagedError(
                f"This dossier is of version {found.version}, and this MANSU reads version "
                f"{VERSION}: make it again."
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> Dossier:
        """Read a dossier's JSON file.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is no dossier.
        """
        with reading(Path(path)):
            return cls.from_json(Path(path).read_bytes())

    def save(self, path: str | Path) -> None:
        """Write the page, and the JSON beside it under the same name, both or neither.

        The old JSON goes before the new page comes: of a single writer, no page has another's
        beside it, also where it is killed.

        Raises:
            BadInputError: the path does not end in .html, or what lies there under the name of the
                JSON is no dossier's. StorageError: one cannot be written.
        """
        from mansu.report.page import page

        path = Path(path)
        beside = beside_page(path)
        data = json_bytes(beside, self.to_json())
        with replacing_both(path, beside) as (new, new_beside):
            new.write_text(page(self), encoding="utf-8")
            new_beside.write_bytes(data)


_ADAPTER = TypeAdapter(Dossier)


def beside_page(path: Path) -> Path:
    """Where the JSON of a dossier's page goes, which no other file is lost for.

    Raises:
        BadInputError: the path does not end in .html, or another file has the JSON's name.
    """
    if path.suffix.lower() != ".html":
        raise BadInputError(f"A dossier's page must end in .html: {path} does not.")
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            found = read_json(beside)
        except MansuError:
            found = None
        if not (isinstance(found, dict) and {"thresholds", "originals"} <= found.keys()):
            raise BadInputError(
                f"A dossier's JSON would take the place of {beside}, which is no dossier's: give "
                "the page another name, or move that file."
            )
    return beside


def schema() -> dict[str, Any]:
    """The JSON schema of a dossier's JSON file, published as ``docs/dossier.schema.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_ADAPTER.json_schema(),
    }


def dossier(run: Run, method: str, changes: Mapping[str, float] | None = None) -> Dossier:
    """The dossier of an edit, from what its run has saved.

    Args:
        changes: thresholds that are not the original ones, by name.

    Raises:
        NotMeasuredError: the edit was not measured in full precision and NF4.
        DamagedError, MismatchError: a file is damaged, or of another edit.
        BadInputError: there is no such threshold, or it is out of range.
    """
    changes, first = changes or {}, originals(run)
    thresholds = first.moved(changes)
    verdict = judged(run, method, changes)
    review = run.read("review", method).to_json() if run.has("review", method) else None
    return Dossier(
        version=VERSION,
        mansu=__version__,
        python=run.manifest["python"],
        packages=run.manifest["packages"],
        about=_about(run, method),
        status=verdict.status,
        verdict=verdict.to_json(),
        original=judged(run, method).to_json() if thresholds != first else None,
        thresholds=asdict(thresholds),
        originals=asdict(first),
        accuracies=_accuracies(run, method),
        histogram=_histogram(run, method),
        facts=flips(run, method),
        attacks=_attacks(run, method),
        limits=repeat.LIMITS,
        commands=repeat.commands(run, method, changes),
        files=dict(_files(run, method)),
        review=review,
        circuit=changes_of(run, method),
        attacked=_attacked(run, method),
    )


def _about(run: Run, method: str) -> About:
    history = run.history(method) if run.has("history", method) else {}
    edit, about, by = run.edit(method), run.about, methods.named(run.method_of(method))
    facts = [fact.split for fact in run.task().facts]
    return About(
        run=run.name,
        made=str(run.manifest["created"]),
        subject=repeat.public_subject(run),
        fingerprint=run.fingerprint,
        licence=TABLE[run.subject].licence if run.subject in TABLE else "unknown to MANSU",
        task=about["name"],
        title=about["title"],
        description=about["description"],
        provenance=about["provenance"],
        digest=about["digest"],
        rows={split: facts.count(split) for split in dict.fromkeys(facts)},
        method=method,
        by=f"{by.title}. {by.about}",
        settings=history.get("settings", {}),
        run_settings=asdict(run.settings),
        seed=run.settings.seed,
        moved=edit.n_moved,
        fraction=history.get("fraction", 0.0),
    )


def _accuracies(run: Run, method: str) -> dict[str, list[list[float] | None]]:
    measured = [run.base(nf4=False), run.base(nf4=True)]
    measured += [run.measurement(method, nf4=nf4) for nf4 in (False, True)]
    sets = [m.sets() for m in measured]
    return {
        title: [s[title].interval.to_json() if title in s else None for s in sets]
        for title in sets[0]
    }


def _histogram(run: Run, method: str) -> Histogram | None:
    if not run.has("survival", method):
        return None
    found = run.survival(method).quantized
    return Histogram(EDGES, found.before, found.after, found.update_over_width, found.share)


def _attacks(run: Run, method: str) -> dict[str, list[list[float] | None]] | None:
    if not (run.has("base_attacks") and run.has("attacks", method)):
        return None
    both = run.attacks(None), run.attacks(method)
    return {
        attack: [a.accuracy(attack).to_json() if attack in a.scores else None for a in both]
        for attack in under(*both)
    }


def _attacked(run: Run, method: str) -> int | None:
    if not run.has("attacks", method):
        return None
    return len(run.attacks(method).scores["none"].rows)


def _files(run: Run, method: str) -> list[tuple[str, str]]:
    """Place in the run and sha256 of what the dossier rests on."""
    kinds = (k for k in ARTEFACTS if "{}" not in ARTEFACTS[k].file and k != "review")
    paths = [run.manifest_file, run.path / "task.jsonl", *(run.file(k, method) for k in kinds)]
    found = []
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append((path.relative_to(run.path).as_posix(), digest))
    return found


def about_table(found: Dossier) -> Table:
    """What was judged, a line a thing."""
    a = found.about
    rows = [
        ("Subject", f"{a.subject}, fingerprint {a.fingerprint}, licence {a.licence}"),
        ("Task", f"{a.title}: {a.description}"),
        ("Its source", a.provenance),
        ("Its rows", ", ".join(f"{n} {split}" for split, n in a.rows.items())),
        ("Its digest", a.digest),
        ("Edit", a.method),
        ("Method", a.by),
        ("Weights moved", f"{a.moved:,} ({numbers.percent(a.fraction, 3)} of all)"),
        ("Run", f"{a.run}, made {a.made}"),
        ("Seed", str(a.seed)),
    ]
    return Table(("What", "Value"), rows, align="<<")


def accuracy_table(found: Dossier) -> Table:
    """A row a set, a column a model."""
    rows = [
        (title, *(numbers.between(interval(v)) for v in values))
        for title, values in found.accuracies.items()
    ]
    return Table(("Set", *map(capitalised, MODELS)), rows)


def attacks_table(found: Dossier) -> Table | None:
    """A row an attack; None where they were not tried."""
    if found.attacks is None:
        return None
    rows = [
        (ATTACKS.get(name, name), *(numbers.between(interval(v)) for v in both))
        for name, both in found.attacks.items()
    ]
    relearned = found.attacks.get("relearning", (None, None))
    notes = [
        attacked_rows(found.attacked),
        *(
            f"Relearning of {of} ended early, since its loss became infinite: what it would have "
            "brought back is not known."
            for of, value in zip(("the unedited model", "this edit"), relearned, strict=True)
            if value is None
        ),
    ]
    return Table(("Accuracy under", "Unedited", "This edit"), rows, notes=notes)


def files_table(found: Dossier) -> Table:
    """A row a file that was read."""
    return Table(("File of the run", "sha256"), list(found.files.items()), align="<<")


def counts_table(found: Dossier) -> Table:
    """How many facts became what."""
    rows = [(capitalised(kind), str(n)) for kind, n in counts(found.facts).items()]
    return Table(("What became of it", "Rows"), rows)


def failing(found: Dossier) -> list[str]:
    """The kinds of facts that fail or flip, as there are some."""
    return [kind for kind in counts(found.facts) if kind in FAILING]


def thresholds_table(found: Dossier) -> Table:
    """A row a threshold: what it is, what it was, and whether it was moved."""
    rows = []
    for name, (title, unit) in LIMITS.items():
        now, first = found.thresholds[name], found.originals[name]
        shown, was = (numbers.amount(v, unit).lstrip("+") for v in (now, first))
        rows.append((title, shown, was, "the original" if now == first else "MOVED"))
    return Table(("Threshold", "Here", "Originally", "Moved?"), rows, align="<>><")


def moved(now: Mapping[str, float], first: Mapping[str, float]) -> str:
    """Which thresholds are not the original ones, and what they were."""
    parts = []
    for name, (title, unit) in LIMITS.items():
        if not isclose(now[name], first[name], abs_tol=1e-9):  # 0.3 of a slider and of a link
            shown, was = (numbers.amount(v, unit).lstrip("+") for v in (now[name], first[name]))
            parts.append(f"{title.lower()} {shown} (originally {was})")
    return "; ".join(parts)


def remarks(found: Dossier) -> list[str]:
    """What whoever reads a signature must know of it, a sentence each.

    Raises:
        BadInputError: the signature, or a threshold that it was made by, cannot be.
    """
    signed, said = found.signed, []
    if signed is None:
        return said
    if signed.decision == "accepted" and found.status != "passed":
        said.append(f"Accepted although the verdict is {found.status}.")
    if signed.seen != found.status:
        said.append(f"It was signed when the verdict was {signed.seen}.")
    then = asdict(found.held_against[1].moved(signed.thresholds))
    by, others = moved(then, found.originals), moved(found.thresholds, then)
    if by or others:
        by = f"by moved thresholds: {by}" if by else "by the original thresholds"
        said.append(f"It was signed {by}{'; the verdict here is by others' if others else ''}.")
    if signed.statuses is None or signed.files is None:
        said.append(
            "It was signed in an earlier MANSU, which did not keep the four statuses and the "
            "evidence of then: whether they have changed since is unknown."
        )
        return said
    were = [
        f"{p.title} was {was} (here {p.status})"
        for p in found.judged.properties
        if (was := signed.statuses[p.name]) != p.status
    ]
    if were:
        said.append(f"It was signed when {', '.join(were)}.")
    if other := news(signed.files, evidence(found)):
        said.append(f"The evidence has changed since it was signed ({other}).")
    return said


def evidence(found: Dossier) -> dict[str, str]:
    """sha256 of the measurements that a dossier rests on, by the file's name.

    (Its place would be another one after the edit was given another name.)
    """
    names = {PurePosixPath(place).name: digest for place, digest in found.files.items()}
    return {name: digest for name, digest in names.items() if name in _EVIDENCE}


_EVIDENCE = {
    a.file: a
    for kind, a in ARTEFACTS.items()
    if kind not in ("review", "verdict", "timings", "search", "marks")
}
"""Measurements: not what follows from them, how long they took, or what somebody wrote."""


def news(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two results of ``evidence``: ``new: recovery attacks``; else empty.

    What is new of the run itself was made for another edit, or comes with what is new of this one.
    """
    kinds = {
        "new": [n for n in now if n not in then and _EVIDENCE[n].of_edit],
        "changed": [n for n in then if then[n] != now.get(n, then[n])],
        "gone": [n for n in then if n not in now],
    }
    return "; ".join(
        f"{kind}: {', '.join(_EVIDENCE[n].title if n in _EVIDENCE else n for n in names)}"
        for kind, names in kinds.items()
        if names
    )


def review_of(found: Dossier, decision: Decision, name: str, notes: Mapping[str, str]) -> Review:
    """A decision on what a dossier shows, dated today, to be saved with its run.

    ::

        run.save({"review": review_of(found, "rejected", "Ada", {"gap": "4 facts."})}, "mansu")

    Raises:
        BadInputError: as ``Review``.
    """
    verdict = found.judged
    away = {n: v for n, v in found.thresholds.items() if v != found.originals[n]}
    statuses: Mapping[str, Status] = {p.name: p.status for p in verdict.properties}
    today = date.today().isoformat()
    return Review(decision, name, today, verdict.status, notes, away, statuses, evidence(found))


def notes_table(signed: Review) -> Table:
    """What the reviewer says of each property; those without a note are left out."""
    rows = [
        (capitalised(title), signed.notes[name])
        for name, title in ABOUT.items()
        if name in signed.notes
    ]
    return Table(("Property", "Note"), rows, align="<<")


def facts_table(found: Dossier, kinds: Sequence[str]) -> Table:
    """A row a fact that became one of these."""
    rows = [
        (capitalised(f.kind), f.split, f"{f.prompt} →{f.answer}", f.path)
        for f in found.facts
        if f.kind in kinds
    ]
    head = ("What became of it", "Split", "Fact", "Before → after → after NF4")
    return Table(head, rows, align="<<<<")


def differences(one: Dossier, other: Dossier) -> Table:
    """Two dossiers beside each other: what was judged, by what, and how; differences are marked."""

    def line(what: str, *values: str) -> tuple[str, ...]:
        return (what, *values, "" if values[0] == values[1] else "differs")

    both = (one, other)
    rows = [
        line(what, *(str(getattr(d.about, field)) for d in both))
        for what, field in (
            ("Run", "run"),
            ("Subject", "subject"),
            ("Fingerprint", "fingerprint"),
            ("Task", "title"),
            ("Digest of the task", "digest"),
            ("Edit", "method"),
            ("Method", "by"),
            ("Seed", "seed"),
        )
    ]
    settings = [d.about.settings for d in both]
    for name in dict.fromkeys(name for s in settings for name in s):
        values = [str(s.get(name, numbers.NOTHING)) for s in settings]
        if values[0] != values[1]:
            rows.append(line(f"Setting: {name.replace('_', ' ')}", *values))
    for name, (title, unit) in LIMITS.items():
        rows.append(line(title, *(numbers.amount(d.thresholds[name], unit) for d in both)))
    for name, title in ABOUT.items():
        properties = [getattr(d.judged, name) for d in both]
        rows.append(line(capitalised(title), *(p.status for p in properties)))
        rows.append(line("  decided by", *(str(p.worst or numbers.NOTHING) for p in properties)))
    rows.append(line("Together", *(f"{d.status} ({d.judged.counts})" for d in both)))
    rows.append(line("Decision", *(_decided(d) for d in both)))
    names = [f"{d.about.run}, {d.about.method}" for d in both]
    if names[0] == names[1]:
        names = [f"{names[0]} (first)", f"{names[1]} (second)"]
    return Table(("What", *names, "Alike?"), rows, "two dossiers", "<<<<")


def _decided(found: Dossier) -> str:
    signed = found.signed
    return "not signed" if signed is None else f"{signed.decision}, {signed.name}, {signed.date}"


def interval(value: Sequence[float] | None) -> Interval | None:
    """A value with its interval, as a dossier holds it."""
    return None if value is None else Interval.from_json(value)
