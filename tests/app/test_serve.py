"""What the server answers by itself: Streamlit's scripts, packed, and where it is."""

from __future__ import annotations

import gzip
import tomllib

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from app.serve import FRONTEND, ROOM, Frontend, static
from mansu.launch import LOCAL

SCRIPT = next(FRONTEND.glob("static/js/protobuf.*.js"))
ADDRESS = f"/static/js/{SCRIPT.name}"
HTML = {"accept": "text/html", "accept-encoding": "identity"}


def client(base: str = "") -> TestClient:
    return TestClient(Frontend(PlainTextResponse("theirs")), root_path=base)


def test_a_script_comes_packed_to_whoever_can_unpack_it() -> None:
    answer = client().get(ADDRESS, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip" and answer.content == SCRIPT.read_bytes()
    packed = int(answer.headers["content-length"])
    assert packed == len(gzip.compress(SCRIPT.read_bytes(), 6, mtime=0)) < SCRIPT.stat().st_size / 3
    assert "immutable" in answer.headers["cache-control"]
    assert client().get(ADDRESS, headers={"accept-encoding": "identity"}).text == "theirs"


def test_nothing_else_is_sent() -> None:
    for path in ("/static/js/../../index.html", "/static/none.js", "/media/x.js", ADDRESS + ".map"):
        assert static(path) is None
    assert static("/static/../../../__init__.py") is None
    assert client().post("/", headers=HTML).text == "theirs"


def test_every_page_says_where_the_server_is() -> None:
    for base, path in (("", "/"), ("", "/circuit"), ("/behind", "/circuit")):
        text = client(base).get(base + path, headers=HTML).text
        assert 'BACKEND_BASE_URL: new URL(".", location.href)' in text
        assert text.index("BACKEND_BASE_URL") < text.index('<script type="module"')
        assert '<div id="root"><p id="wait">MANSU is loading' in text  # and no empty page
        # Ours come with the page, and the style after Streamlit's own.
        assert "history.pushState" in text and text.index(".st-key-jobs") > text.index("</head>")
    assert client().get("/_stcore/health", headers=HTML).text == "theirs"


def test_only_this_machine_reaches_it_and_nothing_is_told() -> None:
    config = tomllib.loads((ROOM / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] in LOCAL and config["server"]["maxUploadSize"] == 20
    assert config["browser"]["gatherUsageStats"] is False
