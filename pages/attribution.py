"""Attribution: which edges of the computation carry what is to be forgotten?"""

from __future__ import annotations

import streamlit as st

from app import graph_view, jobs, links, new_run, state, words
from mansu.job.runs import Run
from mansu.show.numbers import percent, written


def result(run: Run) -> None:
    running = jobs.panel(run)
    unfinished = len(run.judged()) < len(run.asked)
    with st.container(), state.show_errors():
        if (unfinished and not running) and st.button(
            "Go on with the whole job", icon=":material/play_arrow:"
        ):
            new_run.start(run, "run")
    if not run.has("attribution"):
        if not running:
            st.info("This run has no attribution yet: go on with it, or start a new one.")
        return
    attribution = run.attribution()
    graph = attribution.layout
    a, b, c, d = st.container(key="metrics").columns(4)
    a.metric(
        "Clean metric",
        written(attribution.clean, "+.2f"),
        help="Mean over the pairs of logit(answer) − logit(foil) on the clean prompts.",
    )
    b.metric(
        "Corrupt metric",
        written(attribution.corrupt, "+.2f"),
        help="The same difference on the corrupt prompts, where the foil is right.",
    )
    c.metric("Edges", f"{graph.n_edges:,}", help="Node output → q, k, v, MLP or logits input.")
    share = attribution.concentration()
    d.metric(
        "Share of the top 100",
        percent(share),
        help="Σ |score| of the 100 strongest edges ÷ Σ |score| of all: how concentrated it is.",
    )
    left, right = st.container(key="where").columns(2)
    with left:
        st.header(
            "Where the behaviour lives",
            help="An edge's score: EAP-IG's estimate of the change of the metric when the edge is "
            "patched to its corrupt value: negative (blue) where it carries the answer, positive "
            "(orange) where it works against it. A node's score sums its outgoing edges. "
            "Shades go by the square root, so that weaker nodes are seen.",
        )
        st.plotly_chart(
            graph_view.heat_map(attribution),
            config={"displayModeBar": False},
            alt="Heat map of node scores by layer and head; the table beside it has the numbers.",
        )
    with right:
        st.header(
            "Strongest edges",
            help="a3.h2 is head 2 of layer 3, ⟨q⟩ its query, kv1⟨k⟩ the key of key/value head 1; "
            "m3 is the MLP of layer 3.",
        )
        st.dataframe(
            graph_view.strongest(attribution, 50),
            hide_index=True,
            height=420,
            column_config={
                "share": st.column_config.NumberColumn(
                    format="%.2f %%", help="|score| ÷ Σ |score| of all edges"
                ),
            },
        )


def model_card(run: Run) -> None:
    card = st.expander("Model card", icon=":material/id_card:", key="card", on_change="rerun")
    if card.open:
        with card, state.show_errors():
            about = state.subject(run.subject).card()
            if "note" in about:
                st.info(about.pop("note"), icon=":material/info:")
            shown = {k: f"{v:,}" if isinstance(v, int) else str(v) for k, v in about.items()}
            st.table({k: words.plain(v) for k, v in shown.items()})


st.title("Attribution")
st.markdown("**Which edges of the computation carry what is to be forgotten?**")
run = state.sidebar()
if run is None:
    st.markdown(
        "Choose a model and a task, then run the whole job: it finds the circuit, edits it, "
        "quantises the result and judges it."
    )
    new_run.form(None)
else:
    with st.container(key="show"):
        view = state.switch("Show", [links.RESULT, links.NEW], "view", label_visibility="collapsed")
    if view == links.NEW:
        new_run.form(run)
    else:
        with state.show_errors():
            result(run)
        model_card(run)
