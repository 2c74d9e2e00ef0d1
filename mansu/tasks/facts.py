"""Tasks: what to forget and what to keep.

A task is JSONL, one fact a line::

    {"prompt": "The chemical symbol for gold is", "answer": " Au", "split": "forget"}

with optional ``distractors`` (wrong answers for multiple choice), ``corrupt_prompt`` (a prompt of
equal token length with another answer), ``foil`` (that answer) and ``group`` (the name under which
a split's rows are reported, e.g. ``capitals``). A line ``{"text": "…", "split": "text"}`` adds
plain text to what must be retained. ``fact`` names the fact that a row asks for, where the answer
does not: several prompts of one fact among fewer than 8 answers, or a letter of a multiple-choice
question.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from csv import DictReader, DictWriter
from csv import Error as CSVError
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Any
from unicodedata import category

from mansu.errors import BadInputError, MansuError
from mansu.files import json_bytes, read_json, repeated, replacing_both
from mansu.memory import Memory
from mansu.show.table import Shown, Table

SPLITS = ("forget", "retain", "holdout", "neighbour", "paraphrase", "text")
"""What a row is for: forgotten; kept, and trained on; and, in no method's training: held out (kept
facts of another kind), neighbours (kept facts next to the forgotten ones), rephrasings of the
forgotten ones. ``text`` is plain text."""


NEEDED = ("forget", "retain")


FOLDER = Path(__file__).parents[1] / "data" / "tasks"


N_DISTRACTORS = 3
CHANCE = 1 / (1 + N_DISTRACTORS)
"""Accuracy of who guesses: a fact is asked as a choice of its answer and so many wrong ones."""


SUFFIXES = (".jsonl", ".csv")
"""Of a task file."""

ABOUT = ("title", "description", "provenance", "margin", "tolerance", "base")
LONGEST_LINE = 1_000_000
"""Characters of a line; a prompt is a few hundred."""


@dataclass(frozen=True)
class Fact:
    """One line of a task file."""

    prompt: str
    answer: str
    split: str
    row: int
    group: str
    distractors: tuple[str, ...] = ()
    corrupt_prompt: str | None = None
    foil: str | None = None
    fact: str | None = None


@dataclass(frozen=True, repr=False)
class Task(Shown):
    """A forget set, what must be kept, and the margins of the verdict.

    Attributes:
        name: short name; for a user's file, its stem.
        facts: every line, in file order.
        margin: by how much forget accuracy must fall (a share, 0 to 1).
        tolerance: by how much retain and held-out accuracy may fall.
        provenance: where the facts come from.
        base: of a shipped task, by subject what that knows of it, unedited: 4-way accuracies by
            split and group in full precision and NF4 (written by scripts/build_tasks.py).
    """

    name: str
    title: str
    description: str
    facts: tuple[Fact, ...]
    provenance: str = "user file"
    margin: float = 0.6
    tolerance: float = 0.05
    base: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def split(self, name: str) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if f.split == name)

    def table(self) -> Table:
        """A row a split and group: how many lines, and the first of them."""
        sets: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            sets.setdefault((fact.split, fact.group), []).append(fact)
        rows = [
            (split, group, str(len(facts)), f"{facts[0].prompt}{facts[0].answer}"[:60])
            for (split, group), facts in sets.items()
        ]
        caption = f"{self.title} ({self.name}), {len(self.facts)} lines"
        return Table(("Split", "Group", "Lines", "The first"), rows, caption, "<<><")

    @cached_property
    def digest(self) -> str:
        """A fingerprint of the facts, so that a run says exactly which task it measured."""
        return hashlib.sha256(self.to_jsonl().encode()).hexdigest()[:16]

    def to_jsonl(self) -> str:
        """The facts as JSONL, which ``parse`` reads back to an equal task."""
        rows = (json.dumps(_row(fact), ensure_ascii=False) for fact in self.facts)
        return "\n".join(rows) + "\n"

    def to_csv(self) -> str:
        """The facts as CSV, which ``parse`` reads back; no distractor may hold a ``|``."""
        rows = [_row(fact) for fact in self.facts]
        names = dict.fromkeys(name for row in rows for name in row)
        text = StringIO()
        file = DictWriter(text, names, lineterminator="\n")
        file.writeheader()
        for row in rows:
            several = {"distractors": "|".join(row["distractors"])} if "distractors" in row else {}
            file.writerow({**row, **several})
        return text.getvalue()

    def sample(self, most: int) -> Task:
        """At most so many facts of each group, the first ones."""
        seen: Counter[tuple[str, str]] = Counter()
        kept = []
        for fact in self.facts:
            seen[fact.split, fact.group] += 1
            kept += [fact] if seen[fact.split, fact.group] <= most else []
        return replace(self, facts=tuple(kept))

    @property
    def about(self) -> dict[str, Any]:
        """All but name and facts, as JSON values."""
        return {name: getattr(self, name) for name in ABOUT}

    def save(self, path: str | Path) -> None:
        """Write the facts to a ``.jsonl`` file, and beside it a ``.json`` with ``about``.

        Both or neither. ``load`` reads them back, as it does a task that ships with MANSU. The old
        ``.json`` goes before the new facts come: of a single writer, no facts have what was said of
        others beside them, also where it is killed.

        Raises:
            MansuError: the path does not end in .jsonl. StorageError: one cannot be written.
        """
        path = Path(path)
        if path.suffix != ".jsonl":
            raise BadInputError(f"A task file must end in .jsonl: {path} does not.")
        beside = path.with_suffix(".json")
        data = json_bytes(beside, self.about)
        with replacing_both(path, beside) as (new, new_beside):
            new.write_text(self.to_jsonl(), encoding="utf-8")
            new_beside.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path) -> Task:
        """``mansu.load_task``."""
        return load(str(path))


def _row(fact: Fact) -> dict[str, Any]:
    """A fact as the line that it came from."""
    if fact.split == "text":
        return {"text": fact.prompt, "split": "text"}
    row: dict[str, Any] = {"prompt": fact.prompt, "answer": fact.answer, "split": fact.split}
    row |= {"group": fact.group} if fact.group != fact.split else {}
    row |= {"distractors": list(fact.distractors)} if fact.distractors else {}
    row |= {"corrupt_prompt": fact.corrupt_prompt} if fact.corrupt_prompt else {}
    row |= {"foil": fact.foil} if fact.foil else {}
    return row | ({"fact": fact.fact} if fact.fact else {})


def shipped() -> tuple[str, ...]:
    """Names of the tasks that ship with MANSU."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.jsonl")))


def load(name: str) -> Task:
    """Load a shipped task by name or a user's JSONL or CSV file by path.

    A ``.json`` of the same name beside the file gives title, description, provenance, margin and
    tolerance; any of them may be left out.

    Raises:
        MansuError: neither exists, or a line is malformed (the message has its number).
    """
    path = FOLDER / f"{name}.jsonl"
    if name in shipped():
        return parse(path.read_text(encoding="utf-8"), name, **_about(path))
    try:
        path = Path(name)
        if path.suffix in SUFFIXES and path.is_file():
            content = path.read_text(encoding="utf-8-sig")
            return parse(content, path.stem, csv=path.suffix == ".csv", **_about(path))
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"The task file {name!r} is not UTF-8 text: save it as UTF-8."
        ) from error
    except OSError as error:
        raise BadInputError(
            f"The task file {name!r:.100} cannot be read ({error.strerror}): give another one."
        ) from error
    raise BadInputError(
        f"Unknown task {name!r}: give one of {', '.join(shipped())}, or the path of a .jsonl or "
        ".csv file."
    )


def _about(path: Path) -> dict[str, Any]:
    """What a ``.json`` of the same name says about a task file, if there is one.

    Raises:
        BadInputError: it says something else, or something of the wrong type.
    """
    beside = path.with_suffix(".json")
    about = read_json(beside) if beside.is_file() else {}
    if not isinstance(about, dict) or not about.keys() <= set(ABOUT):
        found = min(about.keys() - set(ABOUT)) if isinstance(about, dict) else "no object"
        raise BadInputError(
            f"{beside} lies beside a task file and holds {found}: it may hold an object with "
            f"{', '.join(ABOUT)}; else rename it."
        )
    for name, value in about.items():
        if name in ("margin", "tolerance"):
            right = type(value) in (int, float) and 0 <= value <= 1
        else:
            right = isinstance(value, dict if name == "base" else str)
        if not right:
            kinds = {"base": "an object", "margin": "a number from 0 to 1"}
            what = kinds.get("margin" if name == "tolerance" else name, "text")
            raise BadInputError(f"{name} in {beside} is {value!r:.40}: give {what}.")
    return about


def parse(text: str, name: str, *, csv: bool = False, **about: Any) -> Task:
    """Parse JSONL, or CSV with columns of the same names, into a task.

    In CSV the first line names the columns, an empty cell is left out, and several ``distractors``
    stand in one cell with ``|`` between them.

    Raises:
        MansuError: a malformed line (with its number), or an empty forget or retain set.
    """

    def make() -> Task:
        facts, wrong = _read(text, csv)
        for error in (*wrong, *_missing(facts, f"The task {name!r}")):
            raise error
        about.setdefault("title", name)
        about.setdefault("description", "")
        return Task(name=name, facts=tuple(facts), **about)

    key = text, name, csv, json.dumps(about, sort_keys=True, default=repr)
    return _PARSED.get(key, make, len(text))


_PARSED: Memory[Task] = Memory(4 << 20)
"""Tasks by their text, in characters: a task takes some ten times as many bytes."""


def problems(text: str, *, csv: bool = False) -> list[str]:
    """Everything for which ``parse`` refuses a text: a sentence a bad line, in order, with its
    number; and one for each set that stays empty. None for a good one."""
    facts, wrong = _read(text, csv)
    return [str(error) for error in (*wrong, *_missing(facts, "The task"))]


def _missing(facts: Sequence[Fact], task: str) -> list[MansuError]:
    return [
        BadInputError(f'{task} has an empty {split} set: add lines with "split": "{split}".')
        for split in NEEDED
        if not any(f.split == split for f in facts)
    ]


def _read(text: str, csv: bool) -> tuple[list[Fact], list[MansuError]]:
    """The good lines, and what is wrong with the others."""
    facts: list[Fact] = []
    wrong: list[MansuError] = []
    text = text.removeprefix("\ufeff")
    for number, row in _cells(text) if csv else _objects(text):
        where = f"Line {number} of the task"
        try:
            facts.append(_fact(row(where), number, where))
        except MansuError as error:
            wrong.append(error)
    return facts, wrong


Row = Callable[[str], Mapping[str, Any]]
"""Reads a line, given how a message calls it; raises BadInputError."""


def _objects(text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other breaks
        if line.strip():
            yield number, partial(_object, line)


def _cells(text: str) -> Iterator[tuple[int, Row]]:
    """The records of a CSV text; a spreadsheet may have put ; or a tab between the cells."""
    between = max(",;\t", key=text.partition("\n")[0].count)
    reader = DictReader(StringIO(text, newline=""), delimiter=between, strict=True)
    read = 0
    try:
        names = [name.strip() for name in reader.fieldnames or ()]  # reads the first line
        reader.fieldnames, read = names, reader.line_num
        twice = repeated([name for name in names if name])
        if twice is not None:
            yield read, partial(_twice, twice)
        for row in reader:
            read = reader.line_num
            inside = sum(cell.count("\n") for cell in row.values() if isinstance(cell, str))
            yield read - inside, partial(_record, row)
    except CSVError as error:  # what follows would be read in the middle of a cell
        yield read + 1, partial(_no_csv, str(error))


def _twice(name: str, where: str) -> Mapping[str, Any]:
    raise BadInputError(f"{where} has the column {name!r:.80} twice: keep one of them.")


def _no_csv(why: str, where: str) -> Mapping[str, Any]:
    raise BadInputError(f"{where} is not CSV ({why}): mend it; the lines after it were not read.")


def _record(row: Mapping[Any, Any], where: str) -> Mapping[str, Any]:
    if None in row:
        raise BadInputError(
            f"{where} has more cells than the first line has names: put quotes around a cell that "
            "holds a comma."
        )
    found: dict[str, Any] = {name: cell for name, cell in row.items() if cell}
    if "distractors" in found:
        found["distractors"] = found["distractors"].split("|")
    return found


def _fact(row: Mapping[str, Any], number: int, where: str) -> Fact:
    split = row.get("split")
    if split not in SPLITS:
        has = "no" if split is None else f"{split!r:.60} as its"
        raise BadInputError(f'{where} has {has} "split": use one of {", ".join(SPLITS)}.')
    if split == "text":
        return Fact(_string(row, "text", where), "", split, number, split)
    distractors = row.get("distractors", [])
    if not isinstance(distractors, list) or not all(isinstance(d, str) for d in distractors):
        raise BadInputError(f'{where} has "distractors" that are not a list of strings.')
    for distractor in distractors:
        _check_text(distractor, "distractors", where)
    return Fact(
        prompt=_string(row, "prompt", where),
        answer=_string(row, "answer", where),
        split=split,
        row=number,
        group=_string(row, "group", where) if "group" in row else split,
        distractors=tuple(distractors),
        corrupt_prompt=_string(row, "corrupt_prompt", where) if "corrupt_prompt" in row else None,
        foil=_string(row, "foil", where) if "foil" in row else None,
        fact=_string(row, "fact", where) if "fact" in row else None,
    )


def _object(line: str, where: str) -> dict[str, Any]:
    """One line as a JSON object; what JSON itself does not allow, Python's reader must not."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := repeated([key for key, _ in found])) is not None:
            raise BadInputError(f"{where} has the key {twice!r:.60} twice: keep one of them.")
        return dict(found)

    def constant(name: str) -> Any:
        raise BadInputError(f"{where} has the number {name}, which is not JSON: take it out.")

    if len(line) > LONGEST_LINE:
        raise BadInputError(
            f"{where} has {len(line)} characters: give a line {LONGEST_LINE} at the most."
        )
    try:
        row = json.loads(line, object_pairs_hook=pairs, parse_constant=constant)
    except MansuError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        why = getattr(error, "msg", None) or (
            "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        )
        raise BadInputError(f"{where} is not JSON ({why}): write one object a line.") from error
    if not isinstance(row, dict):
        raise BadInputError(f"{where} is not a JSON object: write one object a line.")
    return row


_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
"""What stands in a line of JSON, by its type in Python."""


def _string(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        kind = "null" if value is None else _KINDS.get(type(value), "an object")
        raise BadInputError(f'{where} has {kind} as its "{key}", not text: give text in quotes.')
    if not value.strip():
        has = "an empty" if key in row else "no"
        raise BadInputError(f'{where} has {has} "{key}": give a non-empty string.')
    _check_text(value, key, where)
    return value


def _check_text(value: str, key: str, where: str) -> None:
    if (odd := no_text(value)) is not None:
        raise BadInputError(
            f'{where} has the character {odd!a} in "{key}", which is part of no text: take it out.'
        )


def no_text(value: str) -> str | None:
    """The first character that is part of no text: half a surrogate pair, or a control character
    that is no white space (NUL, escape); None if there is none."""
    return next((c for c in value if category(c) in ("Cs", "Cc") and not c.isspace()), None)
