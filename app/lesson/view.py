"""The lesson's three views: the steps, a student's sheet, and the teacher's page."""

from __future__ import annotations

from statistics import median_high, median_low

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import access, address, state, words
from app.lesson import STEPS, answers, bench, figures, real, sheet
from app.lesson.bench import Bench
from app.lesson.step import Answer, Outcome, Step
from app.lesson.tally import board
from mansu.errors import MansuError
from mansu.job.runs import Run, examples, listed
from mansu.progress import Step as Done
from mansu.show.numbers import many, number

NUMBERS = tuple(str(i) for i in range(1, len(STEPS) + 1))
PRINTED = """<style>@media print {
  [data-testid="stSidebar"], [data-testid="stHeader"], [data-testid="stToolbar"],
  .stButton, .stDownloadButton, .stButtonGroup, .stCheckbox, .stSlider { display: none !important; }
}</style>"""


@st.cache_resource(show_spinner="Loading the lesson's model …", show_time=True)
def shared() -> Bench:
    """The bench of everybody on this server."""
    return bench.load()


def projector() -> None:
    """The switch to large type, for a class to read: ``page.css`` has it, by the address."""
    name = "projector"
    if name not in st.session_state:
        asked = st.query_params.get(name)
        st.session_state[name] = asked == "on" or bool(st.session_state.get(figures.PROJECTED))
        if asked and asked != "on":
            address.refuse(
                "Projector", asked, "on" if st.session_state[name] else "off", "cannot be"
            )
    large = st.toggle("Projector", key=name, help="Large type and no sidebar, for a class to read.")
    st.session_state[figures.PROJECTED] = large
    if large:
        st.query_params[name] = "on"
    elif name in st.query_params:
        del st.query_params[name]


def lesson(head: DeltaGenerator) -> None:
    """One step, with what comes before and after it."""
    with head:
        place = NUMBERS.index(state.switch("Step", NUMBERS, "step"))
    step = STEPS[place]
    if not st.session_state[figures.PROJECTED]:
        st.caption(f"Step {place + 1} of {len(STEPS)} · about {step.minutes:g} minutes")
    st.header(f"{place + 1}. {step.question}")
    st.markdown(step.story)
    with state.show_errors():
        _step(step, shared())
    _onward(place)


def _step(step: Step, made: Bench) -> None:
    answer = answers.get(step)
    if answer is None:
        _ask(step, made)
        return
    with st.spinner("Measuring …", show_time=True):
        outcome = step.outcome(made, answer)
    with st.container(key="lesson-said"):  # page.js leads the keyboard here
        _said(outcome)
    step.reveal(made, answer)
    larger = real.larger(_runs(), made.subject.fingerprint)
    if step.real is not None and larger is not None:
        st.info(words.plain(step.real(larger)), icon=":material/public:")
    st.success(outcome.lesson, icon=":material/lightbulb:")
    if outcome.caught:
        st.warning(outcome.caught, icon=":material/psychology:")
    _class(step, made, answer)
    _elsewhere(step, made)


@st.fragment
def _ask(step: Step, made: Bench) -> None:
    """The prediction; dragging and choosing draws nothing else of the page again."""
    with state.show_errors():
        with st.spinner("Measuring …", show_time=True):
            given = step.predict(made)
        if given is not None:
            with st.spinner("Measuring …", show_time=True):
                answers.keep(step, made, given)
            st.rerun()


def _said(outcome: Outcome) -> None:
    for column, (label, text) in zip(
        st.columns(3),
        (
            ("You said", outcome.said),
            ("Measured", outcome.truth),
            ("Difference", outcome.difference),
        ),
        strict=True,
    ):
        with column.container(border=True, height="stretch"):
            st.caption(label)
            st.markdown(f"**{words.plain(text)}**")


def _class(step: Step, made: Bench, answer: Answer) -> None:
    said = board().answers(step.key)
    if len(said) < 2:
        return
    with st.expander(f"What the class said ({len(said)} answers)"):
        _tally(step, said)


def _tally(step: Step, said: list[float | str]) -> None:
    values = [x for x in said if isinstance(x, float)]
    if values:
        st.caption(f"{many(len(values), 'answer')}, without names; {_middle(values)}.")
    for mistake, count in board().caught(step.key).items():
        st.caption(f"{count} of {len(said)} show: {mistake}")
    st.plotly_chart(
        figures.class_answers(said, step.counted, zero=step.signed),
        alt=f"What the class answered to: {step.question}",
        key=f"class {step.key}",
    )


def _middle(values: list[float]) -> str:
    """What stands in the middle of the answers: of an even number two, with nothing between."""
    low, high = number(median_low(values)), number(median_high(values))
    if low == high:
        return f"the one in the middle is {low}"
    return f"the two in the middle are {low} and {high}"


def _elsewhere(step: Step, made: Bench) -> None:
    """The button to the same thing in the workbench, in a tab of its own."""
    run = run_for(step, made)
    if run is None:
        st.caption(
            "There is no run of this model here to look at: start one on the Attribution page "
            "(subject: tiny)."
        )
        return
    st.link_button(
        f"{step.link.label}: open it in the workbench",
        step.link.address(run),
        icon=":material/open_in_new:",
    )


def _runs() -> list[Run]:
    """What a link can open: this server's runs, the newest first, and examples of other names."""
    own = listed()
    names = {run.name for run in own}
    return [*own, *(run for run in examples() if run.name not in names)]


def run_for(step: Step, made: Bench) -> Run | None:
    """The newest run of the lesson's model that has what the step's link shows, or an example."""
    for run in _runs():
        if run.fingerprint == made.subject.fingerprint and {*step.link.edits} <= {*run.edits()}:
            return run
    return None


def _onward(place: int) -> None:
    left, right = st.container(key="lesson-onward").columns(2)
    if place and left.button(
        "Back", key="step back", icon=":material/arrow_back:", width="stretch"
    ):
        _go(place - 1)
    if place + 1 < len(STEPS):
        if right.button("Next", key="step next", icon=":material/arrow_forward:", width="stretch"):
            _go(place + 1)
    elif right.button("My sheet", icon=":material/description:", width="stretch"):
        state.select("view", "My sheet")
        st.rerun()


def _go(place: int) -> None:
    state.select("step", NUMBERS[place])
    st.rerun()


def answered(made: Bench) -> list[tuple[Step, Outcome]]:
    """What this student has answered, in the lesson's order."""
    found = []
    for step in STEPS:
        answer = answers.get(step)
        if answer is not None:
            found.append((step, step.outcome(made, answer)))
    return found


def my_sheet(_: DeltaGenerator) -> None:
    """What the student said and what was measured, to print or to keep."""
    made = shared()
    st.html(PRINTED)
    with st.spinner("Measuring …", show_time=True):
        done = answered(made)
    if not done:
        st.info("Nothing is answered yet: begin with step 1.", icon=":material/info:")
        return
    model = f"the {made.subject.name} model, while the lesson was shown"
    st.html(sheet.body(done, len(STEPS), model))
    left, right = st.columns(2)
    left.download_button(
        "Keep it as a file to print",
        sheet.page(done, len(STEPS), model),
        "why-forgetting-comes-back.html",
        "text/html",
        icon=":material/download:",
    )
    if right.button("Begin again", key="begin again", icon=":material/restart_alt:"):
        answers.begin_again()
        state.select("view", "Lesson")
        state.select("step", NUMBERS[0])
        st.rerun()


def teacher(_: DeltaGenerator) -> None:
    """Minutes, the question to ask, notes, and what the class said."""
    if not access.granted_to_teacher():
        return
    st.markdown(
        f"{len(STEPS)} steps, about {sum(step.minutes for step in STEPS):g} minutes. Everybody "
        "opens the Lesson page of this server and predicts on a screen of their own; switch on "
        "*Projector* for the room. Ask before the reveal, and wait. Each browser counts "
        "once, with its latest answer."
    )
    if st.button("Measure everything now, so that nobody waits", icon=":material/speed:"):
        bar = st.progress(0.0)

        def tell(done: Done) -> None:
            bar.progress(done.share, f"Measured {done.done} of {done.total} parts")

        shared().prepare(tell)
    everybody()
    for place, step in enumerate(STEPS):
        st.header(f"{place + 1}. {step.question}")
        st.markdown(f"**Minutes** {step.minutes:g}  \n**Ask** {step.ask}  \n**Notes** {step.notes}")


@st.fragment(run_every=3)
def everybody() -> None:
    """The class's answers, which come in by themselves, and the button that clears them."""
    counts = board().counts()
    with st.container(border=True):
        st.markdown("**What the class said**")
        if not counts:
            st.caption("Nobody has answered yet.")
            return
        for place, step in enumerate(STEPS):
            if step.key in counts:
                # The key keeps it open when an answer comes in and its label changes.
                label = f"{place + 1}. {step.title} (answers: {counts[step.key]})"
                with st.expander(label, key=f"class of {step.key}"):
                    _tally(step, board().answers(step.key))
        with st.popover("Clear the class's answers", icon=":material/delete:"):
            st.markdown("This forgets what everybody answered. It cannot be undone.")
            if st.button("Clear them", key="clear class", type="primary"):
                board().clear()
                st.rerun(scope="fragment")


VIEWS = {"Lesson": lesson, "My sheet": my_sheet, "Teacher": teacher}


def show() -> None:
    """The view that is chosen, once for the page; each may add to the row at the head."""
    # Each in a place of its own, whose size the style knows before the control is there.
    with st.container(horizontal=True, vertical_alignment="bottom", key="lesson-head"):
        with st.container(width="content", key="lesson-view"):
            chosen = state.switch("View", tuple(VIEWS), "view")
        head = st.container(width="content", key="lesson-step")
        with st.container(width="content", key="lesson-large"):
            projector()
    try:
        VIEWS[chosen](head)
    except MansuError as error:
        st.error(words.plain(str(error)), icon=":material/error:")
