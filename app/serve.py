"""The app's server: ``streamlit run app/serve.py``, which is what ``mansu app`` does.

It serves ``main.py``. Beside what ``streamlit run app/main.py`` would do, it

- imports what the pages need while nobody waits, which takes as long as torch and Streamlit do;
- refuses what a page of another server asks of it, files of whoever was not let in, and, where
  people have to be let in, Streamlit's figures on them;
- sends Streamlit's own scripts compressed, each compressed once: a third of the bytes;
- tells the browser where the server is, which it would find out by asking in a place that is none;
- gives the page our style and script from the start: what came later would move what is read.
"""

from __future__ import annotations

import gzip
import pkgutil
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from anyio import to_thread
from starlette import status
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit import file_util
from streamlit.config import get_option
from streamlit.starlette import App
from streamlit.web.server.server_util import is_allowed_origin

import app as pieces
from app.access import is_guarded, is_let_in
from app.garbage import collect_now_and_then, settle
from mansu.room import unwatched

ROOM = Path(__file__).parent
FRONTEND = Path(file_util.get_static_dir())
KINDS = {".js": "text/javascript", ".css": "text/css"}
FOREVER = "public, immutable, max-age=31536000"  # a file's name has a hash of its content
# Every page is one step below the server's own address, which may itself be a folder.
HERE = (
    '<script>window.__streamlit = { BACKEND_BASE_URL: new URL(".", location.href).href }</script>'
)
UPLOAD = re.compile(r"/+_stcore/upload_file/([^/]+)")
FIGURES = re.compile(r"/+_stcore/metrics/*")
"""Sessions, their length, memory: Streamlit tells them to whoever asks."""
ROOT = '<div id="root">'
# What is read until Streamlit's scripts are there, which put their page in its place.
WAIT = '<p id="wait">MANSU is loading …</p>'
SCRIPTS = ("app.main", "app.serve")
"""Modules of the app that are run, not imported."""


PACKED: dict[Path, bytes] = {}
"""Streamlit's own files, gzipped, as far as they were asked for."""


def packed(path: Path) -> bytes:
    """A file's content, gzipped."""
    if path not in PACKED:
        PACKED[path] = gzip.compress(path.read_bytes(), 6, mtime=0)
    return PACKED[path]


@lru_cache(maxsize=1)
def document() -> bytes:
    """Streamlit's page, which says where its server is, with our style and script.

    They stand in its body: so the style comes after Streamlit's own, which stands in the head.
    """
    text = (FRONTEND / "index.html").read_text(encoding="utf-8")
    style, script = ((ROOM / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    ours = f"<style>{style}</style><script>{script}</script></body>"
    for place, new in (("<head>", f"<head>{HERE}"), (ROOT, f"{ROOT}{WAIT}"), ("</body>", ours)):
        text = text.replace(place, new, 1)
    return text.encode()


@lru_cache(maxsize=512)
def static(path: str) -> Path | None:
    """Streamlit's own script or style sheet at a path of the address; None where there is none."""
    if not path.startswith("/static/") or Path(path).suffix not in KINDS:
        return None
    found = (FRONTEND / path.lstrip("/")).resolve()
    return found if found.is_relative_to(FRONTEND.resolve()) and found.is_file() else None


def foreign(asked: Headers) -> bool:
    """Whether a page of another server asks, by its origin; no page at all is none.

    Streamlit would let in every other server of this machine, and, to know the machine's address,
    ask a service outside.
    """
    origin = asked.get("origin")
    if origin is None or origin.partition("://")[2] == asked.get("host"):
        return False
    return not is_allowed_origin(origin)


def _within(scope: Scope) -> str:
    """A path without the folder that the server is in, as a proxy or ``baseUrlPath`` says it."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    base = get_option("server.baseUrlPath").strip("/")
    inner = path.removeprefix(f"/{base}") if base else path
    return inner if inner.startswith("/") else path


class Frontend:
    """Answers what Streamlit's frontend asks for before it has a session."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and foreign(Headers(scope=scope)):
            await send({"type": "websocket.close", "code": status.WS_1008_POLICY_VIOLATION})
            return
        answer = await self._answer(scope) if scope["type"] == "http" else None
        await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        path = _within(scope)
        if (sent := UPLOAD.match(path)) and scope["method"] == "PUT" and not is_let_in(sent[1]):
            return Response("This session was not let in.", status.HTTP_403_FORBIDDEN)
        if FIGURES.fullmatch(path) and is_guarded():
            return Response("This server's figures are nobody's.", status.HTTP_403_FORBIDDEN)
        if scope["method"] != "GET":
            return None
        asked = Headers(scope=scope)
        if path.count("/") == 1 and "text/html" in asked.get("accept", ""):
            return Response(
                document(), media_type="text/html", headers={"Cache-Control": "no-cache"}
            )
        if (file := static(path)) and "gzip" in asked.get("accept-encoding", ""):
            headers = {
                "Content-Encoding": "gzip",
                "Vary": "Accept-Encoding",
                "Cache-Control": FOREVER,
            }
            # A page has sixty of them, and a thread for each would take longer than the answer.
            body = PACKED.get(file) or await to_thread.run_sync(packed, file)
            return Response(body, media_type=KINDS[file.suffix], headers=headers)
        return None


def warm() -> None:
    """Pack what every page loads, and import every piece of the app.

    People may be there already. Plotly uses pandas as far as any thread has imported it, and fails
    on half of it: so what draws with Plotly imports pandas first, which waits until it is whole.
    """
    for path in re.findall(r'"\.(/static/[^"]+)"', document().decode()):
        if file := static(path):
            packed(file)
    with unwatched():
        for module in pkgutil.walk_packages(pieces.__path__, "app."):
            if module.name not in SCRIPTS:
                import_module(module.name)
    settle()
    collect_now_and_then()


@asynccontextmanager
async def lifespan(_: App) -> AsyncIterator[None]:
    threading.Thread(target=warm, daemon=True).start()
    yield


app = App(ROOM / "main.py", lifespan=lifespan, middleware=[Middleware(Frontend)])
