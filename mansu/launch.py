"""The app, opened: from a checkout or from an installed wheel, the same files.

A wheel holds ``app/`` and ``pages/`` inside the package, in ``mansu/_app``, since names as general
as theirs may be anybody's in site-packages. This module starts Streamlit and never imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from mansu.errors import BadInputError

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Addresses that only this machine reaches."""
PASSWORD, TEACHER = SECRETS = "MANSU_PASSWORD", "MANSU_TEACHER_PASSWORD"
"""The variables that hold the password of the app, and of the lesson's teacher (``app.access``)."""
OPEN = (
    "Whoever reaches this server sees every run and may start jobs: it is open to the network, and "
    f"has no password. Set {PASSWORD} for the server, and put HTTPS before it."
)


def app_folder() -> Path:
    """The folder that holds ``app`` and ``pages``: ``mansu/_app`` in a wheel, else the checkout."""
    inside = Path(__file__).parent / "_app"
    return inside if inside.is_dir() else Path(__file__).parents[1]


def open_app(arguments: Sequence[str] = ()) -> NoReturn:
    """Serve the app; this process becomes Streamlit's, so that a signal to it ends the server.

    Runs are kept in ``$MANSU_RUNS``, else in ``runs`` in the working directory.

    Args:
        arguments: further ones for ``streamlit run``, e.g. ``["--server.port", "8600"]``.

    Raises:
        BadInputError: Streamlit is not installed.
    """
    if find_spec("streamlit") is None:
        raise BadInputError("The app needs Streamlit: run `pip install 'mansu[app]'`.")
    folder = app_folder()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    # Safe path: an app.py in the user's own folder is not our app.
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    script = str(folder / "app" / "serve.py")
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", "streamlit", "run", script, *arguments],
        environment,
    )
