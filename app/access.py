"""Who may see the app, where it is opened to a network: whoever logs in, or has the password.

The password, and another for the lesson's teacher, stand in environment variables or under the same
names in Streamlit's secrets.toml. With an ``[auth]`` section there, ``st.login`` is asked instead.
Without any of these everybody who reaches the server sees and does everything, and a warning says
so unless it is bound to this machine alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from functools import lru_cache

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from mansu.launch import LOCAL, OPEN, PASSWORD, TEACHER

PAUSE = 1.0
"""Seconds that a wrong password takes, one after the other for everybody who tries."""
_SALT = secrets.token_bytes(16)
_TRYING = threading.Lock()
_LET_IN: set[str] = set()
"""The sessions that were, by their ids."""


def granted() -> bool:
    """Whether this session may see the app; else what it takes is drawn."""
    found = _granted()
    if found and (context := get_script_run_ctx()):
        _LET_IN.add(context.session_id)
    return found


def is_let_in(session_id: str) -> bool:
    """Whether a session was shown the app, and may send files, which the server keeps in memory."""
    return session_id in _LET_IN


def is_guarded() -> bool:
    """Whether somebody has to be let in at all."""
    return _has_login() or bool(_wanted(PASSWORD))


def _granted() -> bool:
    if _has_login():
        if st.user.get("is_logged_in"):
            return True
        st.title("MANSU")
        st.button("Log in", icon=":material/login:", type="primary", on_click=st.login)
        return False
    if not _wanted(PASSWORD):
        if st.get_option("server.address") not in LOCAL:
            st.sidebar.warning(OPEN, icon=":material/lock_open:")
        return True
    return _given(PASSWORD) or _asked(PASSWORD, "MANSU", "The password of this server")


def granted_to_teacher() -> bool:
    """Whether this session may see the class's answers and clear them; else the password is
    asked for, if there is one."""
    if not _wanted(TEACHER) or _given(TEACHER):
        return True
    return _asked(TEACHER, "", "The teacher's password")


def _has_login() -> bool:
    return st.secrets.load_if_toml_exists() and "auth" in st.secrets


def _wanted(name: str) -> str:
    """A password, or "" where there is none."""
    if st.secrets.load_if_toml_exists() and name in st.secrets:
        return str(st.secrets[name])
    return os.environ.get(name, "")


def _given(name: str) -> bool:
    """Whether the session has given it; another password since then has to be given again."""
    given = st.session_state.get(f"given {name}", b"")
    return hmac.compare_digest(given, _hashed(_wanted(name)))


def _asked(name: str, title: str, label: str) -> bool:
    """Draw the form that asks for a password."""
    if title:
        st.title(title)
    with st.form(f"form {name}", width=420):
        text = st.text_input(label, type="password")
        tried = st.form_submit_button("Enter", type="primary")
    if tried:
        given = _hashed(text)
        with _TRYING:
            if hmac.compare_digest(given, _hashed(_wanted(name))):
                st.session_state[f"given {name}"] = given
                st.rerun()
            time.sleep(PAUSE)
        st.error("That is not the password.", icon=":material/error:")
    return False


@lru_cache(maxsize=8)
def _hashed(text: str) -> bytes:
    return hashlib.scrypt(text.encode("utf-8", "replace"), salt=_SALT, n=2**14, r=8, p=1)
