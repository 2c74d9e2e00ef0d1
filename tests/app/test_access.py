"""A server that is opened to a network says so, and asks for its password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from streamlit import config
from streamlit.testing.v1 import AppTest

from app import access
from app.lesson.tally import board
from app.serve import Frontend
from mansu.launch import OPEN, PASSWORD, TEACHER

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = st.get_option("server.address")
    monkeypatch.setattr(access, "PAUSE", 0.0)
    for name in (PASSWORD, TEACHER):
        monkeypatch.delenv(name, raising=False)
    yield
    config.set_option("server.address", before)


def entered(at: AppTest, text: str) -> AppTest:
    at.text_input[0].set_value(text)
    (button,) = [b for b in at.button if b.label == "Enter"]
    at = button.click().run()
    assert not at.exception, at.exception
    return at


def main() -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    assert not at.exception, at.exception
    return at


@pytest.mark.parametrize("address", ["localhost", "0.0.0.0", None])
def test_a_server_that_a_network_reaches_says_so(address: str | None) -> None:
    config.set_option("server.address", address)
    warned = [warning.value for warning in main().sidebar.warning]
    assert warned == ([] if address == "localhost" else [OPEN])


def test_nothing_is_shown_before_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "correct horse")
    config.set_option("server.address", "0.0.0.0")
    at = main()
    assert [t.value for t in at.title] == ["MANSU"] and len(at.text_input) == 1
    assert not at.markdown and not at.sidebar.selectbox and not at.warning
    for wrong in ("", "correct", "correct horse ", "ü"):
        at = entered(at, wrong)
        assert at.error[0].value == "That is not the password." and not at.markdown
    at = entered(at, "correct horse")
    assert at.markdown and not [b for b in at.button if b.label == "Enter"]
    at = at.run()
    assert at.markdown  # once a session
    monkeypatch.setenv(PASSWORD, "another")
    assert not at.run().markdown


def test_nobody_sends_files_before_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "correct horse")
    access._LET_IN.clear()

    async def theirs(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("kept")(scope, receive, send)

    def sent() -> list[int]:
        client = TestClient(Frontend(theirs))
        places = [f"/_stcore/upload_file/{session}/f" for session in (*access._LET_IN, "unknown")]
        return [client.put(place, content=b"x").status_code for place in places]

    at = main()
    assert sent() == [403]
    entered(at, "correct horse")
    assert sent() == [200, 403]


@pytest.mark.parametrize("base", ["", "behind"])
def test_figures_and_files_are_guarded_wherever_the_server_is(
    monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    before = st.get_option("server.baseUrlPath")
    config.set_option("server.baseUrlPath", base)
    room = f"/{base}" if base else ""
    client = TestClient(Frontend(PlainTextResponse("theirs")))
    try:
        assert client.get(f"{room}/_stcore/metrics").text == "theirs"  # nobody has to be let in
        monkeypatch.setenv(PASSWORD, "correct horse")
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            for end in ("", "/", "?families=active_sessions"):
                answer = client.request(method, f"{room}/_stcore/metrics{end}")
                assert answer.status_code == 403 and "session_events" not in answer.text
        assert client.put(f"{room}/_stcore/upload_file/unknown/f").status_code == 403
        assert client.get(f"{room}/_stcore/health").text == "theirs"
        page = client.get(f"{room}/circuit", headers={"accept": "text/html"}).text
        assert "BACKEND_BASE_URL" in page  # our own page, too
    finally:
        config.set_option("server.baseUrlPath", before)


def test_the_teachers_page_has_a_password_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEACHER, "chalk")
    board().put("weights", "somebody", 1.0)
    at = AppTest.from_file(str(ROOT / "pages" / "learn.py"), default_timeout=60)
    at.query_params["view"] = "Teacher"
    at.run()
    labels = {b.label for b in at.button}
    assert "Enter" in labels and not {"Clear them"} & labels
    assert not [m for m in at.markdown if "What the class said" in m.value]
    at = entered(entered(at, "students guess"), "chalk")
    assert [m for m in at.markdown if "What the class said" in m.value]
    board().clear()
