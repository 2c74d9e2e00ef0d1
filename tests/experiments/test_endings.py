"""However an experiment ends, that is a sentence and an exit code, as of ``mansu``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments import calibration, reproduce, search, seeds

ASKED = {
    search: ["tiny-colours", "ga", "--subject", "tiny"],
    reproduce: ["--subject", "tiny", "--method", "ga"],
    seeds: ["--subject", "tiny"],
    calibration: ["--subject", "tiny"],
}
SWEEPS = [search, reproduce, seeds]


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def command(module: Any, tmp_path: Path) -> list[str]:
    to = ["--to", str(tmp_path / "to")] if module in (search, reproduce) else []
    return [*ASKED[module], *to]


@pytest.mark.parametrize("module", ASKED)
def test_one_that_is_cancelled_says_so(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if module is calibration:
        monkeypatch.setattr(calibration.subjects, "load", interrupt)
    else:
        monkeypatch.setattr(module, "swept", interrupt)
    assert module.main(command(module, tmp_path)) == 130
    name = module.__name__.rpartition(".")[2]
    assert capsys.readouterr().err == f"{name}: cancelled; what was finished is kept.\n"


@pytest.mark.parametrize("place", ["file", "file/in", "/proc/x", "x" * 300, "circle"])
@pytest.mark.parametrize("module", SWEEPS)
def test_a_folder_that_cannot_be_is_one_sentence(
    module: Any, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    folder = str(tmp_path / place)
    assert module.main([*command(module, tmp_path), "--folder", folder]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert place.partition("/in")[0] in said and "give another path" in said


@pytest.mark.parametrize("module", SWEEPS)
def test_an_empty_text_is_no_folder(
    module: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for empty in (["--folder", ""], ["--folder="]):
        assert module.main([*command(module, tmp_path), *empty]) == 2
        assert "empty text after --folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_text_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--refusal="]) == 2
    assert "empty text after --refusal" in capsys.readouterr().err
