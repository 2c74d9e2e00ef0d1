"""``mansu app``: the Streamlit app of this installation."""

from __future__ import annotations

import argparse
import os
import platform
import sys

from mansu import launch
from mansu.cli import common
from mansu.job.limits import Limits, limits, variable
from mansu.settings import settings_of


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        help=f"what it is bound to ({launch.LOCAL[0]}); 0.0.0.0 opens it to the network: then set "
        f"{launch.PASSWORD}, and for the lesson {launch.TEACHER}",
    )
    parser.add_argument(
        "--host",
        action="append",
        help="with --address, a name that the network knows this machine by: no other is answered; "
        "may be given several times",
    )
    parser.add_argument("--port", type=common.count, help="where it listens (8501)")
    for name, about in settings_of(Limits).items():
        parser.add_argument(f"--{name}", metavar="N", help=f"{about.help} [{variable(name)}]")
    parser.add_argument(
        "--headless", action="store_true", help="do not open a window of the browser"
    )


def app(options: argparse.Namespace) -> None:
    """Become the server, which serves until Ctrl-C or SIGTERM.

    Raises:
        BadInputError: a limit that is none, or Streamlit is not installed.
    """
    given = {name: getattr(options, name) for name in settings_of(Limits)}
    os.environ |= {variable(name): text for name, text in given.items() if text is not None}
    limits()  # said here, and not on a page
    flags = [f"--server.address={options.address}"] if options.address else []
    if options.address not in (None, *launch.LOCAL):
        if not os.environ.get(launch.PASSWORD):
            print(f"warning: {launch.OPEN}", file=sys.stderr, flush=True)
        # Under which names a network knows this machine, it alone knows.
        flags += [f"--server.allowedHosts={name}" for name in options.host or ["*"]]
        # Streamlit would ask a service outside for the address that it prints.
        flags += [f"--browser.serverAddress={(options.host or [platform.node()])[0]}"]
    flags += [f"--server.port={options.port}"] if options.port else []
    flags += ["--server.headless=true"] if options.headless else []
    launch.open_app(flags)
