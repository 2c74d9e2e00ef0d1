"""What the server answers by itself: Streamlit's scripts, packed, and where it is."""

from __future__ import annotations

import gzip
import tomllib

import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from app.serve import FRONTEND, ROOM, Frontend, static
from mansu.cli import main
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
    assert config["server"]["allowedHosts"] == [*LOCAL]
    assert config["server"]["enableCORS"] and config["server"]["enableXsrfProtection"]
    assert config["browser"]["gatherUsageStats"] is False


def test_what_draws_with_plotly_imports_all_of_pandas_first() -> None:
    """Or the first people on a server that still imports it see Plotly fail on half of pandas."""
    files = [file for room in (ROOM, ROOM.parent / "pages") for file in room.rglob("*.py")]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    drawing = {name: text for name, text in texts.items() if "import plotly" in text}
    assert {"charts.py", "figures.py"} <= drawing.keys()
    for name, text in drawing.items():
        assert "\nimport pandas" in text[: text.index("import plotly")], name


def test_no_page_of_another_server_talks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def theirs(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host")
        await send({"type": "websocket.accept" if is_host_allowed(host) else "websocket.close"})

    def asked(host: str, origin: str | None) -> bool:
        headers = {"host": host, **({} if origin is None else {"origin": origin})}
        try:
            with TestClient(Frontend(theirs)).websocket_connect("/_stcore/stream", headers=headers):
                return True
        except WebSocketDisconnect:
            return False

    file = tomllib.loads((ROOM / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    monkeypatch.setattr(  # as the server reads it
        "streamlit.config.get_option", lambda name: file["server"].get(name.split(".")[1], [])
    )
    for host in ("localhost:8501", "127.0.0.1:8501", "[::1]:8501"):
        assert asked(host, f"http://{host}") and asked(host, None)
    assert not asked("evil.example:8501", "http://evil.example:8501")  # its name leads to us
    for origin in ("https://evil.example", "http://localhost:8888", "null", "http://[", ""):
        assert not asked("localhost:8501", origin)


def test_who_opens_it_to_a_network_says_under_which_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[str] = []
    monkeypatch.setattr("mansu.launch.open_app", given.extend)
    monkeypatch.delenv("MANSU_PASSWORD", raising=False)
    assert main(["app", "--address", "0.0.0.0", "--host", "class.example"]) == 0
    assert "--server.allowedHosts=class.example" in given
    assert "--browser.serverAddress=class.example" in given  # or Streamlit asks outside
    assert "has no password" in capsys.readouterr().err
    given.clear()
    assert main(["app", "--address", "127.0.0.1"]) == 0
    assert given == ["--server.address=127.0.0.1"] and not capsys.readouterr().err
