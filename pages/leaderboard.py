"""Leaderboard: every edit of the sweeps, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from app import charts, state, tables, words
from app import leaderboard_view as view
from app.folded import folded
from mansu.job.runs import Run, folder
from mansu.sweep.board import ranked
from mansu.sweep.store import FILE, Store

PAGES, EVERY = Path(__file__).parent, "all"
GRID = """subjects = ["tiny"]
tasks = ["tiny-colours"]
seeds = [0, 1]

[methods.mansu]
rate = [0.06, 0.12]

[methods.graddiff]"""


def none_yet() -> None:
    """How a sweep is made."""
    st.info("No sweep was made here yet.", icon=":material/info:")
    st.markdown(
        "A sweep makes many edits by itself: each method, with each of its settings, on each task "
        "and model. Write down which in a file, `grid.toml`:"
    )
    st.container(key="grid").code(GRID, language=None)  # the colours of its parts lack contrast
    st.markdown("Then run this; the edits are shown here as they come:")
    st.code("mansu sweep grid.toml --workers 2", language=None)


def filtered(rows: Sequence[view.Row]) -> Sequence[view.Row]:
    """The rows of the chosen model, task and method."""
    columns = {"Model": "subject", "Task": "task", "Method": "method"}
    for place, (title, column) in zip(st.columns(3), columns.items(), strict=True):
        with place:
            several = [EVERY, *view.options(rows, column)]
            named = words.title if column == "method" else lambda name: Path(name).name
            chosen = state.choose(
                title,
                several,
                f"board_{column}",
                format_func=lambda name, named=named: "All" if name == EVERY else named(name),
            )
        rows = [row for row in rows if chosen in (EVERY, row[column])]
    return rows


def one(store: Store, rows: Sequence[view.Row]) -> None:
    """One edit, the first of these to begin with: every check of its verdict, where its run is."""
    st.header("One edit")
    named = {row["unit"]: row for row in rows if row["verdict"]}
    if not named:
        st.info("None of these was judged yet.", icon=":material/info:")
        return
    unit = state.choose("Edit", list(named), "unit", format_func=lambda u: view.label(named[u]))
    row = named[unit]
    if Run.is_at(folder() / row["run"]):
        links = st.container(horizontal=True)
        for page, title in (("compare", "Open its run"), ("review", "Review it")):
            links.page_link(
                PAGES / f"{page}.py",
                label=title,
                icon=":material/arrow_forward:",
                query_params={"run": row["run"]},
            )
    else:
        st.markdown("Its run folder is not among the runs of this app.")
    for label, asked in view.checks(row, store.checks(unit)).items():
        folded(label, partial(tables.draw, asked), key=f"{unit} {label}")


st.title("Leaderboard")
st.markdown("**Which edit forgets most, keeps most, and stays forgotten in 4 bits?**")
store = Store(folder() / FILE)
with state.show_errors():
    every = store.rows()
    if not every:
        none_yet()
        st.stop()
    rows = filtered(every)
    st.markdown(
        f"{view.best(rows)} Those that passed most stand first; a click on a column's name sorts "
        "by it."
    )
    best = ranked(rows)
    shown, points = view.table(best), st.column_config.NumberColumn(format="%.1f")
    texts = {name: st.column_config.TextColumn(width=w) for name, w in view.widths(shown).items()}
    nats = {"Kept lost, nats": st.column_config.NumberColumn(format="%.3f")}
    falls = dict.fromkeys(("Forgotten, points", "Kept fell by, points"), points)
    st.dataframe(
        shown,
        hide_index=True,
        key="board",
        height=view.height(best),  # said, so that its place is kept while it loads
        column_config=texts | falls | nats,
    )
    if failed := view.failures(rows):
        with st.expander(f"Why {len(failed)} could not be made"):
            st.markdown("\n".join(f"- {words.plain(text)}" for text in failed))
    st.header("Forgotten against kept")
    st.markdown(
        "Each mark is an edit with its 95 % intervals. Further right it forgets more; further down "
        "what was to be kept suffers less, in log-probability: accuracy may stand still while the "
        "answers become improbable. The best are at the bottom right."
    )
    alt = "Fall on the forgotten facts against the largest loss of what is kept, by method"
    st.plotly_chart(charts.forgotten_kept(view.spots(rows)), alt=alt, key="scatter")
    one(store, best)
