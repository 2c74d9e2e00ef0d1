"""Compare: two edits side by side, each in full precision and in NF4."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection

import streamlit as st

from app import charts, jobs, state, words
from mansu.errors import MansuError, NotMeasuredError
from mansu.evidence.verdict import ABOUT, Property, Verdict
from mansu.job.runs import Run, listed
from mansu.report import rows
from mansu.show import numbers

MARKS = {
    "passed": ":green[:material/check_circle:] passed",
    "failed": ":red[:material/cancel:] failed",
    "undecided": ":orange[:material/balance:] undecided",
    "vacuous": ":orange[:material/block:] vacuous",
    "unknown": ":orange[:material/help:] unknown",
}
Side = tuple[Run, str]


def side_by_side(
    title: str, help: str | None, sides: tuple[Side, Side], draw: Callable[[Run, str, str], None]
) -> None:
    """A section with a column for each edit."""
    st.subheader(title, help=help)
    for letter, column, (run, method) in zip("AB", st.columns(2), sides, strict=True):
        with column:
            st.markdown(f"**{letter} · {words.title(method)}**")
            try:
                draw(run, method, letter)
            except NotMeasuredError as error:
                st.info(f"Not measured yet: {error}", icon=":material/info:")
            except MansuError as error:
                st.error(str(error), icon=":material/error:")


def accuracy(run: Run, method: str, letter: str) -> None:
    """Accuracy by set: the unedited model and the edit, in full precision and NF4."""
    name = words.title(method)
    full, nf4 = run.measurement(method, nf4=False), run.measurement(method, nf4=True)
    series = {
        "Unedited": run.base(nf4=False),
        "Unedited, NF4": run.base(nf4=True),
        name: full,
        f"{name}, NF4": nf4,
    }
    alt = f"Accuracy by set before and after {name}, in full precision and NF4"
    st.plotly_chart(charts.accuracy_bars(series), alt=alt, key=f"accuracy {letter}")
    with st.expander("As a table"):
        st.table(rows.accuracies(series).columns)


def sizes(run: Run, method: str, letter: str) -> None:
    """Size of the edit, recovery after NF4, and loss on plain text."""
    history, base = run.history(method), run.base(nf4=False)
    full, nf4 = run.measurement(method, nf4=False), run.measurement(method, nf4=True)
    nats = [float(m.splits["forget"].log_probability.mean()) for m in (base, full, nf4)]
    gap = nf4.splits["forget"].accuracy - full.splits["forget"].accuracy
    columns = st.columns(2) + st.columns(2)
    columns[0].metric("Weights moved", f"{history['moved']:,}", help=words.help("moved"))
    columns[0].caption(f"{numbers.percent(history['fraction'])} of all")
    columns[1].metric("Recovery in NF4", f"{100 * gap:+.1f} points", help=words.help("gap"))
    columns[1].caption("of forget accuracy")
    columns[2].metric(
        "Answer log-probability", f"{nats[1]:.2f} nats", help=words.help("log_probability")
    )
    columns[2].caption(f"{nats[2]:.2f} in NF4, {nats[0]:.2f} unedited")
    if full.text_loss is not None and base.text_loss is not None:
        columns[3].metric("Loss on text", f"{full.text_loss:.2f}", help=words.help("text_loss"))
        columns[3].caption(f"{nf4.text_loss or 0:.2f} in NF4, {base.text_loss:.2f} unedited")


def circuit_divergence(run: Run, method: str, letter: str) -> None:
    """CAD between its controls."""
    d = run.divergences(method)
    alt = f"CAD and signal CAD of {words.title(method)} between their controls"
    st.plotly_chart(charts.divergences(d), alt=alt, key=f"cad {letter}")
    shown = (
        ("The suppressor's forget accuracy", d.suppressor_accuracy, "suppressor_accuracy"),
        ("Rank correlation of edges", d.rank_correlation, "rank_correlation"),
        ("Strongest edges kept", d.top_overlap, "top_overlap"),
    )
    for label, number, key in shown:
        if number is not None:
            text = f"{number:.3f}" if key == "rank_correlation" else numbers.percent(number)
            st.markdown(f"{label}: **{text}**", help=words.help(key))


def histogram(run: Run, method: str, letter: str) -> None:
    """The quantised weights' updates against their bins."""
    survival = run.survival(method).quantized
    ratio = numbers.number(survival.width_over_update)
    st.markdown(
        f"Median bin width ÷ update **{ratio}×**, codes that change "
        f"**{numbers.percent(survival.share, 2)}**",
        help=words.help("width_over_update"),
    )
    alt = "Update over bin width of quantised weights before and after NF4, boundary at 1"
    st.plotly_chart(charts.bin_histogram(survival), alt=alt, key=f"histogram {letter}")


def mark(p: Property) -> str:
    """A property's status, and the check that decides it."""
    told = "not measured" if p.worst is None else capitalised(str(p.worst))
    return f"{MARKS[p.status]}  \n{told}"


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def verdict_table(verdicts: dict[str, Verdict]) -> None:
    """A row a property, a column an edit."""
    titles = [capitalised(title) for title in ABOUT.values()]
    columns: dict[str, list[str]] = {"Property": [*titles, "**Together**"]}
    for label, verdict in verdicts.items():
        columns[label] = [*map(mark, verdict.properties), MARKS[verdict.status]]
    st.table(columns)


def properties(run: Run, method: str, letter: str) -> None:
    """Each property with its evidence and everything that it asks."""
    for p in run.verdict(method).properties:
        with st.container(border=True):
            st.markdown(f"**{capitalised(p.title)}**: {MARKS[p.status]}", help=words.help(p.name))
            st.caption(p.evidence)
            if p.checks:
                with st.expander(f"All {len(p.checks)} checks"):
                    st.table(rows.checks(p).columns)


def measured(
    run: Run, kind: str, command: str, missing: str, label: str, running: bool
) -> list[str]:
    """The judged methods that have this kind of result, and a button that makes the others'."""
    done = [m for m in run.judged() if run.has(kind, m)]
    others = [m for m in run.judged() if m not in done]
    if others:
        st.markdown(f"{missing} {', '.join(map(words.title, others))}.")
        if st.button(label, icon=":material/play_arrow:", disabled=running):
            named = [part for method in others for part in ("--method", method)]
            jobs.start([command, str(run.path), *named], run.path)
            st.rerun()
    return done


def recovery(run: Run, chosen: Collection[str], running: bool) -> None:
    """Recovery attacks on the run's judged methods, or the button that runs them.

    The charts show the chosen ones, the table all.
    """
    st.subheader("Recovery attacks", help=words.help("attacks"))
    done = measured(
        run,
        "attacks",
        "attack",
        "What brings the forgotten back? Not tried yet on",
        "Run the attacks",
        running,
    )
    if not done:
        return
    series = {"Unedited": run.attacks(None), **{words.title(m): run.attacks(m) for m in done}}
    labels = {attack: title for attack, (title, _) in words.ATTACKS.items()}
    drawn = {"Unedited", *map(words.title, chosen)}
    shown = {name: found for name, found in series.items() if name in drawn}
    left, right = st.columns([3, 2])
    with left:
        alt = "Accuracy of each edit and the unedited model under each recovery attack"
        st.plotly_chart(charts.attacks(shown, labels), alt=alt, key="attacks")
    with right:
        st.markdown("**Relearning, step by step**")
        alt = "Accuracy on the asked half after each step of relearning"
        st.plotly_chart(charts.relearning(shown), alt=alt, key="relearning")
        with st.expander("What each attack does"):
            st.markdown("\n".join(f"- **{t}**: {text}" for t, text in words.ATTACKS.values()))
    st.dataframe(
        rows.attacked(series, labels).columns,
        hide_index=True,
        height="content",
        alt="Accuracy under each recovery attack with its 95 % interval",
    )


def tradeoff(run: Run, running: bool) -> None:
    """Forgetting against permanence, a point an edit and strength, or the button that measures."""
    st.subheader("Forgetting against permanence", help=words.help("tradeoff"))
    done = measured(
        run,
        "strengths",
        "strengths",
        "Not measured at parts of its strength yet:",
        "Measure the tradeoff",
        running,
    )
    if done:
        points = {words.title(m): run.strengths(m).points for m in done}
        alt = "Fall of forget accuracy against what NF4 leaves of it, by edit and strength"
        figure = charts.tradeoff(points, run.about["tolerance"])
        st.plotly_chart(figure, alt=alt, key="tradeoff")


def exporting(sides: tuple[Side, Side]) -> None:
    """The command that exports one of the two edits, a button that runs it, and its model card."""
    with st.expander("Export an edit", icon=":material/download:"):
        left, right = st.columns(2)
        with left:
            letter = state.switch(
                "Edit",
                ["A", "B"],
                "export",
                format_func=lambda x: f"{x} · {words.title(sides['AB'.index(x)][1])}",
            )
        formats = right.pills(
            "Formats",
            list(words.EXPORTS),
            selection_mode="multi",
            default=["hf"],
            key="formats",
            format_func=lambda x: words.EXPORTS[x],
            help=words.help("export"),
        )
        owner, method = sides["AB".index(letter)]
        if not formats:
            st.info("Choose a format.", icon=":material/info:")
            return
        folder = owner.export_folder(method, formats)
        chosen = [word for name in formats for word in ("--format", name)]
        arguments = ["export", str(owner.path), "--method", method, *chosen, "--to", str(folder)]
        st.code(shlex.join(["mansu", *arguments]), language="bash", wrap_lines=True)
        if not folder.is_dir():
            busy = jobs.state(owner) == "running"
            label, icon = "Run this command", ":material/play_arrow:"
            if st.button(label, icon=icon, disabled=busy, key="run export"):
                with state.show_errors():
                    jobs.start(arguments, owner.path)
                    st.rerun()
            return
        made = folder.stat().st_mtime
        if owner.file("edit", method).stat().st_mtime > made:
            st.warning("The edit was made again since: delete the folder to export it anew.")
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
others = {r.name: r for r in listed() if r.edits()}
if not run.edits():
    st.info(
        "This run has no edit yet: run MANSU, and a baseline to hold it against, on the Unlearn "
        "page.",
        icon=":material/info:",
    )
    st.stop()

left, right = st.columns(2)
with left:
    first = state.choose("Edit A", run.edits(), "a", format_func=words.title)
with right:
    names = list(others)
    name = state.choose(
        "Run of edit B",
        names,
        "run_b",
        default=names.index(run.name),
        help="The same run as A, or another one.",
    )
    other = others[name]
    second = state.choose(
        "Edit B",
        other.edits(),
        "b",
        default=min(1, len(other.edits()) - 1),
        format_func=words.title,
    )
if (other.subject, other.about["digest"]) != (
    run.subject,
    run.about["digest"],
):
    st.warning("A and B are about different subjects or tasks: their numbers do not compare.")

sides = ((run, first), (other, second))
verdicts = {}
for letter, (owner, method) in zip("AB", sides, strict=True):
    with state.show_errors():
        if owner.has("verdict", method):
            verdicts[f"{letter} · {words.title(method)}"] = owner.verdict(method)
if verdicts:
    st.subheader("Verdict", help="Passed only if all four properties are.")
    verdict_table(verdicts)
side_by_side("Accuracy", words.help("accuracy"), sides, accuracy)
side_by_side("In numbers", None, sides, sizes)
side_by_side("Update ÷ bin width", words.help("ratio"), sides, histogram)
side_by_side("CAD: was the circuit erased?", words.help("edited"), sides, circuit_divergence)
with state.show_errors():
    recovery(run, [m for owner, m in sides if owner.path == run.path], running)
with state.show_errors():
    tradeoff(run, running)
side_by_side("The verdict's evidence", words.help("decided"), sides, properties)
exporting(sides)
