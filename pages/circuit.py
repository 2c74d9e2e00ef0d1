"""Circuit: what is the smallest part of the model that does it alone?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
import torch
from torch import Tensor

from app import graph_view, jobs, state
from mansu.circuits import lens
from mansu.circuits.circuit import Circuit
from mansu.job.runs import Run
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

TOKENS = 8  # shown at either end
ALL = "the whole circuit"


def shown_circuit(circuit: Circuit) -> Circuit:
    wanted = st.slider(
        "Faithfulness at least",
        0,
        100,
        round(100 * circuit.tau),
        5,
        format="%d %%",
        key="faithfulness",
        bind="query-params",
        help="The smallest measured circuit that keeps this share of the behaviour: "
        "(m(circuit) − m(corrupt)) ÷ (m(clean) − m(corrupt)), with every other edge really "
        "patched to its corrupt value; m is the logit difference of answer and foil.",
    )
    return circuit.at(wanted / 100)


def numbers(run: Run, shown: Circuit) -> None:
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
        "–" if known is None else f"{known:.0%}",
        help="Measured by patching, not estimated"
        + (f"; 95 % interval {interval[0]:.0%} to {interval[1]:.0%}." if interval else "."),
    )
    if run.has("mask"):
        mask = run.mask()
        c.metric(
            "Mask",
            f"{mask.size:,}",
            help=f"Parameters that MANSU may change: {mask.n_slices:,} head slices (q, k, v, o) "
            f"and {mask.n_neurons:,} MLP neurons of the run's circuit (at τ).",
        )
        d.metric(
            "Share of the model",
            f"{mask.fraction:.2%}",
            help=f"Mask ÷ all {mask.total:,} parameters. It covers {mask.mass:.0%} of the "
            "circuit's attribution.",
        )


def chosen_by_click() -> None:
    """Take the clicked node into the choice, which is also in the URL."""
    points = st.session_state["graph"].selection.points
    names = [p["customdata"][0] for p in points if p.get("customdata")]
    if names:
        state.select("node", names[0])


def inspect_node(subject: Subject, pairs: Pairs, index: int, about: Mapping[str, Any]) -> None:
    decode = subject.tokenizer.decode
    prompts = {
        str(line): str(decode(clean[:n]))
        for line, clean, n in zip(
            pairs.rows, pairs.clean.tolist(), pairs.length.tolist(), strict=True
        )
    }
    line = state.choose("Prompt", list(prompts), "pair", format_func=lambda k: prompts[k])
    row = list(prompts).index(line)
    n = int(pairs.length[row])
    ends = [int(pairs.answer[row]), int(pairs.foil[row])]
    answer, foil = lens.words(subject, torch.tensor(ends))
    st.markdown(
        f"Corrupt prompt: “{decode(pairs.corrupt[row, :n])}”  \nAnswer `{answer}`, foil `{foil}`"
    )
    seen = state.look(subject, pairs, row)
    if about["kind"] == "head":
        side = state.switch("Prompt read", ["clean", "corrupt"], "side")
        patterns = seen.attention(about["layer"], about["head"])
        tokens = (pairs.clean if side == "clean" else pairs.corrupt)[row, :n]
        st.markdown(f"**Attention pattern of {about['name']}**")
        st.plotly_chart(
            graph_view.attention_map(patterns[int(side == "corrupt")], lens.words(subject, tokens)),
            config={"displayModeBar": False},
            alt=f"Attention of {about['name']} from each position to each earlier one",
        )
    title = (
        "The model's own prediction"
        if about["kind"] == "logits"
        else f"What {about['name']} writes"
    )
    st.markdown(
        f"**{title}**",
        help="Logit lens of the output's difference, clean − corrupt, at the last position: "
        "(z clean − z corrupt) · final norm · unembedding. It is the direct effect only.",
    )
    raised = seen.promoted(index)
    shown = _extremes(raised, ends)
    st.plotly_chart(
        graph_view.token_bars(
            raised[shown],
            lens.words(subject, shown),
            [shown.tolist().index(token) for token in ends],
        ),
        config={"displayModeBar": False},
        alt="The tokens that the node raises and lowers most",
    )


def _extremes(raised: Tensor, always: list[int]) -> Tensor:
    """The most raised and the most lowered tokens, and ``always``, by falling value."""
    found = {*raised.topk(TOKENS).indices.tolist(), *(-raised).topk(TOKENS).indices.tolist()}
    tokens = raised.new_tensor(sorted(found | set(always))).long()
    return tokens[raised[tokens].argsort(descending=True)]


def trust(run: Run, running: bool) -> None:
    """How far the circuit can be trusted: what was measured, or the button that measures it."""
    st.subheader("How far can this circuit be trusted?")
    if not run.has("trust"):
        st.markdown(
            "It was chosen on a sample of prompts. This asks what another sample would have "
            "chosen, how faithful it is there, and what breaking its parameters does."
        )
        if st.button("Measure it", icon=":material/play_arrow:", disabled=running):
            jobs.start(["trust", str(run.path)], run.path)
            st.rerun()
        return
    found = run.trust()
    a, b, c, d = st.columns(4)
    overlap, low, high = found.overlap
    a.metric(
        "Overlap of resamples",
        f"{overlap:.0%}",
        help="Mean Jaccard overlap |A ∩ B| ÷ |A ∪ B| of this circuit's best edges with those of "
        f"bootstrap resamples of the pairs; 95 % of resamples lie in {low:.0%} to {high:.0%}. "
        f"{found.always:.0%} of the edges are in more than 95 % of the resamples.",
    )
    if found.held_out_faithfulness is None:
        b.metric("On other prompts", "unknown", help="The task has no prompt left to try it on.")
    else:
        value, low, high = found.held_out_faithfulness
        b.metric(
            "On other prompts",
            f"{value:.0%}",
            help=f"Faithfulness on {found.held_out_pairs} pairs that the circuit was not chosen "
            f"on; bootstrap 95 % interval {low:.0%} to {high:.0%}.",
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
        f"{found.metric_masked:.2f}",
        help=f"Mean logit difference on clean prompts with the mask's parameters at zero; "
        f"{found.metric:.2f} untouched; random masks of the same size: "
        f"{', '.join(f'{x:.2f}' for x in found.metric_random_masks)}.",
    )


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
    shown = shown_circuit(circuit)
    numbers(run, shown)
    graph = shown.graph()
    every = [circuit.node(i)["name"] for i in range(circuit.layout.n_sources + 1)]
    left, right = st.columns([3, 2])
    with right:
        node = state.choose(
            "Node", [ALL, *(n for n in every if n in graph)], "node", help="Or click in the graph."
        )
    with left:
        figure, left_out = graph_view.circuit_graph(shown, None if node == ALL else node)
        st.plotly_chart(
            figure,
            key="graph",
            on_select=chosen_by_click,
            selection_mode="points",
            config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
            alt=f"Graph of the circuit: {len(shown)} edges; choose a node in the list beside it",
        )
        if left_out:
            st.caption(f"The {graph_view.DRAWN} strongest edges are drawn, {left_out:,} are not.")
    with right:
        if node == ALL:
            st.info("Click a node to see where it attends and which tokens it promotes.")
        else:
            st.markdown(graph_view.meaning(graph, node), unsafe_allow_html=True)
            index, session = every.index(node), state.session(run)
            inspect_node(session.subject, session.pairs, index, shown.node(index))
        st.markdown(
            "**How faithfulness grows with edges**",
            help="Every point was measured by patching all other edges; the band is a bootstrap "
            "95 % interval over pairs.",
        )
        st.plotly_chart(
            graph_view.faithfulness_curve(circuit, shown),
            config={"displayModeBar": False},
            alt="Faithfulness by number of edges",
        )
        with st.expander("The nodes as a table", icon=":material/table:"):
            st.dataframe(graph_view.node_table(graph), hide_index=True)
    trust(run, running)


run = state.begin("Circuit", "What is the smallest part of the model that does it alone?")
with state.show_errors():
    page(run)
