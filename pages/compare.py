"""Compare: any number of edits on the same axes, row by row, in full precision and in NF4."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import streamlit as st

from app import address, charts, edits, jobs, state, tables, thresholds, words
from app.charts import UNEDITED
from app.folded import folded
from mansu.evidence.verdict import ABOUT, Property, Verdict, no_controls
from mansu.job.judging import judged
from mansu.job.runs import Run
from mansu.report import rows
from mansu.report.compare import Side, compare, sizes, spots
from mansu.show.sentences import capitalised

T = TypeVar("T")


def each(sides: Sequence[Side], read: Callable[[Side], T]) -> dict[str, T]:
    """What is read of each edit, by its label; those that lack it are named."""
    found: dict[str, T] = {}
    for side in sides:
        with state.show_errors():
            found[side.label] = read(side)
    return found


def ready(sides: Sequence[Side]) -> list[Side]:
    """Those that were measured; of each other one it is said once by what it is."""

    def read(side: Side) -> Side:
        side.run.require("nf4", side.method)
        return side

    return list(each(sides, read).values())


def differences(sides: Sequence[Side]) -> None:
    """What separates the edits: sentences, then every quantity with its paired difference."""
    if len(sides) == 1:
        st.info(
            "Choose a second edit that is measured to see what separates the two.",
            icon=":material/info:",
        )
    found = compare(sides)
    for sentence in found.headline:
        st.markdown(f"- {words.plain(sentence)}")
    if any(found.differences):
        table = found.differences_table()
        with st.container(key="differences"):
            tables.draw(table)
        st.caption(" ".join(table.notes))

    def values() -> None:
        tables.draw(found.table())
        tables.draw(sizes(sides))

    folded("Each edit's own values", values)


@st.fragment  # a slider judges anew, and draws nothing else
@state.show_errors()
def verdicts(run: Run, sides: Sequence[Side]) -> None:
    """The verdict on each edit, by thresholds that can be moved."""
    st.header("Verdict", help=f"Passed only if all four are. {words.help('decided')}")
    place = st.container()
    with state.show_errors():
        changes = thresholds.moved(run)
        found = each(sides, lambda side: judged(side.run, side.method, changes))
        with place:
            verdict_table(found)
        for label, verdict in found.items():
            folded(f"The evidence: {label}", partial(evidence, verdict))


def verdict_table(found: Mapping[str, Verdict]) -> None:
    """A row a property, a column an edit."""
    titles = [capitalised(title) for title in ABOUT.values()]
    columns: dict[str, list[str]] = {"Property": [*titles, "**Together**"]}
    for label, verdict in found.items():
        together = f"{words.MARKS[verdict.status]}  \n{verdict.counts}"
        columns[words.plain(label)] = [*map(mark, verdict.properties), together]
    st.table(columns)


def mark(p: Property) -> str:
    """A property's status, and the check that decides it."""
    told = "not measured" if p.worst is None else capitalised(str(p.worst))
    return f"{words.MARKS[p.status]}  \n{words.plain(told)}"


def evidence(verdict: Verdict) -> None:
    """Each property with its evidence and everything that it asks."""
    for p in verdict.properties:
        st.markdown(f"**{capitalised(p.title)}**: {words.MARKS[p.status]}", help=words.help(p.name))
        st.caption(words.plain(p.evidence))
        if p.checks:
            tables.draw(rows.checks(p))


def permanence(sides: Sequence[Side]) -> None:
    """Forgetting against permanence, whole edits with intervals."""
    st.header("Forgetting against permanence", help=words.help("permanence"))
    found = each(sides, spots)
    if found:
        alt = "Fall of accuracy towards chance against what NF4 leaves of it, with intervals"
        st.plotly_chart(charts.forgetting_permanence(found), alt=alt, key="permanence")


def accuracy(sides: Sequence[Side]) -> None:
    """Accuracy by set of every edit, in full precision and NF4."""
    st.header("Accuracy", help=words.help("accuracy"))
    first = sides[0].run
    found = {UNEDITED: (first.base(nf4=False), first.base(nf4=True))} | each(
        sides,
        lambda s: (s.run.measurement(s.method, nf4=False), s.run.measurement(s.method, nf4=True)),
    )
    alt = "Accuracy by set of the unedited model and each edit, in full precision and NF4"
    st.plotly_chart(charts.accuracies(found), alt=alt, key="accuracy")
    if any(side.run.path != first.path for side in sides):
        st.caption("The unedited model is that of the first edit's run.")

    def table() -> None:
        flat = {
            f"{n}{s}": m for n, b in found.items() for s, m in zip(("", ", NF4"), b, strict=True)
        }
        tables.draw(rows.accuracies(flat))

    folded("As a table", table, key="accuracy table")


@st.fragment  # the boundary moves nothing else
@state.show_errors()
def histograms(sides: Sequence[Side]) -> None:
    """Update ÷ bin width of every edit on one axis, and the share above a boundary."""
    st.header("Update ÷ bin width", help=words.help("ratio"))
    found = each(sides, lambda side: side.run.survival(side.method).quantized)
    if not found:
        return
    boundary = address.bound(
        st.slider,
        "Boundary: power of ten of update ÷ bin width",
        -4.0,
        2.0,
        0.0,
        0.1,
        key="boundary",
        help="At 0 the update is as wide as its bin. Further left, whether the code changes "
        "depends on where in its bin the weight lies.",
    )
    alt = "Histogram of update over bin width, a line an edit, with the boundary"
    st.plotly_chart(charts.bin_histograms(found, boundary), alt=alt, key="histograms")
    tables.draw(rows.boundary(found, boundary))


def circuit_divergence(sides: Sequence[Side]) -> None:
    """CAD of every edit between its controls."""
    asked = f"{words.help('erasure')} {words.help('edited')}"
    st.header("CAD: was the circuit erased?", help=asked)
    found = each(sides, lambda side: side.run.divergences(side.method))
    if found:
        alt = "CAD and signal CAD of each edit between its controls"
        st.plotly_chart(charts.divergences(found), alt=alt, key="cad")
        for side in (side for side in sides if side.label in found):
            edited = side.run.measurement(side.method, nf4=False)
            for why in no_controls(found[side.label], edited).values():
                st.caption(f"{words.plain(side.label)}: {why}")
        folded(
            "As a table",
            lambda: tables.draw(rows.divergences(found, words.CAD)),
            key="CAD table",
        )


def measured(
    sides: Sequence[Side], run: Run, kind: str, command: str, label: str, running: bool
) -> list[Side]:
    """The edits that have this kind of result, and a button that makes that of the others."""
    done = [side for side in sides if side.run.has(kind, side.method)]
    others = [side for side in sides if side not in done]
    mine = [side.method for side in others if side.run.path == run.path]
    if others:
        names = ", ".join(side.label for side in others)
        st.markdown(f"Not measured yet of {words.plain(names)}.")
    if mine and st.button(label, icon=":material/play_arrow:", disabled=running):
        named = [part for method in mine for part in ("--method", method)]
        with state.show_errors():
            jobs.start([command, str(run.path), *named], run.path)
            st.rerun()
    return done


def recovery(sides: Sequence[Side], run: Run, running: bool) -> None:
    """Recovery attacks on the edits, or the button that runs them."""
    st.header("Recovery attacks", help=words.help("attacks"))
    done = measured(sides, run, "attacks", "attack", "Run the attacks", running)
    if not done:
        return
    found = {UNEDITED: done[0].run.attacks(None)} | each(
        done, lambda side: side.run.attacks(side.method)
    )
    labels = {attack: title for attack, (title, _) in words.ATTACKS.items()}
    alt = "Accuracy of each edit and the unedited model under each recovery attack"
    st.plotly_chart(charts.attacks(found, labels), alt=alt, key="attacks")
    table = rows.attacked(found, labels)
    tables.draw(table)
    st.caption(" ".join(table.notes))
    st.markdown("**Relearning, step by step**")
    alt = "Accuracy on the asked half after each step of relearning"
    st.plotly_chart(charts.relearning(found), alt=alt, key="relearning")
    with st.expander("What each attack does"):
        st.markdown("\n".join(f"- **{t}**: {text}" for t, text in words.ATTACKS.values()))


def strengths(sides: Sequence[Side], run: Run, running: bool) -> None:
    """The edits at parts of their strength, or the button that measures them."""
    st.header("At parts of the strength", help=words.help("tradeoff"))
    done = measured(sides, run, "strengths", "strengths", "Measure the tradeoff", running)
    if done:
        found = each(done, lambda side: side.run.strengths(side.method).points)
        alt = "Fall of forget accuracy against what NF4 leaves of it, by edit and strength"
        figure = charts.tradeoff(found, run.about["tolerance"])
        st.plotly_chart(figure, alt=alt, key="tradeoff")


def exporting(sides: Sequence[Side]) -> None:
    """The command that exports one of the edits, a button that runs it, and its model card."""
    with st.expander("Export an edit", icon=":material/download:"):
        left, right = st.columns(2)
        with left:
            named = {side.label: side for side in sides}
            side = named[state.choose("Edit", list(named), "export")]
        with right:
            formats = address.bound(
                st.pills,
                "Formats",
                list(words.EXPORTS),
                selection_mode="multi",
                default=["hf"],
                key="formats",
                format_func=words.EXPORTS.__getitem__,
                help=words.help("export"),
            )
        owner, method = side.run, side.method
        if not formats:
            st.info("Choose a format.", icon=":material/info:")
            return
        chosen, parts = [word for name in formats for word in ("--format", name)], [*formats]
        if "gguf" in formats:
            with right:
                types = list(words.OUTTYPES)
                parts.append(
                    state.choose(
                        "GGUF type", types, "outtype", format_func=words.OUTTYPES.__getitem__
                    )
                )
            chosen += ["--outtype", parts[-1]]
        if owner.is_example:  # the command would be refused
            st.info("An example stays as it is: copy it on Home, and export that.")
            return
        folder = owner.export_folder(method, parts)
        arguments = ["export", str(owner.path), "--method", method, *chosen, "--to", str(folder)]
        st.code(shlex.join(["mansu", *arguments]), language=None, wrap_lines=True)
        if not folder.is_dir():
            busy = jobs.state(owner) == "running"
            label, icon = "Run this command", ":material/play_arrow:"
            if st.button(label, icon=icon, disabled=busy, key="run export"):
                with state.show_errors():
                    jobs.start(arguments, owner.path)
                    st.rerun()
            return
        st.success(f"Exported to `{folder}`.", icon=":material/check_circle:")
        card = folder / "README.md"
        if card.is_file():
            text = card.read_text(encoding="utf-8")
            name = f"{method}-README.md"
            st.download_button("Download the model card", text, name, icon=":material/download:")


run = state.begin(
    "Compare", "Which edit forgets, keeps the rest, outlives NF4, and erases the circuit?"
)
running = jobs.panel(run)
if not run.edits():
    st.info(
        "This run has no edit yet: run MANSU, and a baseline to hold it against, on the Unlearn "
        "page.",
        icon=":material/info:",
    )
    st.stop()
chosen = edits.several(run)
if not chosen:
    st.info("Choose at least one edit.", icon=":material/info:")
    st.stop()
if sides := ready(chosen):
    st.header("What separates them")
    for section in (differences, permanence):
        with state.show_errors():
            section(sides)
    verdicts(run, sides)
    for section in (accuracy, histograms, circuit_divergence):
        with state.show_errors():
            section(sides)
for section in (recovery, strengths):
    with state.show_errors():
        section(chosen, run, running)
exporting(chosen)
