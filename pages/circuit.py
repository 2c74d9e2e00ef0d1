"""Circuit: what is the smallest part of the model that does it alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st
import torch

from app import address, graph_view, jobs, node_view, state
from app.components import graph
from app.folded import folded
from mansu.circuits.circuit import Circuit
from mansu.circuits.diff import diff
from mansu.circuits.edges import Edges
from mansu.circuits.patching import faithfulness_of
from mansu.circuits.trust import NONE_LEFT
from mansu.job import names
from mansu.job.runs import Run
from mansu.report import changes
from mansu.show.numbers import many, percent, written

ALL = "the whole circuit"
NOTHING = "no edit"


def numbers(run: Run, shown: Circuit) -> None:
    st.header("The circuit found")
    a, b, c, d = st.columns(4)
    a.metric(
        "Edges",
        f"{len(shown):,}",
        help=f"Of {shown.layout.n_edges:,}; edges on no path from the embedding to the logits are "
        "dropped.",
    )
    known, interval = shown.faithfulness, shown.interval
    b.metric(
        "Faithfulness",
        percent(known, 0),
        help="Measured by patching, not estimated."
        + ("" if known is None else f" {_interval(interval or (), 0, shown.sampled)}"),
    )
    if run.has("mask"):
        mask = run.mask()
        more = mask.movable
        c.metric(
            "Mask",
            f"{mask.size:,}",
            help=f"Parameters behind the run's circuit (at τ): {mask.n_slices:,} head slices "
            f"(q, k, v, o) and {mask.n_neurons:,} MLP neurons. MANSU picks what it moves from "
            f"{more.n_slices:,} slices and {more.n_neurons:,} neurons, by what hangs on each "
            "weight.",
        )
        d.metric(
            "Share of the model",
            percent(mask.fraction, 2),
            help=f"Mask ÷ all {mask.total:,} parameters. It covers {percent(mask.mass, 0)} of the "
            "circuit's attribution.",
        )


def compared(run: Run, circuit: Circuit) -> graph.Compared | None:
    """What a chosen edit left of the circuit; None where none is chosen, or was not measured."""
    if not run.edits():
        return None
    method = state.choose(
        "Compare with what is left after",
        [NOTHING, *run.edits()],
        "edit",
        format_func=lambda name: name if name == NOTHING else names.title(run, name),
        help="The circuit before the edit, after it, and after it in NF4: which edges are kept, "
        "gone, back after NF4, or new.",
    )
    if method != NOTHING:
        with state.show_errors():
            found = diff(circuit, run.edge_scores(method))
            return graph.Compared(method, names.title(run, method), found, state.moved(run, method))
    return None


@st.fragment
@state.show_errors()
def explore(run: Run, circuit: Circuit) -> None:
    """The graph and what is asked about its open node; neither reruns the rest of the page."""
    layout, key = circuit.layout, f"graph {run.name}"
    told = graph.heard(key)
    asked = st.query_params.to_dict()
    view = told.view if told else graph.View.of(asked, layout.n_layers)
    refused, linked = st.session_state.get(f"refused {key}", ({}, view))
    if not told:
        refused = view.refused(asked, layout.n_layers)
    if not told or view == linked:  # the graph answers at once, which is no reason to say no more
        for name, (wanted, is_now) in refused.items():
            address.refuse(address.VIEW[name], wanted, is_now, "cannot be")
    other = compared(run, circuit)
    if other and not told and "stage" not in st.query_params:
        view = replace(view, stage="all")  # a link to an edit is a link to what it did
    if not told:
        st.session_state[f"refused {key}"] = refused, view
    alone = {"stage": graph.ALONE} if other and view.stage is None else {}
    address.link(view.query(layout.n_layers) | alone)
    shown = circuit if view.n is None else circuit.top(view.n)
    if told:
        shown = circuit.only(torch.tensor(told.codes, dtype=torch.long))
    every = [circuit.node(i)["name"] for i in range(layout.n_sources + 1)]

    def looked() -> None:
        if now := graph.heard(key):
            state.select("node", now.node or ALL)

    def marked() -> None:
        with state.show_errors():
            marks = graph.marked(key)
            marks.check(every)
            run.save({"marks": marks})

    node = state.chosen([ALL, *every], "node")
    data = graph.of_run(run, circuit, other) | {
        "view": view.to_js(),
        "node": None if node == ALL else node,
        "mask": None,
    }
    if view.n is not None and run.has("attribution"):
        with state.show_errors():
            data["mask"] = view.n, state.mask_size(run, view.n)
    graph.draw(data, key=key, on_view=looked, on_marks=marked)
    if other:
        st.caption(changes.sentence(changes.told(layout, other.diff)))
    node = state.choose("Node", [ALL, *every], "node", help="Or click it in the graph.")
    if node == ALL:
        st.info("Open a node to see where it attends and which tokens it promotes.")
    else:
        with state.show_errors():
            index = every.index(node)
            node_view.draw(run, index, circuit.node(index), other.method if other else None)
    left, right = st.columns(2)
    with left:
        st.markdown(
            "**How faithfulness grows with edges**",
            help="Every point was measured by patching all other edges; "
            + (
                "of one fact alone there is no interval."
                if circuit.facts == 1
                else f"the band is a bootstrap 95 % interval over {circuit.sampled}."
            ),
        )
        st.plotly_chart(
            graph_view.faithfulness_curve(circuit, shown),
            config={"displayModeBar": False},
            alt="Faithfulness by number of edges",
        )
        folded(
            "The nodes shown, as a table",
            lambda: st.dataframe(graph_view.node_table(shown.graph()), hide_index=True),
        )
    with right:
        downloads(run, shown)
        selection(run, circuit, shown)


def downloads(run: Run, shown: Circuit) -> None:
    """The edges that the graph shows, as files."""
    edges = Edges.of(shown, run.name)
    files = {"GraphML": edges.to_graphml, "JSON": edges.to_json, "CSV": edges.to_csv}
    st.markdown(f"**What is shown ({many(len(shown), 'edge')}), as a file**")
    for column, (name, text) in zip(st.columns(len(files)), files.items(), strict=True):
        file = f"circuit-{run.name}.{name.lower()}"
        column.download_button(name, text, file, on_click="ignore", width="stretch")


def selection(run: Run, circuit: Circuit, shown: Circuit) -> None:
    """How faithful the edges shown are, or those between pinned nodes, measured when asked."""
    st.markdown(
        "**Faithfulness of your own selection**",
        help="Every edge that is not selected is really patched to its corrupt value. Edges on no "
        "path from the embedding to the logits do nothing.",
    )
    pins = graph.marks_of(run).pins
    which = state.switch(
        "Selection", ["edges shown", "between pinned nodes", "from a file"], "selection"
    )
    with state.show_errors():
        chosen = shown
        if which == "between pinned nodes":
            chosen = circuit.between({*pins, "embed", "logits"})
            st.caption(
                "Pin nodes in the graph (P)."
                if not pins
                else f"{many(len(pins), 'node is', 'nodes are')} pinned."
            )
        elif which == "from a file":
            file = st.file_uploader("JSON of edges, as it is saved above", type="json")
            if file is None:
                return
            chosen = Edges.from_json(file.getvalue().decode("utf-8-sig", "replace")).on(circuit)
        key, codes = "selection measured", (run.name, *chosen.kept.tolist())
        label = f"Measure it: {many(len(chosen), 'edge')}"
        if st.button(label, key="measure selection", icon=":material/play_arrow:"):
            with st.spinner("Patching every other edge …", show_time=True):
                found = faithfulness_of(state.patched(run), chosen.edge_mask)
            st.session_state[key] = codes, found
        asked, found = st.session_state.get(key, (None, None))
        if asked == codes and found:
            value, *bounds = found
            st.metric("Faithfulness, measured", percent(value, 1))
            st.caption(_interval(bounds, 1))


def trust(run: Run, running: bool) -> None:
    """How far the circuit can be trusted: what was measured, or the button that measures it."""
    st.header("How far can this circuit be trusted?")
    if not run.has("trust"):
        st.markdown(
            "It was chosen on a sample of prompts. This asks what another sample would have "
            "chosen, how faithful it is on other prompts, and what breaking its parameters does."
        )
        if st.button("Measure it", icon=":material/play_arrow:", disabled=running):
            jobs.start(["trust", str(run.path)], run.path)
            st.rerun()
        return
    found = run.trust()
    a, b, c, d = st.columns(4)
    if found.overlap is None:
        why = "It was chosen on one fact alone, of which there are no resamples."
        a.metric("Overlap of resamples", "unknown", help=why)
    else:
        overlap, low, high = found.overlap
        a.metric(
            "Overlap of resamples",
            percent(overlap, 0),
            help="Mean Jaccard overlap |A ∩ B| ÷ |A ∪ B| of this circuit's best edges with those "
            f"of bootstrap resamples of the {found.sampled}; 95 % of resamples lie in "
            f"{percent(low, 0)} to {percent(high, 0)}. "
            f"{percent(found.always, 0)} of the edges are in more than 95 % of the resamples.",
        )
    if found.held_out_faithfulness is None:
        b.metric("On other prompts", "unknown", help=f"Of {found.held_out} {NONE_LEFT}.")
    else:
        value, *bounds = found.held_out_faithfulness
        b.metric(
            "On other prompts",
            percent(value, 0),
            help=f"Faithfulness on {found.held_out}. {_interval(bounds, 0, found.sampled)}",
        )
    c.metric(
        "Nodes that could go",
        f"{len(found.spare)} of {len(found.minimality)}",
        help="Nodes, of those tried, without which faithfulness falls by less than 0.001 "
        f"(minimality). Incompleteness, mean |F(C \\ K) − F(M \\ K)| over random sets K of "
        f"nodes: {found.incompleteness:.3f}.",
    )
    d.metric(
        "Metric, mask at zero",
        written(found.metric_masked, ".2f"),
        help=f"Mean logit difference on clean prompts with the mask's parameters at zero; "
        f"{written(found.metric, '.2f')} untouched; random masks of the same size: "
        f"{', '.join(written(x, '.2f') for x in found.metric_random_masks)}.",
    )


def _interval(bounds: Sequence[float], digits: int, over: str = "facts") -> str:
    if not bounds:
        return "Of one fact alone there is no interval."
    low, high = (percent(bound, digits) for bound in bounds)
    return f"Bootstrap 95 % interval over {over}: {low} to {high}."


def page(run: Run) -> None:
    running = jobs.panel(run)
    if not run.has("circuit"):
        if not running:
            st.info("This run has no circuit yet.")
            if st.button("Find the circuit", type="primary", icon=":material/play_arrow:"):
                jobs.start(["circuit", str(run.path)], run.path)
                st.rerun()
        return
    circuit = run.circuit()
    explore(run, circuit)
    numbers(run, circuit)
    trust(run, running)


run = state.begin("Circuit", "What is the smallest part of the model that does it alone?")
with state.show_errors():
    page(run)
