"""Ask: what does each model answer, and what did 4-bit storage bring back?"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import streamlit as st

from app import address, ask_view, asking, jobs, node_view, state, tables, words
from mansu import quant
from mansu.job import names
from mansu.job.runs import Run
from mansu.measure.answers import FLIPS
from mansu.measure.scores import TITLES
from mansu.report import asked
from mansu.show.numbers import many, number
from mansu.tasks.facts import Fact

CIRCUIT = Path(__file__).with_name("circuit.py")
OWN, NO_EDIT, EVERY = "own", "no second edit", "every"  # with a space: no edit is called so
OWN_TITLE = "Your own words"
OWN_WORDS = "own"
WORDS = {OWN_WORDS: "Each model's own", "unedited": "The unedited model's"}


def chosen_edits(run: Run) -> list[str]:
    """The edits to hold against the unedited model: one or two."""
    titled = partial(names.title, run)
    left, right = st.columns(2)
    with left:
        first = state.choose("Edit A", run.edits(), "ask_a", format_func=titled)
    rest = [name for name in run.edits() if name != first]
    with right:
        second = state.choose(
            "Edit B",
            [*rest, NO_EDIT],
            "ask_b",
            format_func=lambda name: name if name == NO_EDIT else titled(name),
        )
    return [first] if second == NO_EDIT else [first, second]


def chosen_prompt(run: Run) -> tuple[str, str, Fact | None]:
    """The prompt, the answer that is followed, and the task's fact, if it is one."""
    task = run.task()
    splits = [split for split in TITLES if task.split(split)]
    kind = state.switch(
        "Ask about",
        [*splits, OWN],
        "ask",
        default=len(splits) if asking.linked("ask") else 0,
        format_func={**TITLES, OWN: OWN_TITLE}.__getitem__,
        help=words.help("splits"),
    )
    if kind == OWN:
        return *asking.typed(2000), None
    asking.leave_out(OWN_TITLE)
    facts = {str(fact.row): fact for fact in task.split(kind)}
    row = state.choose("Fact", list(facts), "fact", format_func=lambda r: facts[r].prompt)
    return facts[row].prompt, facts[row].answer, facts[row]


def answer(run: Run, methods: list[str]) -> None:
    prompt, right, fact = chosen_prompt(run)
    if not prompt.strip():
        st.info("Type the beginning of a sentence: the models go on with it.")
        return
    left, right_side = st.columns([2, 1], vertical_alignment="bottom")
    with left:
        text = state.switch(
            "Words shown",
            list(WORDS),
            "words",
            format_func=WORDS.__getitem__,
            help=words.help("difference"),
        )
    with right_side:
        tokens = address.bound(
            st.slider, "New tokens", 1, 32, 6, key="tokens", help=words.help("tokens")
        )
    found = asking.answers(run, methods, prompt, right, tokens)
    subject, titles = state.session(run).subject, {m: names.title(run, m) for m in methods}
    st.container(key="answers").html(ask_view.cards(subject, found, titles, own=text == OWN_WORDS))
    st.caption(words.help("difference"))
    paired = fact is not None and fact.row in state.session(run).pairs.rows
    if fact is not None and (paired or len(prompt) <= node_view.LONGEST):
        own = {"pair": node_view.OWN, "prompt": prompt, "answer": right}
        pair = {"pair": str(fact.row)} if paired else own
        st.page_link(
            CIRCUIT,
            label="Open the circuit on this prompt",
            icon=":material/account_tree:",
            query_params={"run": run.name, "node": "logits", **pair},
        )
    st.header("Where the answer forms", help=words.help("lens"))
    (word,) = ask_view.words(subject, found.wanted[:1])
    st.markdown(f"How probable `{word}` would be if the model ended after each layer.")
    alt = f"Probability of {word} by layer for each model; the table below has the words"
    st.plotly_chart(ask_view.lens(found, titles), alt=alt, key="lens")
    with st.expander("What each layer would say, as a table"):
        st.dataframe(ask_view.lens_rows(subject, found, titles), hide_index=True, alt=alt)


def picked(facts: list[Fact]) -> None:
    """Ask about the fact of the row that was clicked."""
    rows = st.session_state["facts"].selection.rows
    if rows and rows[0] < len(facts):
        state.select("ask", facts[rows[0]].split)
        state.select("fact", str(facts[rows[0]].row))


def table(run: Run, methods: list[str]) -> None:
    """Every fact with what each model answers; a row that is clicked is asked."""
    st.header("Every fact", help=words.help("facts"))
    titled = partial(names.title, run)
    found = asking.facts(run, methods)
    left, right = st.columns(2)
    with left:
        method = state.choose(
            "What became of the facts after", methods, "flips_of", format_func=titled
        )
    counts = Counter(one.flip for one in found[method])
    with right:
        flip = state.choose(
            "Show",
            [EVERY, *(f for f in FLIPS if counts[f])],
            "flip",
            format_func=lambda f: (
                f"every fact ({len(found[method]):,})"
                if f == EVERY
                else f"{f}: {FLIPS[f]} ({counts[f]:,})"
            ),
        )
    kinds = list(dict.fromkeys(asked.kind(one.fact) for one in found[method]))
    sets = address.bound(
        st.pills,
        "Sets (none chosen: all)",
        kinds,
        selection_mode="multi",
        key="sets",
        format_func=words.plain,
    )
    places = asking.Filter("" if flip == EVERY else flip, sets).places(found[method])
    if not places:
        st.info("No fact is left: choose other sets, or another kind of flip.")
        return
    some = {titled(m): [all_[i] for i in places] for m, all_ in found.items()}
    facts = [found[method][i].fact for i in places]
    st.dataframe(
        asked.answers(some).columns,
        hide_index=True,
        height=420,
        key="facts",
        on_select=lambda: picked(facts),
        selection_mode="single-row",
        alt="Every fact with what each model answers in full precision and in NF4",
    )
    st.caption(f"{many(len(places), 'fact')}. Choose a row to ask it above.")


@st.fragment
@state.show_errors()
def weight(run: Run, methods: list[str]) -> None:
    """One weight of the circuit or beside it, before and after each edit."""
    st.header("Follow one weight", help=words.help("follow"))
    subject, mask = state.session(run).subject, run.mask().movable
    titled = partial(names.title, run)
    edits = {m: state.edit(run, m) for m in methods}
    left, right = st.columns(2)
    with left:
        method = state.choose("Weights moved by", methods, "moved_by", format_func=titled)
    inside = [n for n in mask.names if n in subject.quantized_names and n in edits[method].changes]
    if not inside:
        st.info("This edit moves no weight of the circuit or beside it that NF4 quantises.")
        return
    with right:
        name = state.choose("Matrix", inside, "matrix")
    moved = quant.moves(subject, edits[method], name, mask.dense(name))
    if not len(moved):
        st.info("This edit moves none of those weights in this matrix: choose another one.")
        return
    last = max(len(moved), 2)
    state.at_most("weight", last)
    at = address.bound(
        st.slider,
        f"Which of the {len(moved):,} weights, from the shortest move to the longest",
        1,
        last,
        (len(moved) + 1) // 2,
        key="weight",
    )
    i = min(at, len(moved)) - 1
    row, column = int(moved.rows[i]), int(moved.columns[i])
    followed = {titled(m): quant.follow(subject, e, name, row, column) for m, e in edits.items()}
    first = followed[titled(method)]
    st.markdown(
        f"Row {row:,}, column {column:,} of `{name}`: weight {first.place} of block "
        f"{first.block:,}. {titled(method)} moves it by {number(first.ratio)} of its bin's "
        f"width, and its code **{'changes' if first.changes else 'does not change'}**."
    )
    st.plotly_chart(
        ask_view.codes(followed),
        config={"displayModeBar": False},
        alt="The weight on the line of sixteen codes before and after; the table has the numbers",
        key="codes",
    )
    tables.draw(asked.weight(followed))


run = state.begin("Ask", "What does each model answer, and what comes back in 4 bits?")
jobs.panel(run)
if not run.edits():
    st.info("This run has no edit yet: make one on the Unlearn page.", icon=":material/info:")
    st.stop()
methods = chosen_edits(run)
with state.show_errors():
    answer(run, methods)
with state.show_errors():
    table(run, methods)
with state.show_errors():
    weight(run, methods)
