"""Steps about one weight and its block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import streamlit as st

from app.lesson import figures
from app.lesson.bench import Bench
from app.lesson.line import line
from app.lesson.step import Answer, Link, Outcome, Step, apart, between, first
from mansu.quant import BOUNDARIES, CODES, NF4
from mansu.quant.block import Bin, stretched
from mansu.show.numbers import number, percent, written

SHOW = "Keep my prediction and show the answer"
LEVELS = CODES.tolist()
WIDTHS = NF4.widths
GROWTHS = (0.05, 0.1, 0.2, 0.4)
_TOUCHED = "touched "
MOST = 0.5
"""The curve of the second step ends there."""


def guessed(draw: Callable[..., Any], label: str, *arguments: Any, key: str, **more: Any) -> Any:
    """A slider for a guess; ``untouched`` tells whether it stands where nobody has put it."""
    if key not in st.session_state:  # new on the page, at its beginning
        st.session_state[_TOUCHED + key] = False
    touch = partial(st.session_state.__setitem__, _TOUCHED + key, True)
    return draw(label, *arguments, key=key, on_change=touch, **more)


def untouched(*keys: str) -> str:
    """What has to be done before guesses are anybody's: "" once each slider has been moved."""
    left = sum(not st.session_state[_TOUCHED + key] for key in keys)
    if not left:
        return ""
    said = "Move the handle first" if len(keys) == 1 else f"Move each handle first ({left} left)"
    return f"{said}; you may move it back to where it stands."


def committed(step: str, lacking: str = "") -> bool:
    """The button that keeps a prediction.

    Args:
        lacking: what has to be done first; then it cannot be pressed.
    """
    row = st.container(key="lesson-keep", horizontal=True, vertical_alignment="center")
    pressed = row.button(
        SHOW, key=f"keep {step}", type="primary", icon=":material/lock:", disabled=bool(lacking)
    )
    if lacking:
        row.caption(lacking, width="content")
    return pressed


# One weight on the line.


def _predict_line(bench: Bench) -> Answer | None:
    own = bench.bin.value
    place = line(
        "lesson line",
        "Where the weight gets another code",
        LEVELS,
        own,
        own_label="the weight",
    )
    move = place - own
    if move:
        st.markdown(
            f"You have moved it by **{written(move, '+.3f')}** of its block's largest weight."
        )
    lacking = "" if move else "Drag the round handle, or choose it and press the arrow keys."
    return (round(place, 4),) if committed("line", lacking) else None


def _end(bin: Bin, place: float) -> float:
    """The end of the bin on the side that a weight was moved to."""
    return bin.high if place >= bin.value else bin.low


def _reveal_line(bench: Bench, answer: Answer) -> None:
    bin, said = bench.bin, first(answer)
    line(
        "lesson line answered",
        "Where you put it",
        LEVELS,
        bin.value,
        own_label="the weight",
        value=said,
        bin=(bin.low, bin.high),
        boundaries=BOUNDARIES.tolist(),
        truth=(_end(bin, said), "here the code changes"),
        fixed=True,
    )
    st.caption(
        "Long marks: the values of the codes. Dashed: the boundaries, each halfway between two "
        "codes. Shaded: the bin that this weight lies in, where every value gets the same code."
    )


def _outcome_line(bench: Bench, answer: Answer) -> Outcome:
    bin, said = bench.bin, first(answer)
    mine, needed = abs(said - bin.value), abs(_end(bin, said) - bin.value)
    ratio = mine / needed if needed else 1.0
    how = "far enough" if abs(ratio - 1) < 0.1 else "too far" if ratio > 1 else "too short"
    return Outcome(
        said=f"a move of {mine:.3f}",
        truth=f"a move of {needed:.3f}",
        difference=f"{number(ratio)} × the move it takes: {how}",
        lesson=f"This weight keeps code {bin.code} until it has moved by {bin.up:.3f} up or "
        f"{bin.down:.3f} down, in units of its block's largest weight; a smaller change is as if "
        f"it had not been. The bins are uneven: the narrowest is {float(WIDTHS.min()):.3f} wide, "
        f"the widest {float(WIDTHS.max()):.3f}.",
    )


LINE = Step(
    key="line",
    title="One weight",
    question="How far must this weight move before 4 bits notice?",
    story="A model is numbers, called **weights**. To save memory, each is stored in 4 bits: it "
    f"gets the nearest of {len(LEVELS)} **codes**, the marks below. (The usual set of codes is "
    "called NF4.) This is a real weight of a small model that knows the colours of invented "
    "things. The line ends at the largest weight of its neighbourhood, its **block**. Drag it to "
    "where you think its code changes.",
    minutes=2,
    ask="Is there a code exactly where the weight is? So what will be stored?",
    notes="Let somebody drag it on the screen. The boundary lies halfway between two codes, not at "
    "the next code. The codes are denser near zero, where most weights are.",
    predict=_predict_line,
    reveal=_reveal_line,
    outcome=_outcome_line,
    accepts=lambda answer: between(answer, (-1, 1)),
    said=lambda bench, answer: first(answer),
    counted="where the code changes, in units of the block's largest weight",
    link=Link("nf4", "See the bins of a whole edit", ("mansu",)),
)


# A block and its largest weight.


def _predict_block(bench: Bench) -> Answer | None:
    others = len(bench.block) - 1
    growth = st.segmented_control(
        "The largest weight of the block grows by",
        GROWTHS,
        default=GROWTHS[1],
        format_func=lambda share: percent(share, 0),
        required=True,
        key="lesson growth",
    )
    _strip(bench, growth)
    guess = guessed(
        st.slider,
        f"How many of the other {others} weights, which do not move, get another code?",
        0,
        others,
        others // 2,
        key="lesson block",
    )
    return (growth, float(guess)) if committed("block", untouched("lesson block")) else None


def _strip(bench: Bench, growth: float, *, answered: bool = False) -> None:
    """The block on the line of codes, and where its weights stand once the largest has grown."""
    largest = int(bench.block.abs().argmax())
    scaled = bench.block / bench.block.abs().max()
    others = [x for i, x in enumerate(scaled.tolist()) if i != largest]
    before, after = stretched(bench.block, growth)
    st.plotly_chart(
        figures.strip(
            others,
            [x / (1 + growth) for x in others] if answered else [],
            (before != after).tolist() if answered else [],
            BOUNDARIES.tolist(),
        ),
        alt="The weights of the block on the line of codes, with the boundaries",
        key=f"lesson strip {answered}",
    )


def _changed(bench: Bench, growth: float) -> int:
    before, after = stretched(bench.block, growth)
    return int((before != after).sum())


def _reveal_block(bench: Bench, answer: Answer) -> None:
    growth, guess = map(float, answer)
    _strip(bench, growth, answered=True)
    points = [(i / 200, _changed(bench, i / 200)) for i in range(int(200 * MOST) + 1)]
    st.plotly_chart(
        figures.curve(points, growth, guess, len(bench.block) - 1),
        alt="How many other weights change their code, by how much the largest grows",
        key="lesson block chart",
    )


def _outcome_block(bench: Bench, answer: Answer) -> Outcome:
    growth, guess = float(answer[0]), round(float(answer[1]))
    changed, others = _changed(bench, growth), len(bench.block) - 1
    return Outcome(
        said=f"{guess} of {others}",
        truth=f"{changed} of {others}",
        difference=apart(guess, changed, "", way="many few"),
        lesson=f"Bins belong to blocks: one weight that grew by {percent(growth, 0)} gave "
        f"{changed} others another code, though they did not move. Moving the largest moves "
        "everybody.",
        caught="“The largest weight is the safest to move”: it is the one that all the others of "
        "its block are measured by."
        if guess == 0 < changed
        else "",
    )


BLOCK = Step(
    key="block",
    title="A block",
    question=f"What do its {NF4.blocksize - 1} neighbours have to do with it?",
    story=f"Weights are stored in **blocks** of {NF4.blocksize}. Each is divided by the largest of "
    "its block before it gets a code, so that largest weight sets how wide everybody's bins are.",
    minutes=1.5,
    ask="If the ruler gets longer, do the people it measures get shorter?",
    notes="The other weights do not move; only what they are divided by does. People who say "
    "“none” think of the weight alone, those who say “all” forget how wide the bins are.",
    predict=_predict_block,
    reveal=_reveal_block,
    outcome=_outcome_block,
    accepts=lambda answer: between(answer, (0, MOST), (0, NF4.blocksize - 1)),
    said=lambda bench, answer: float(answer[1]) - _changed(bench, first(answer)),
    counted="weights too many (right of zero) or too few (left)",
    signed=True,
    link=Link("nf4", "Count the bystanders of an edit", ("graddiff",)),
)
