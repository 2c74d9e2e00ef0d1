"""``mansu app``: the Streamlit app of this installation."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import mansu
from mansu.cli import common
from mansu.errors import BadInputError

ENTRY = Path(mansu.__file__).resolve().parents[1] / "app" / "main.py"
FLAGS = (
    "--server.address=127.0.0.1",
    "--server.showEmailPrompt=false",
    "--browser.gatherUsageStats=false",
)


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=common.count, help="where it listens (8501)")
    parser.add_argument(
        "--headless", action="store_true", help="do not open a window of the browser"
    )


def app(options: argparse.Namespace) -> None:
    """Become the server, which serves until Ctrl-C or SIGTERM."""
    if find_spec("streamlit") is None:
        raise BadInputError("The app needs Streamlit: install it with `pip install 'mansu[app]'`.")
    if not ENTRY.is_file():
        raise BadInputError(f"The app is not installed: there is no {ENTRY}. Install MANSU anew.")
    flags = [*FLAGS, *([f"--server.port={options.port}"] if options.port else [])]
    flags += ["--server.headless=true"] if options.headless else []
    command = [sys.executable, "-m", "streamlit", "run", str(ENTRY), *flags]
    os.execv(sys.executable, command)
