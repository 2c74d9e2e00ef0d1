"""NF4: how much of an edit the 4-bit format can see."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import charts, glossary, jobs, state, tables, words
from app.folded import folded
from mansu.job import names
from mansu.job.judging import gaps
from mansu.job.runs import Run
from mansu.quant.survival import NF4Report, Survival
from mansu.report import rows
from mansu.show.numbers import number, percent

GROUPS = {
    "all": "All parameters",
    "quantized": "Quantised by NF4",
    "unquantized": "Left alone by NF4",
}


def numbers(survival: Survival) -> None:
    """The numbers of one group, each with its formula in a tooltip."""
    ratio, share = survival.update_over_width, survival.share
    shown = (
        ("Median update ÷ bin width", number(ratio), "update_over_width"),
        ("Codes that change", percent(share, 2), "share"),
        ("Codes expected to change", percent(survival.expected_share, 2), "expected_share"),
        ("Energy that survives", percent(survival.energy), "energy"),
        ("Update kept on average", percent(survival.projection), "projection"),
        ("Noise ÷ update", number(survival.noise), "noise"),
        ("Weights moved", f"{survival.moved:,}", "moved"),
        ("Bystanders", f"{survival.bystanders:,}", "bystanders"),
    )
    place = st.container(key="metrics")
    columns = place.columns(4) + place.columns(4)
    for column, (label, value, key) in zip(columns, shown, strict=True):
        column.metric(label, value, help=words.help(key))


def reading(report: NF4Report) -> str:
    """The report of the quantised weights in a sentence or two."""
    s = report.quantized
    if not s.moved or s.share is None or s.expected_share is None:
        return "No weight that NF4 quantises was moved: NF4 leaves this edit as it is."
    text = (
        f"Of {s.moved:,} moved weights that NF4 quantises, **{s.changed:,} "
        f"({percent(s.share, 2)}) change their code**"
    )
    if s.share > 0.99:
        return f"{text}: NF4 sees the edit whole."
    text += (
        "; NF4 does not see the others move. "
        f"{percent(s.expected_share, 2)} were to be expected of updates of this size"
    )
    if 0.5 <= s.share / max(s.expected_share, 1e-12) <= 2:
        text += (
            ": about as many codes flip as keep the *average* update, so what NF4 brings back is "
            "a matter of noise and degree, not of a total loss"
        )
    return f"{text}."


def table(report: NF4Report) -> None:
    """Every group of parameters, a row each."""
    parts = {GROUPS[g]: getattr(report, g) for g in GROUPS}
    parts |= {f"kind: {k}": s for k, s in report.kinds.items() if s.moved}
    parts |= {f"layer {n}": s for n, s in report.layers.items() if s.moved}
    st.dataframe(
        pd.DataFrame(
            {
                "Group": list(parts),
                "Parameters": [s.parameters for s in parts.values()],
                "Moved": [s.moved for s in parts.values()],
                "Codes changed": [s.changed for s in parts.values()],
                "Share": [s.share for s in parts.values()],
                "Expected": [s.expected_share for s in parts.values()],
                "Update ÷ width": [s.update_over_width for s in parts.values()],
                "Energy": [s.energy for s in parts.values()],
                "Noise": [s.noise for s in parts.values()],
                "Blocks rescaled": [s.rescaled for s in parts.values()],
            }
        ),
        hide_index=True,
        alt="NF4 survival by group of parameters",
    )


def other_formats(run: Run, method: str, running: bool) -> None:
    """What comes back in other formats, or the button that measures it."""
    st.header("What comes back in other formats", help=words.help("by_format"))
    if run.has("by_format", method):
        shown = rows.gaps(gaps(run, method))
        tables.draw(shown)
        st.caption(words.plain(" ".join(shown.notes)))
        return
    st.markdown(
        f"The verdict is about NF4. People also run {glossary.link('GGUF')}'s Q4_0 to Q8_0, FP4 "
        "and int8: this asks the same questions in each of them."
    )
    if st.button("Try other formats", icon=":material/play_arrow:", disabled=running):
        with state.show_errors():
            jobs.start(["formats", str(run.path), "--method", method], run.path)
            st.rerun()


run = state.begin("NF4", "Is the edit large enough to be seen by 4-bit quantisation?")
running = jobs.panel(run)
ready = [m for m in run.edits() if run.has("survival", m)]
if not ready:
    st.info(
        "No edit of this run has been quantised yet: run a method on the Unlearn page.",
        icon=":material/info:",
    )
    st.stop()

left, right = st.columns(2)
with left:
    method = state.choose("Edit", ready, "edit", format_func=partial(names.title, run))
with right:
    group = state.choose(
        "Parameters",
        list(GROUPS),
        "group",
        default=1,
        format_func=lambda name: GROUPS[name],
        help=words.help("unquantised"),
    )

with state.show_errors():
    report = run.survival(method)
    survival: Survival = getattr(report, group)
    st.markdown(reading(report))
    outside = report.unquantized
    if outside.moved:
        st.warning(
            f"{percent(outside.moved / report.all.moved)} of the moved weights "
            f"({outside.moved:,}) are parameters that NF4 leaves alone, such as tied embeddings "
            "and norms: they carry their update through whole, so what this edit forgets in NF4 "
            "is not owed to the quantised weights alone.",
            icon=":material/warning:",
        )
    numbers(survival)
    if not survival.moved:
        st.info("No weight of this group was moved.")
        st.stop()
    st.header("Update ÷ bin width", help=words.help("ratio"))
    alt = "Histogram of update over bin width before and after NF4, with the boundary at 1"
    st.plotly_chart(charts.bin_histogram(survival), alt=alt, key="histogram")
    if group == "unquantized":
        st.caption("These ratios say what would be if these parameters were quantised too.")

    layers, kinds = st.columns(2)
    with layers:
        st.header("By layer", help=words.help("share"))
        alt = "Share of moved weights whose code changes, by layer"
        st.plotly_chart(charts.survival_by_layer(report.layers), alt=alt, key="layers")
    with kinds:
        st.header("By kind of matrix", help=words.help("share"))
        alt = "Share of moved weights whose code changes, by kind of matrix"
        st.plotly_chart(charts.survival_by_kind(report.kinds), alt=alt, key="kinds")
    if run.has("formats", method):
        kept = run.formats(method)
        st.header("Codes in other formats", help=words.help("formats"))
        shown = rows.formats(kept)
        st.markdown(" ".join(shown.notes))
        tables.draw(shown)
    folded("Every group as a table", partial(table, report))
    other_formats(run, method, running)
