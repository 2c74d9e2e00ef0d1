"""Home: what happens to unlearning in 4 bits, seen on a finished example."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import glossary, home_view, state, tour
from app.words import plain
from mansu.job import library, names
from mansu.job.examples import copied
from mansu.job.runs import Run, examples, listed
from mansu.report import repeat, story

PAGES = Path(__file__).parent
DOORS = (  # title, what is behind it, and its pages: file and label
    (
        "Explore",
        "Ask the models, open the circuit behind the facts, follow one weight into its code.",
        (("ask", "Ask the models"), ("circuit", "Open the circuit"), ("compare", "Compare edits")),
    ),
    (
        "Learn",
        "Why forgetting comes back, in ten steps: predict first, then see.",
        (("learn", "Start the lesson"), ("glossary", "Look up a word")),
    ),
    (
        "Review",
        "Read what was measured, property by property, and decide whether you would sign.",
        (("review", "Review this run"), ("compare", "See the evidence")),
    ),
)


def beginning(run: Run) -> None:
    """Three sentences, the picture, and what it teaches."""
    told, link = story.chapters(run), glossary.link
    moves = "; ".join(chapter.moves for chapter in told)
    st.markdown(
        f"A language model can be made to forget: its {link('Weight', 'weights')}, the numbers it "
        f"is made of, are moved a little until certain answers are gone. But before it is used, a "
        f"model is often stored in {link('NF4', '4 bits')}: each weight is rounded to one of "
        "sixteen values, and a move that does not reach the next value is gone. "
        f"**In this example, {moves}.**"
    )
    answers = "  \n".join(f"{chapter.answers}." for chapter in told)
    alt = f"Moves that 4 bits keep and right answers by edit. {moves}. {answers}"
    with st.container(key="picture"):
        st.html(home_view.picture(told, alt))
    st.markdown(f"{answers}  \n{story.moral(told)}")
    chance, baseline = link("Chance", "chance"), link("Baseline", "baseline")
    st.markdown(
        f"Dotted: {chance}, one answer in four. {link('MANSU')} is this workbench's method; "
        f"it is held against a {baseline}, or against itself with a part off."
    )


def verdict(run: Run) -> None:
    """The example's verdict in plain questions."""
    st.header("Did it work?")
    st.table(home_view.verdicts({names.title(run, m): run.verdict(m) for m in run.judged()}))
    st.markdown(
        f"{glossary.link('Undecided')}: the {glossary.link('Interval', 'interval')} of what was "
        "measured reaches across the threshold. The evidence is on the Compare page."
    )


def doors(run: Run, which: str, example: Run, taken: bool) -> None:
    """What to do with a run, which is said where it is not the example above.

    Args:
        which: run it is, in words. taken: whether another run here has the example's name.
    """
    st.header("Where to go")
    if run.name != example.name:
        st.info(
            f"These open {which}, **{plain(library.title(run))}** ({plain(run.name)}), and not the "
            "example above.",
            icon=":material/info:",
        )
        if not taken:
            st.page_link(
                PAGES / "circuit.py",
                label="Look at the example above",
                icon=":material/visibility:",
                query_params={"run": example.name},
            )
    row = st.container(horizontal=True, key="doors")  # a narrow page: below each other
    for title, about, links in DOORS:
        with row.container(border=True, width=300):
            st.subheader(title, anchor=False)
            st.markdown(about)
            for page, label in links:
                if (PAGES / f"{page}.py").is_file():
                    st.page_link(
                        PAGES / f"{page}.py",
                        label=label,
                        icon=":material/arrow_forward:",
                        query_params={"run": run.name},
                    )


def own_work(example: Run, copy_is_here: bool) -> None:
    """From the example to work of one's own."""
    st.header("Your own work")
    command = example.manifest["example"]
    st.markdown(f"The example comes with MANSU and stays as it is. This made it: `{command}`")
    st.caption(repeat.ROUNDING)
    st.page_link(
        PAGES / "attribution.py",
        label="Start with your own facts",
        icon=":material/add:",
        query_params={"view": "New run"},
    )
    if not copy_is_here:
        if st.button("Copy the example to work on it", icon=":material/content_copy:"):
            state.select("run", copied(example).name)
            st.rerun()
    else:
        st.success(f"Your copy is the run {example.name}.", icon=":material/check:")
        st.page_link(
            PAGES / "unlearn.py",
            label="Work on your copy",
            icon=":material/arrow_forward:",
            query_params={"run": example.name},
        )


st.title("Does it stay forgotten?")
st.markdown("**Machine unlearning, and what 4-bit storage does to it.**")
shown, runs = {run.name: run for run in examples()}, listed()
name = next(iter(shown))


def seen_on() -> None:
    """With no run of one's own, the example that is seen is the run that is worked on."""
    if runs[0].is_example:
        state.select("run", st.session_state["example"])


if len(shown) > 1:
    name = state.choose(
        "Seen on",
        list(shown),
        "example",
        format_func=lambda n: shown[n].about["title"],
        on_change=seen_on,
    )
example = shown[name]
for part in (beginning, verdict):
    with state.show_errors():
        part(example)
copied_here = any(run.name == name and not run.is_example for run in runs)
chosen = state.worked_on(runs)
# The run of that name: a copy that is worked on stands for the example, which is not listed then.
door = chosen or next((run for run in runs if run.name == name), runs[0])
doors(
    door,
    "the run you chose" if chosen else "your newest run",
    example,
    copied_here or name in library.trashed().values(),
)
if door.judged():
    tour.offer(door.name)
with state.show_errors():
    own_work(example, copied_here)
