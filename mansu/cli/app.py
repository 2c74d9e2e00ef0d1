"""``mansu app``: the Streamlit app of this installation."""

from __future__ import annotations

import argparse

from mansu import launch
from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=common.count, help="where it listens (8501)")
    parser.add_argument(
        "--headless", action="store_true", help="do not open a window of the browser"
    )


def app(options: argparse.Namespace) -> None:
    """Become the server, which serves until Ctrl-C or SIGTERM."""
    flags = [f"--server.port={options.port}"] if options.port else []
    flags += ["--server.headless=true"] if options.headless else []
    launch.open_app(flags)
