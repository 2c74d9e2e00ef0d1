"""Steps about the choice: how many weights and how far, and which."""

from __future__ import annotations

from math import log

import streamlit as st

from app.lesson import figures, real
from app.lesson.bench import SILENCED, Bench
from app.lesson.step import Answer, Link, Outcome, Step, between
from app.lesson.weights import committed
from mansu.evidence.tradeoff import COUNTS, DISTANCES, Cell, best
from mansu.progress import Step as Done
from mansu.show.numbers import percent

PATH = "lesson path"
"""In the session's state: the cells that were looked at, as (count, distance)."""


# Fewer and further.


def cells(bench: Bench) -> dict[tuple[int, int], Cell]:
    """The grid by place: which count, which distance. Progress is shown where it takes time."""
    place = st.empty()  # always there: else what follows would move when the bar goes

    def tell(step: Done) -> None:
        place.progress(step.share, f"Measured {step.done} of {step.total} choices, for everybody …")

    found = bench.grid(tell)
    place.empty()
    return {divmod(i, len(DISTANCES)): cell for i, cell in enumerate(found)}


def _predict_grid(bench: Bench) -> Answer | None:
    by = cells(bench)
    left, right = st.columns(2, vertical_alignment="bottom")
    with left:
        count = st.select_slider(
            "How many weights move",
            range(len(COUNTS)),
            0,
            format_func=lambda i: f"{by[i, 0].moved:,}",
            key="lesson count",
        )
    with right:
        distance = st.select_slider(
            "How far each moves, in widths of its bin",
            range(len(DISTANCES)),
            2,
            format_func=lambda i: figures.fraction(DISTANCES[i]),
            key="lesson distance",
        )
    path: list[tuple[int, int]] = st.session_state.setdefault(PATH, [])
    if not path or path[-1] != (count, distance):
        path.append((count, distance))
    cell = by[count, distance]
    columns = st.columns(3)
    columns[0].metric("Codes that change", percent(cell.survival, 0))
    columns[1].metric("Colours right, in 4 bits", percent(cell.forget, 0))
    columns[2].metric("Other answers lose", f"{figures.loss(cell)} nats")
    st.caption(
        f"Aim: at most {percent(bench.forgotten(), 0)} of the colours right, at the least loss for "
        f"everything else. (A nat is a unit of surprise: a loss of {log(2):.1f} halves an answer's "
        f"probability.) You have looked at {len(set(path))} of {len(by)} choices."
    )
    lacking = "" if len(set(path)) > 1 else "Try other choices first: move a handle."
    return (float(count), float(distance)) if committed("grid", lacking) else None


def _reveal_grid(bench: Bench, answer: Answer) -> None:
    by = cells(bench)
    mine = by[_place(answer)]
    path = [by[place] for place in st.session_state.get(PATH, [])]
    st.plotly_chart(
        figures.tradeoff(list(by.values()), path, mine, best(list(by.values()), bench.forgotten())),
        alt="Colours right and loss of other answers, by how many weights move and how far",
        key="lesson grid chart",
    )
    st.caption(
        "In each field: colours right in 4 bits, and what other answers lose (nats). Dark: "
        "forgotten. Long moves change nearly every code, short ones few."
    )


def _place(answer: Answer) -> tuple[int, int]:
    return int(float(answer[0])), int(float(answer[1]))


def _told(cell: Cell) -> str:
    return f"{cell.moved:,} weights, {figures.bins(cell.distance)} each"


def _outcome_grid(bench: Bench, answer: Answer) -> Outcome:
    by = cells(bench)
    mine, found = by[_place(answer)], best(list(by.values()), bench.forgotten())
    short = [c for c in by.values() if c.distance == min(DISTANCES)]
    most = max(short, key=lambda c: c.moved)
    if found is None:
        truth, difference = "none of them forgets", "nothing to find here"
    else:
        truth = _told(found)
        difference = (
            "the same field"
            if mine == found
            else ("" if mine.forget <= bench.forgotten() else "not forgotten: ")
            + f"colours right {percent(mine.forget, 0)} against {percent(found.forget, 0)}, "
            f"loss {figures.loss(mine)} against {figures.loss(found)} nats"
        )
    return Outcome(
        said=_told(mine),
        truth=truth,
        difference=difference,
        lesson=f"Short moves of many weights are lost: {most.moved:,} of them, "
        f"{figures.bins(most.distance)} each, change {percent(most.survival, 0)} of "
        f"the codes and leave {percent(most.forget, 0)} of the colours. Long ones stay, but each "
        "costs something. Fewer and further stays; which weights decides the price.",
        caught="“More moved weights forget more”: past the point where the colours are gone, more "
        "only costs."
        if found is not None
        and mine.forget <= bench.forgotten()
        and mine.moved > found.moved
        and mine.damage > 2 * found.damage
        else "",
    )


GRID = Step(
    key="grid",
    title="Fewer and further?",
    question="How many weights should move, and how far?",
    story="Two sliders. The weights that the strong training moved furthest go first, each in the "
    "direction that it was moved in. Look around, then keep the best place that you found.",
    minutes=2.5,
    ask="Which of the two makes a change outlive 4 bits? Which one does the damage?",
    notes="Let them wander: the way is drawn afterwards. Short moves are lost however many they "
    "are, and long moves of most weights cost most: the best field lies between.",
    predict=_predict_grid,
    reveal=_reveal_grid,
    outcome=_outcome_grid,
    accepts=lambda answer: between(answer, (0, len(COUNTS) - 1), (0, len(DISTANCES) - 1)),
    said=lambda bench, answer: _told(cells(bench)[_place(answer)]),
    link=Link("compare", "See forgetting against permanence", ("mansu",)),
)


# Which.


def _predict_nodes(bench: Bench) -> Answer | None:
    names = bench.nodes()
    chosen = st.pills(
        f"Switch off {SILENCED} parts",
        list(names),
        selection_mode="multi",
        format_func=lambda node: names[node],
        key="lesson nodes",
    )
    enough = len(chosen) == SILENCED
    lacking = "" if enough else f"{len(chosen)} chosen: choose {SILENCED}."
    return tuple(map(float, sorted(chosen))) if committed("nodes", lacking) else None


def _chosen(answer: Answer) -> tuple[int, ...]:
    return tuple(int(float(node)) for node in answer)


def _reveal_nodes(bench: Bench, answer: Answer) -> None:
    st.plotly_chart(
        figures.nodes(bench.importance(), bench.nodes(), _chosen(answer), bench.strongest()),
        alt="Every part of the model by layer, as large as its attribution",
        key="lesson nodes map",
    )
    rows = []
    for name, (forget, kept) in _silences(bench, answer).items():
        rows += [(f"{name}: colours", forget, None), (f"{name}: to be kept", kept, None)]
    st.plotly_chart(
        figures.bars(rows, "Right answers (dashed: guessing)", chance=True),
        alt="Right answers with three parts switched off, chosen in three ways",
        key="lesson nodes chart",
    )


def _silences(bench: Bench, answer: Answer) -> dict[str, tuple[float, float]]:
    return {
        "yours": bench.without(_chosen(answer)),
        "attribution's": bench.without(bench.strongest()),
        "at random": bench.without_some(),
    }


def _outcome_nodes(bench: Bench, answer: Answer) -> Outcome:
    names, found = bench.nodes(), _silences(bench, answer)
    hit = len({*_chosen(answer)} & {*bench.strongest()})
    circuit = bench.circuit()
    assert circuit.mask is not None  # find_circuit gives one
    (forget, kept), (_, random) = found["attribution's"], found["at random"]
    return Outcome(
        said=", ".join(names[node] for node in _chosen(answer)),
        truth=", ".join(names[node] for node in bench.strongest()),
        difference=f"{hit} of {SILENCED} the same; colours right {percent(found['yours'][0], 0)} "
        f"against {percent(forget, 0)}",
        lesson=f"Few parts carry the colours: {len(circuit)} of {circuit.layout.n_edges} "
        "connections do the work (the circuit). But a part has other work, too: with "
        f"attribution's {SILENCED} off, {percent(kept, 0)} of what was to be kept is right "
        f"({percent(random, 0)} with {SILENCED} at random). So a circuit says where to look, and "
        f"only single weights of it are moved: {percent(circuit.mask.fraction)} of this toy's may, "
        "far fewer of a large model's.",
    )


NODES = Step(
    key="nodes",
    title="Which weights?",
    question="Which parts of the model carry the colours?",
    story="A model is layers; each has a few **heads**, which move information between words, and "
    "an **MLP**, which works on one word. **Attribution** measures how much each part contributes "
    f"to an answer. Find {SILENCED} parts without which the colours are gone.",
    minutes=2,
    ask="Where would you look up a colour: early or late? In a head or in an MLP?",
    notes="Most parts can be switched off unnoticed. The ones that matter matter for everything: "
    "this is why the method moves single weights, not whole parts.",
    predict=_predict_nodes,
    reveal=_reveal_nodes,
    outcome=_outcome_nodes,
    accepts=lambda answer: (
        between(answer, *[(1, 15)] * SILENCED)
        and len({*answer}) == SILENCED
        and all(float(node).is_integer() for node in answer)
    ),
    said=lambda bench, answer: ", ".join(bench.nodes()[node] for node in _chosen(answer)),
    link=Link("circuit", "Explore the circuit"),
    real=real.circuit,
)
