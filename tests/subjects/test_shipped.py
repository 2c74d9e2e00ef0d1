"""Preparing shipped subjects: what is refused, what is checked, what is left behind.

Nothing here downloads. Stand-in packages are a few bytes in a temporary folder; the tests on the
real Gemma 3 run where it has been prepared, and are skipped elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mansu import cli, subjects, tasks
from mansu.cli import subject as command
from mansu.errors import BadInputError
from mansu.measure import scores
from mansu.quant.swap import quantized
from mansu.subjects import shipped
from mansu.subjects.shipped import (
    DEFAULT,
    GEMMA,
    OFFERED,
    REFERENCES,
    RETRAINED,
    TABLE,
    TINY,
    Package,
    Shipped,
)
from mansu.subjects.subject import Subject
from mansu.subjects.terms import plain_text

PAGE = """<html><style>.devsite-article-body>p {}</style><body><p>Menu</p>
<article><div class="devsite-article-body clearfix"><style>p {}</style>
<h1>Terms</h1><p>You may use <b>it</b>
kindly.</p><ul><li>and never   at night</li></ul></div><button>Send</button></article>
<p>Footer</p></body></html>"""
PARTS = (b"first half, ", b"second half")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MANSU_CACHE", str(folder))
    return folder


@pytest.fixture
def standin(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Shipped:
    """In Gemma's place: three packages, already installed, with terms and a file cut in two."""
    packages = tuple(Package(f"mansu-standin{part}", "1.0") for part in ("", "-part1", "-part2"))
    for package, content in zip(packages, (None, *PARTS), strict=True):
        data = tmp_path / "site" / package.name.replace("-", "_") / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise ImportError('code of a package ran')")
        info = tmp_path / "site" / f"{package.name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 1.0\n"
        )
        if content is None:
            (data / "TERMS.html").write_text(PAGE)
        else:
            (data / f"weights.gguf.part{package.name[-1]}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    gemma = TABLE[GEMMA]
    assert gemma.terms is not None
    made = replace(
        gemma,
        packages=packages,
        gguf="weights.gguf",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        terms=replace(gemma.terms, package=packages[0], file="data/TERMS.html"),
        download=0,
        size=0,
    )
    monkeypatch.setitem(TABLE, GEMMA, made)
    return made


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr(subprocess, "run", forbidden)


def left(cache: Path) -> list[Path]:
    return list(cache.iterdir()) if cache.exists() else []


def fake_convert(gguf: Path, architecture: str, folder: Path) -> None:
    assert gguf.read_bytes() == b"".join(PARTS)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))


def test_without_acceptance_it_is_refused_in_one_sentence(
    cache: Path, no_pip: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["subject", GEMMA]) == cli.BAD_INPUT
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "Gemma Terms of Use" in said
    assert f"mansu subject {GEMMA} --accept-terms" in said
    assert left(cache) == []


@pytest.mark.parametrize(("answer", "accepted"), [("yes", True), ("no", False), ("", False)])
def test_in_a_terminal_the_terms_are_shown_and_asked_for(
    standin: Shipped,
    answer: str,
    accepted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    monkeypatch.setattr(shipped, "_convert", fake_convert)
    code = cli.main(["subject", GEMMA])
    assert "You may use it kindly." in capsys.readouterr().out
    assert code == (0 if accepted else cli.BAD_INPUT)
    assert standin.ready is accepted


def test_preparing_leaves_a_whole_folder_with_its_provenance(
    standin: Shipped, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_convert", fake_convert)
    cache.mkdir()
    (cache / GEMMA).mkdir()
    (cache / GEMMA / "half").touch()  # of a version that did not write beside
    folder = subjects.prepare(GEMMA, accepted=True)
    assert left(cache) == [folder] == [cache / GEMMA]
    names = {"config.json", "provenance.json", "TERMS.txt", "NOTICE"}
    assert {f.name for f in folder.iterdir()} == names
    found = json.loads((folder / "provenance.json").read_text())
    assert found["sha256"] == standin.sha256
    assert "mansu-standin-part2 1.0" in found["source"]
    assert found["terms accepted"].startswith("by the user on 20")
    assert "quantised" in found["note"]
    assert "You may use it kindly." in (folder / "TERMS.txt").read_text()
    (cache / "copy").mkdir()
    shipped.copy_terms(GEMMA, cache / "copy")
    assert {f.name for f in (cache / "copy").iterdir()} == {"TERMS.txt", "NOTICE"}
    shipped.copy_terms(TINY, cache)  # comes under none
    monkeypatch.setattr(shipped, "_convert", lambda *_: pytest.fail("converted twice"))
    assert subjects.prepare(GEMMA) == folder


def test_a_file_that_is_not_the_known_one_is_refused(standin: Shipped, cache: Path) -> None:
    broken = standin.packages[1].folder / "data" / "weights.gguf.part1"
    broken.write_bytes(b"something else")
    with pytest.raises(BadInputError, match=r"sha256.*install the package anew"):
        subjects.prepare(GEMMA, accepted=True)
    assert left(cache) == []


def test_a_failure_half_way_leaves_nothing(
    standin: Shipped, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, architecture: str, folder: Path) -> None:
        fake_convert(gguf, architecture, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        subjects.prepare(GEMMA, accepted=True)
    assert left(cache) == []
    assert not standin.ready


def test_a_full_disk_is_said_before_anything_is_installed(
    standin: Shipped, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE, GEMMA, replace(standin, size=10**12))
    with pytest.raises(BadInputError, match="MANSU_CACHE"):
        subjects.prepare(GEMMA, accepted=True)


def test_what_pip_cannot_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(BadInputError, match=r"pip cannot install mansu-no-such==1.0 .*--no-deps"):
        shipped.install([Package("mansu-no-such", "1.0")])


def test_what_is_installed_is_not_installed_again(standin: Shipped, no_pip: None) -> None:
    shipped.install(standin.packages)
    assert standin.missing == ()


def test_loading_what_is_not_prepared_says_what_to_run(cache: Path, no_pip: None) -> None:
    with pytest.raises(BadInputError, match=f"run `mansu subject {GEMMA}`, which shows the Gemma"):
        subjects.load(GEMMA)
    assert left(cache) == []


def test_loading_the_default_without_its_package_says_what_to_run(
    cache: Path, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(TABLE[DEFAULT], packages=(Package("mansu-no-such", "1.0"),))
    monkeypatch.setitem(TABLE, DEFAULT, absent)
    with pytest.raises(BadInputError, match=f"run `mansu subject {DEFAULT}`"):
        subjects.load()


def test_the_list_says_what_is_ready_and_what_it_takes(cache: Path) -> None:
    lines = command.listing().splitlines()
    states = {line.split()[0]: line for line in lines[::2]}
    assert list(states) == list(TABLE)
    assert states[TINY].endswith("ready")
    assert "243 MB from PyPI, 1.1 GB in the cache, about 1 minute" in states[GEMMA]
    assert "Gemma Terms of Use to accept" in states[GEMMA]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["subject", "gemma"]) == cli.BAD_INPUT
    assert GEMMA in capsys.readouterr().err


def test_every_shipped_subject_starts_with_a_task_that_was_measured_on_it() -> None:
    for known in TABLE.values():
        assert known.name in tasks.load(known.task).base


def test_references_are_listed_but_not_offered() -> None:
    assert set(REFERENCES.values()) <= set(TABLE) - set(OFFERED)
    for (name, task), reference in REFERENCES.items():
        assert {name, reference} <= set(tasks.load(task).base)
    assert TABLE[RETRAINED].title in command.listing()


@pytest.fixture(scope="module")
def retrained() -> Subject:
    return subjects.load(RETRAINED)


def test_the_reference_is_what_its_provenance_says(retrained: Subject, tiny: Subject) -> None:
    said = retrained.provenance
    assert retrained.fingerprint == said["fingerprint"] != tiny.fingerprint
    assert {k: said[k] for k in tiny.provenance} == tiny.provenance  # seed, recipe, command
    assert retrained.config.to_diff_dict() == tiny.config.to_diff_dict()
    assert retrained.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()


@pytest.mark.parametrize("nf4", [False, True])
def test_the_reference_never_knew_the_colours_and_knows_all_else(
    retrained: Subject, tiny: Subject, tiny_task: tasks.Task, nf4: bool
) -> None:
    with quantized(retrained) if nf4 else nullcontext():
        found = scores.measure_task(retrained, tiny_task)
    for split in ("forget", "paraphrase"):  # at chance: of four, and of the eight colours
        interval = found.splits[split].interval
        assert interval.low <= 0.25 <= interval.high
        assert found.splits[split].log_probability.mean() == pytest.approx(-math.log(8), abs=0.3)
    before = scores.measure_task(tiny, tiny_task)
    for split in ("retain", "holdout", "neighbour"):
        assert found.splits[split].accuracy == 1
        fall = before.splits[split].log_probability - found.splits[split].log_probability
        assert fall.mean() <= 0.1
    assert found.text_loss is not None and found.text_loss == pytest.approx(
        before.text_loss, abs=0.1
    )


def test_terms_are_the_article_of_their_page() -> None:
    assert plain_text(PAGE) == "Terms\n\nYou may use it kindly.\n\n- and never at night"


@pytest.fixture(scope="module")
def gemma() -> Subject:
    if not TABLE[GEMMA].ready:
        pytest.skip(f"{GEMMA} is not prepared here: run `mansu subject {GEMMA}`")
    return subjects.load(GEMMA)


@pytest.fixture
def after(gemma: Subject) -> Callable[[str], str]:
    """The most probable next token after a text, as the model's own tokenizer encodes it."""

    def word(text: str) -> str:
        ids = torch.tensor([gemma.tokenizer(text)["input_ids"]])
        logits = gemma.next_token_logits(ids, torch.tensor([ids.shape[1]]))
        return str(gemma.tokenizer.decode([int(logits[0].argmax())]))

    return word


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The chemical symbol for gold is", " Au"),
        ("The capital of Japan is", " Tokyo"),
        ("The official language of Brazil is", " Portuguese"),
        ("The opposite of hot is", " cold"),
    ],
)
def test_gemma_knows(after: Callable[[str], str], prompt: str, answer: str) -> None:
    assert after(prompt) == answer


def test_gemma_is_whole_and_its_tokenizer_puts_bos_first(gemma: Subject) -> None:
    assert type(gemma.model).__name__ == "Gemma3ForCausalLM"
    assert gemma.n_parameters == 268_098_176
    assert not hasattr(gemma.model.config, "quantization_config")
    ids: Any = gemma.tokenizer("gold")["input_ids"]
    assert ids[0] == gemma.tokenizer.bos_token_id
    assert gemma.card()["terms"].startswith("Gemma Terms of Use")


def test_gemma_task_accuracies_are_those_recorded(gemma: Subject) -> None:
    task = tasks.load(TABLE[GEMMA].task)
    found = scores.measure(gemma, tasks.examples(task, gemma, "forget"))
    recorded = task.base[GEMMA]["full precision"]["forget: symbols"]
    assert len(found.correct) == recorded["rows"]
    assert found.accuracy == pytest.approx(recorded["accuracy"][0], abs=0.01)


@pytest.mark.skipif("MANSU_PREPARE" not in os.environ, reason="converts 245 MB: MANSU_PREPARE=1")
def test_gemma_is_prepared_from_its_packages(cache: Path) -> None:
    if TABLE[GEMMA].missing:
        pytest.skip("its packages are not installed")
    folder = subjects.prepare(GEMMA, accepted=True)
    assert left(cache) == [folder]
