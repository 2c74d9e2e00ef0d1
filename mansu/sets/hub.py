"""Rows of a data set in the hub's schema: a local file, a local copy of a hub repository, a hub id.

``FILE`` (parquet, json, jsonl, csv), ``FOLDER:CONFIG:SPLIT`` or ``ID:CONFIG:SPLIT``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from mansu.errors import BadInputError, MansuError
from mansu.files import answered
from mansu.tasks.facts import no_text

FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


LISTS = "a list of strings"


Schema = Mapping[str, str]
"""Column → what it holds: ``a string``, ``a number`` or ``a list of strings``."""


def split_source(source: str) -> tuple[str, str | None, str | None]:
    """``PLACE[:CONFIG[:SPLIT]]`` as (place, config, split); empty parts are None."""
    if Path(source).exists():  # a path may hold a colon
        return source, None, None
    place, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    return place, config or None, split or None


def name_of(source: str) -> str:
    """A short name: the config if one is given, else the file's stem."""
    place, config, split = split_source(source)
    return "-".join(part for part in (config, split) if part) or Path(place).stem


def public(source: str) -> str:
    """What a file that leaves this machine calls a source: of a path its last name alone."""
    place, *_ = split_source(source)
    path = Path(place)
    is_id = (
        place.count("/") == 1 and path.suffix not in FORMATS and not place.startswith(("/", "."))
    )
    kept = "/" not in place or (is_id and not answered(path.exists))
    return source if kept else path.name + source[len(place) :]


def named(sources: Sequence[str]) -> dict[str, str]:
    """Sources by ``name_of``, in their order; one whose name is taken has a number after it.

    ::

        named(["a/test.jsonl", "b/test.jsonl"])  # {"test": "a/test.jsonl", "test 2": …}
    """
    found: dict[str, str] = {}
    for source in sources:
        name = name_of(source)
        others = (f"{name} {number}" for number in count(2))
        found[next(n for n in chain([name], others) if n not in found)] = source
    return found


def read(
    source: str, schema: Schema, *, optional: Schema | None = None, split: str = "test"
) -> list[dict[str, Any]]:
    """The rows of a data set, checked against a schema.

    Args:
        source: ``PLACE[:CONFIG[:SPLIT]]``. A file needs no more. A folder is a copy of a hub
            repository: ``CONFIG/SPLIT-*.parquet``, ``CONFIG/SPLIT.json`` or ``CONFIG.json`` in
            it. Anything else is a hub id, loaded by ``datasets.load_dataset`` (which since
            version 4 never runs a repository's code).
        schema: columns that must be there. optional: columns that are checked where they are.
        split: where the source names none.

    Raises:
        MansuError: no such file or data set, one that cannot be read, a column that is missing,
            or a value of another type (with the number of its row, from 1).
    """
    place, config, named = split_source(source)
    split = named or split
    path = Path(place)
    if answered(path.is_file):
        rows = _load(source, [path], None, None)
    elif answered(path.is_dir):
        rows = _load(source, _files(path, config, split), None, None)
    elif path.suffix in FORMATS or place.count("/") != 1:
        raise MansuError(
            f"There is no file {place!r}: give a {', '.join(FORMATS)} file, a folder with a copy "
            "of a hub data set (FOLDER:CONFIG:SPLIT), or a hub id (OWNER/NAME:CONFIG:SPLIT)."
        )
    else:
        rows = _load(place, None, config, split)
    if not rows:
        raise MansuError(f"{source} has no rows: give a data set with some.")
    wanted = {**schema, **{c: t for c, t in (optional or {}).items() if c in rows[0]}}
    for column, holds in schema.items():
        if column not in rows[0]:
            raise MansuError(
                f"{source} lacks the column {column!r} ({holds}); it has "
                f"{', '.join(map(repr, rows[0]))}. The schema is "
                f"{', '.join(f'{c} ({t})' for c, t in schema.items())}."
            )
    return [
        {**row, **{c: _value(row[c], t, f"Row {i} of {source}", c) for c, t in wanted.items()}}
        for i, row in enumerate(rows, start=1)
    ]


def _files(folder: Path, config: str | None, split: str) -> list[Path]:
    """The files of one config and split in a copy of a hub repository."""
    bases = (
        [f"{config}/{split}-*", f"{config}/{split}", config] if config else [f"{split}-*", split]
    )
    for base in bases:
        for suffix in FORMATS:
            if found := sorted(folder.glob(f"{base}{suffix}")):
                return found
    raise MansuError(
        f"The folder {str(folder)!r} has no file for the config {config!r} and the split "
        f"{split!r}: give FOLDER:CONFIG:SPLIT with files such as {config or 'CONFIG'}/{split}"
        f"-00000-of-00001.parquet, {config or 'CONFIG'}/{split}.json or {config or 'CONFIG'}.json."
    )


def _load(
    source: str, files: Sequence[Path] | None, config: str | None, split: str | None
) -> list[dict[str, Any]]:
    import datasets

    try:
        if files is None:
            return datasets.load_dataset(source, config, split=split).to_list()  # type: ignore[union-attr]
        if files[0].suffix not in FORMATS:
            raise MansuError(
                f"{files[0].name!r} is of no format that can be read here: give one of "
                f"{', '.join(FORMATS)}."
            )
        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory() as cache:  # leave no copy of hazardous data behind
            return datasets.load_dataset(
                FORMATS[files[0].suffix],
                data_files=[str(f) for f in files],
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            ).to_list()  # type: ignore[union-attr]
    except MansuError:
        raise
    except ConnectionError as error:
        raise MansuError(
            f"The hub cannot be reached from this machine, so its data set {source!r} cannot be "
            "read: give a folder with a copy of it, or a file of its rows."
        ) from error
    except Exception as error:  # arrow, pandas, json, network: each has its own classes
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        where = "The hub's data set" if files is None else "The file"
        raise MansuError(
            f"{where} {source!r} cannot be read ({first}): give a whole data set in the hub's "
            "schema, as a local file where the hub cannot be reached."
        ) from error


def _value(value: Any, holds: str, where: str, column: str) -> Any:
    if holds == LISTS and isinstance(value, str):  # csv has no lists: JSON in a cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    right = {
        "a string": isinstance(value, str) and bool(value.strip()),
        "a number": isinstance(value, int) and not isinstance(value, bool),
        LISTS: isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value),
    }[holds]
    texts = value if isinstance(value, list) else [value]
    if not right or any(isinstance(t, str) and no_text(t) for t in texts):
        raise BadInputError(f"{where} has {column!r} = {value!r:.60}, which must be {holds}.")
    return value
