"""A run as one file that opens elsewhere: a zip of what the run measured.

It holds safetensors and JSON only, each with its sha256, and no path or name of this machine::

    pack(Run.open("runs/mine"), Path("mine.zip"))
    unpack(Path("mine.zip")).verdict("mansu")
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mansu.errors import BadInputError, DamagedError, MansuError
from mansu.files import inside, new_folder, parsed_json, replacing, resummed, slug
from mansu.job.artefacts import ARTEFACTS
from mansu.job.runs import Run, folder
from mansu.report.repeat import public
from mansu.sets import hub
from mansu.subjects.edit import Edit

VERSION = 1
CONTENTS = "bundle.json"
LARGEST = 8 * 2**30
"""Bytes of a bundle's files together."""
NEEDED = {"manifest.json", "task.jsonl"}
"""Files without which there is no run."""
MOST = 10_000
"""Files of a bundle."""
_LONGEST = 16 * 2**20  # bytes of what the bundle says of itself, which is read at once

_NAME = r"[A-Za-z0-9][\w.+ -]{0,150}"
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError,
    struct.error, OverflowError, ValueError, OSError,
)  # fmt: skip
"""What ``zipfile`` raises of a file that is no whole zip; of ``OSError`` where it seeks to a place
before the file's begin (EINVAL), the rest are the disk's."""
_DAY = (1980, 1, 1, 0, 0, 0)  # the same run gives the same bytes


def pack(run: Run, path: Path, methods: Sequence[str] = ()) -> None:
    """Write a bundle, whole or not at all.

    A run that has a name which ``unpack`` does not take is called by its ``slug`` in it.

    Args:
        methods: whose edits go in; all by default.

    Raises:
        NotMeasuredError: there is no edit by such a method.
        DamagedError: a file of the run is damaged or of another run or edit, or one that every run
            has is none or a link.
    """
    for method in methods:
        run.require("edit", method)
    files = {
        place.as_posix(): run.path / place
        for place in (p.relative_to(run.path) for p in inside(run.path))
        if _belongs(place.as_posix())
        and (run.path / place).is_file()
        and not (run.path / place).is_symlink()
        and not (methods and place.parts[0] == "edits" and place.parts[1] not in methods)
    }
    if lacking := sorted(NEEDED - set(files)):
        raise DamagedError(
            f"The run {run.name} has no {lacking[0]}, or a link in its place: nothing was written."
        )
    try:
        _check(run, files)
        contents = _public(run, files)
    except (ValueError, OSError, SafetensorError) as error:
        raise DamagedError(
            f"A file of the run {run.name} cannot be read, and nothing was written: {error}"
        ) from error
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    called = run.name if re.fullmatch(_NAME, run.name) else slug(run.path.resolve().name)
    about = {"version": VERSION, "run": called, "files": sums}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name, data in {CONTENTS: _text(about), **contents}.items():
            entry = zipfile.ZipInfo(name, _DAY)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            bundle.writestr(entry, data)


def unpack(path: Path | IO[bytes], to: Path | None = None) -> Run:
    """Make a run folder of a bundle, whole or not at all, and check that it opens.

    Args:
        path: of the bundle, or the open file.
        to: the new folder; by default one of the run's name among the runs.

    Raises:
        BadInputError: it is no bundle, holds what a run does not (a path that leads out, a link,
            another kind of file), is too large, or ``to`` is not empty.
        DamagedError: a file differs from its sha256, the run does not open, or one of its results
            is damaged or of another run or edit.
    """
    shown = path.name if isinstance(path, Path) else "The bundle"
    try:
        with zipfile.ZipFile(path) as bundle:
            about = _contents(bundle)
            place = to or _free(folder() / about["run"])
            with new_folder(place) as new:
                for name, digest in about["files"].items():
                    target = new / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _extract(bundle, name, target, digest)
                try:
                    _check(Run.open(new), about["files"])
                except MansuError as error:
                    told = str(error).replace(f"{new}/", "").replace(str(new), "the run")
                    raise DamagedError(f"{shown} holds a damaged run: {told}") from error
            return Run.open(place)
    except _DAMAGED as error:
        if isinstance(error, MansuError):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise BadInputError(
            f"{shown} is no bundle of a run ({error!s:.100}): make one with `mansu bundle FOLDER "
            "--to FILE.zip`."
        ) from error


def _check(run: Run, files: Collection[str]) -> None:
    """Read all that a bundle of a run holds: a file may be what was packed, and none of a run's.

    Raises:
        MansuError: one is damaged, or of another run or edit.
    """
    run.task()
    for kind, method, part in run.kept():
        if run.file(kind, method, part).relative_to(run.path).as_posix() in files:
            run.read(kind, method, part)


def _belongs(name: str) -> bool:
    """Whether a run has a file of this place; nothing that leads out of its folder has one."""
    parts = PurePosixPath(name).parts
    if "/".join(parts) != name or not all(re.fullmatch(_NAME, part) for part in parts):
        return False
    return any(
        len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern))
        for pattern in _PATTERNS
    )


_PATTERNS = [
    ("manifest.json",),
    ("task.jsonl",),
    *(
        tuple(("edits/*/" * a.of_edit + a.file.replace("{}", "*")).split("/"))
        for a in ARTEFACTS.values()
    ),
]


def _contents(bundle: zipfile.ZipFile) -> Mapping[str, Any]:
    """The bundle's own description, if every file in it is one that it names and a run has."""
    whole = CONTENTS in bundle.namelist() and bundle.getinfo(CONTENTS).file_size <= _LONGEST
    about = _parsed(bundle.read(CONTENTS)) if whole else None
    if not isinstance(about, dict):
        raise BadInputError(f"The file is no bundle of a run: it has no {CONTENTS} that is whole.")
    if about.get("version") != VERSION:
        raise BadInputError(
            f"The bundle is of version {about.get('version')!r:.20}, and this MANSU reads version "
            f"{VERSION}: make it again."
        )
    name, files = about.get("run"), about.get("files")
    if not (isinstance(name, str) and re.fullmatch(_NAME, name)) or not isinstance(files, dict):
        raise BadInputError(f"{CONTENTS} in the bundle is damaged: make the bundle again.")
    entries = [entry for entry in bundle.infolist() if entry.filename != CONTENTS]
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not _belongs(entry.filename) or kind not in (0, stat.S_IFREG):
            raise BadInputError(
                f"The bundle holds {entry.filename!r:.80}, which is no file of a run: nothing was "
                "written."
            )
    named = [entry.filename for entry in entries]
    if sorted(named) != sorted(files) or not set(named) >= NEEDED:
        raise BadInputError("The bundle lacks files that it names, or has others: make it again.")
    if len(named) > MOST or sum(entry.file_size for entry in entries) > LARGEST:
        raise BadInputError(
            f"The bundle is larger than {LARGEST / 2**30:.0f} GiB or has more than {MOST:,} files."
        )
    return about


def _extract(bundle: zipfile.ZipFile, name: str, target: Path, digest: str) -> None:
    found = hashlib.sha256()
    with bundle.open(name) as source, target.open("wb") as file:
        while part := source.read(2**20):  # no more than the size that was counted
            found.update(part)
            file.write(part)
    if found.hexdigest() != digest:
        raise DamagedError(f"{name} in the bundle is not what was packed: copy the bundle again.")


def _free(place: Path) -> Path:
    """The folder, or the first of ``…-2``, ``…-3`` that is not there."""
    if not place.exists():
        return place
    number = 2
    while (found := place.with_name(f"{place.name}-{number}")).exists():
        number += 1
    return found


def _public(run: Run, files: Mapping[str, Path]) -> dict[str, bytes]:
    """The files' bytes without paths: of a subject that is a folder, of data that was read.

    Of the subject as the run calls it, and as an edit does that was made later from elsewhere.

    Their last names stay. A file that changes has another sha256, which stands in others, and
    another digest of its rest, which stands in itself: both are put right, too.
    """
    contents = {name: path.read_bytes() for name, path in files.items()}
    for name, data in contents.items():
        if PurePosixPath(name).parent.name == "scores":
            sources = ARTEFACTS["scores"].codec.read(files[name])[0].get("sources") or ()
            contents[name] = _called(
                data, {s: hub.public(s) for s in sources if isinstance(s, str)}
            )
    source = run.about["provenance"]
    manifest = contents["manifest.json"]
    contents["manifest.json"] = _called(manifest, {source: public(source)})
    edits = [name for name in contents if name.endswith(f"/{ARTEFACTS['edit'].file}")]
    told = {run.subject, *(str(Edit.meta_of(files[name]).get("subject")) for name in edits)}
    changed = {
        json.dumps(subject, ensure_ascii=ascii_only)[1:-1]: _in_json(public(subject))
        for subject in sorted(told, key=len, reverse=True)  # one may lie in another
        if public(subject) != subject
        for ascii_only in (True, False)  # our headers are ASCII, our files are not
    }
    if not changed:
        return contents
    tensors = [name for name in contents if name.endswith(".safetensors")]
    for name in sorted(tensors, key=lambda n: not n.endswith(ARTEFACTS["edit"].file)):
        data = contents[name]  # of an edit first: its sha256 stands in others' headers
        contents[name] = _renamed(files[name], changed, data)
        old, new = (hashlib.sha256(d).hexdigest() for d in (data, contents[name]))
        changed |= {old: new} if old != new else {}
    texts = [name for name in contents if name not in tensors]
    # A review last: the sha256 of all that it rests on stands in it.
    for name in sorted(texts, key=lambda n: n.endswith(ARTEFACTS["review"].file)):
        text = contents[name].decode("utf-8")
        for old, new in changed.items():
            text = text.replace(old, new)
        text = resummed(text, {}) if name.endswith(".json") else text
        data, contents[name] = contents[name], text.encode("utf-8")
        old, new = (hashlib.sha256(d).hexdigest() for d in (data, contents[name]))
        changed |= {old: new} if old != new else {}
    return contents


def _called(data: bytes, names: Mapping[str, str]) -> bytes:
    """JSON of ours in which some strings are others."""
    for old, new in names.items():
        old, new = (json.dumps(text, ensure_ascii=False) for text in (old, new))
        data = data.replace(old.encode(), new.encode())
    return resummed(data.decode("utf-8"), {}).encode("utf-8")


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _renamed(path: Path, changed: Mapping[str, str], data: bytes) -> bytes:
    with safe_open(str(path), "pt") as file:
        about = file.metadata() or {}
        told = dict(about)
        for old, new in changed.items():
            told = {name: value.replace(old, new) for name, value in told.items()}
        if told == about:
            return data
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return save(tensors, {name: resummed(value, tensors) for name, value in told.items()})


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8")


def _parsed(data: bytes) -> Any:
    try:
        return parsed_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
