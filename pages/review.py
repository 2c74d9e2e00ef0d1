"""Review: the dossier of an edit, the reviewer's decision on it, and the run as one file."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import streamlit as st

from app import address, state, tables, thresholds, words
from app.components.figure import figure
from app.folded import folded
from mansu import exports
from mansu.evidence.review import DECISIONS, Review
from mansu.evidence.verdict import ABOUT
from mansu.job import names
from mansu.job.runs import Run, listed
from mansu.report import changes, rows, svg
from mansu.report import dossier as of
from mansu.report.dossier import Dossier, dossier
from mansu.report.flips import FAILING
from mansu.report.page import accuracies, bins, page, told
from mansu.report.repeat import WHERE
from mansu.show.sentences import capitalised

JUST = "signed just now"
"""Key of the session: the run and the edit whose signature has to be confirmed."""


def verdict(found: Dossier) -> None:
    """The verdict with everything that each property asks."""
    judged = found.judged
    st.header("Verdict", help=f"Passed only if all four are. {words.help('decided')}")
    signed = "Nobody has signed it yet" if found.signed is None else found.signed.decision
    st.markdown(
        f"Together: **{judged.status}** ({judged.counts}). {capitalised(signed)}: see the "
        "[decision](#decision) below the evidence."
    )
    for p in judged.properties:
        with st.container(border=True, key=f"property {p.name}"):
            st.markdown(
                f"**{capitalised(p.title)}**: {words.MARKS[p.status]}", help=words.help(p.name)
            )
            st.markdown(words.plain(p.evidence))
            if p.checks:
                label = f"What it asks ({len(p.checks)}): {p.title}"
                folded(label, partial(tables.draw, rows.checks(p)))


def decided(found: Dossier) -> None:
    """Who has signed, and what must be known of it."""
    signed = found.signed
    if signed is None:
        st.info("Nobody has signed this edit yet.", icon=":material/edit_document:")
        return
    draw = st.success if signed.decision == "accepted" else st.warning
    who = capitalised(f"{signed.decision}: {signed.name}, {signed.date}")
    draw(words.plain(who), icon=":material/edit_document:")
    for said in of.remarks(found):
        st.warning(said)
    if signed.notes:
        tables.draw(of.notes_table(signed))


def unread(
    run: Run, method: str, found: Dossier, read: tuple[Review | None, Mapping[str, str]]
) -> str | None:
    """Why whoever has read that may not sign yet, a sentence; None where it is what there is.

    Args:
        read: the signature that stood on the page, and ``of.evidence``.
    """
    now = run.read("review", method) if run.has("review", method) else None
    if now != read[0]:
        if now is None:
            return "The signature that you read is gone: read the evidence again, then sign again."
        who = words.plain(now.name)
        return (
            f"{who} has signed since you opened this form: read that decision above, then sign "
            "again."
        )
    if other := of.news(read[1], of.evidence(found)):
        return (
            f"The evidence has changed since you opened this form ({other}): read it, then sign "
            "again."
        )
    return None


def sign(run: Run, method: str, found: Dossier) -> None:
    """The reviewer's decision, and the form that makes it."""
    st.header("Decision")
    with st.container():  # the box below stays open when something is added here
        decided(found)
    if run.is_example:
        st.info("An example stays as it is and cannot be signed: copy it on Home, and sign that.")
        return
    # What is typed is of this edit alone, and no signature of another person's takes its place.
    key, session = f"sign {run.name}/{method}/{{}}".format, st.session_state
    if key("name") not in session:
        session[key("read")] = found.signed, of.evidence(found)
        session.update({key(name): "" for name in ("name", *ABOUT)})
    label = f"Sign the edit “{words.plain(names.title(run, method))}”"
    with st.expander(label):
        with st.form(key("form")):
            decision = st.radio(
                "Decision",
                DECISIONS,
                index=None,
                horizontal=True,
                key=key("decision"),
                format_func=capitalised,
            )
            name = st.text_input("Your name", key=key("name"))
            notes = {}
            for p in found.judged.properties:
                notes[p.name] = st.text_area(f"Note on {p.title}", key=key(p.name), height=80)
                st.caption(words.MARKS[p.status])
            pressed = st.form_submit_button(label, icon=":material/edit_document:")
        just = session.pop(JUST, None) == (run.name, method)
        if just and found.signed is not None:
            st.success("Signed, and kept with the run. The files below hold it.")
        if not pressed:
            return
        if decision is None:
            st.error("Choose a decision, then sign.", icon=":material/error:")
            return
        if why := unread(run, method, found, session[key("read")]):
            session[key("read")] = found.signed, of.evidence(found)
            st.error(why, icon=":material/error:")
            return
        with state.show_errors():
            said = {about: note.strip() for about, note in notes.items() if note.strip()}
            review = of.review_of(found, decision, name, said)
            run.save({"review": review}, method)
            session[key("read")] = review, of.evidence(found)
            session[JUST] = run.name, method
            st.rerun()


def evidence(found: Dossier) -> None:
    """What was asked, accuracies, histogram, facts, attacks, limits."""
    st.header("What was asked")
    tables.draw(of.about_table(found))
    st.header("Accuracy", help=words.help("accuracy"))
    figure(accuracies(found), "accuracy")
    folded("As a table", lambda: tables.draw(of.accuracy_table(found)))
    if found.histogram is not None:
        st.header("Update ÷ bin width", help=words.help("ratio"))
        st.markdown(told(found.histogram))
        figure(bins(found.histogram), "histogram")
    if found.circuit is not None:
        st.header("What is left of the circuit", help=words.help("erasure"))
        st.markdown(words.plain(changes.sentence(found.circuit)))
        figure(svg.circuit(found.circuit), "circuit left")
        folded("The strongest edges of each kind", partial(edges, found.circuit))
    st.header("Facts that fail or flip", help=words.help("flips"))
    tables.draw(of.counts_table(found))
    kinds = of.failing(found)
    if kinds:
        chosen = address.bound(
            st.pills,
            "Show those that are",
            FAILING,  # of every edit the same: what is chosen stays when the edit changes
            selection_mode="multi",
            default=kinds,
            key="kinds",
            format_func=capitalised,
        )
        st.dataframe(
            of.facts_table(found, chosen).columns,
            hide_index=True,
            alt="Facts that fail or flip, with what became of each",
        )
    st.header("Recovery attacks", help=words.help("attacks"))
    tried = of.attacks_table(found)
    if tried is None:
        st.info("Not tried on this edit yet: run them on the Compare page.")
    else:
        tables.draw(tried)
        st.caption(" ".join(tried.notes))

    st.header("What the verdict does not say")
    st.markdown("\n".join(f"- {limit}" for limit in found.limits))


def edges(found: changes.Changes) -> None:
    tables.draw(changes.edges_table(found))
    st.caption(words.plain(changes.NAMED))


def repeat(found: Dossier) -> None:
    """Commands, versions, files."""
    st.header("How to repeat it")
    st.code("\n".join(found.commands), language=None, wrap_lines=True)
    st.caption(WHERE)
    versions = ", ".join(f"{name} {v}" for name, v in found.packages.items())
    st.caption(f"MANSU {found.mansu}, Python {found.python}, {versions}; seed {found.about.seed}.")
    folded("Files and their hashes", lambda: tables.draw(of.files_table(found)))


def against(run: Run, method: str, found: Dossier) -> None:
    """This dossier beside another one."""
    with st.expander("Hold it against another dossier", icon=":material/compare_arrows:"):
        others = {
            f"{r.name}/{m}": (r, m)
            for r in listed()
            for m in r.edits()
            if (r.path, m) != (run.path, method)
        }
        given = st.file_uploader("The .json of another dossier", type="json")
        name = st.selectbox("Or an edit that is here", list(others), index=None)
        other = None
        if given is not None:
            other = Dossier.from_json(given.getvalue())
        elif name is not None:
            other = dossier(*others[name])
        if other is not None:
            tables.draw(of.differences(found, other))


def take_along(run: Run, method: str, found: Dossier) -> None:
    """The dossier and the run as files, and a run of such a file."""
    st.header("Take it along")
    name = f"{run.name}-{method}"
    row = st.container(horizontal=True, key="files")  # a narrow page puts them below each other
    icon = ":material/download:"
    row.download_button("Dossier (HTML)", lambda: page(found), f"{name}.html", icon=icon)
    row.download_button(
        "Dossier (JSON)", lambda: json.dumps(found.to_json()), f"{name}.json", icon=icon
    )
    row.download_button("Whole run (zip)", lambda: bundled(run), f"{run.name}.zip", icon=icon)


def bundled(run: Run) -> bytes:
    with tempfile.TemporaryDirectory() as home:
        exports.pack(run, Path(home) / "run.zip")
        return (Path(home) / "run.zip").read_bytes()


def bring() -> None:
    """A run out of a bundle."""
    with st.expander("Open a run that somebody sent you", icon=":material/upload:"):
        given = st.file_uploader("A bundle (.zip)", type="zip", max_upload_size=512)
        if given is not None and st.button("Add this run", icon=":material/add:"):
            with state.show_errors():
                made = exports.unpack(io.BytesIO(given.getvalue()))
                state.select("run", made.name)
                st.rerun()


run = state.begin("Review", "What must you know before you sign for this edit?")
bring()
if not run.edits():
    st.info("This run has no edit yet: make one on the Unlearn page.", icon=":material/info:")
    st.stop()
method = state.choose("Edit", run.edits(), "edit", format_func=partial(names.title, run))
with state.show_errors():
    found = dossier(run, method, thresholds.moved(run))
    verdict(found)
    folded("The thresholds", lambda: tables.draw(of.thresholds_table(found)))
    evidence(found)
    sign(run, method, found)
    take_along(run, method, found)
    repeat(found)
    with state.show_errors():
        against(run, method, found)
