"""Steps about an edit of many small moves: how far it goes, what flips, what comes back."""

from __future__ import annotations

import streamlit as st

from app.lesson import figures, real
from app.lesson.bench import Bench
from app.lesson.step import Answer, Link, Outcome, Step, apart, between, first
from app.lesson.weights import committed, guessed, untouched
from mansu.show.numbers import between as with_interval
from mansu.show.numbers import number, percent
from mansu.tasks.facts import CHANCE

TITLES = {
    "gentle": "a gentle training",
    "ordinary": "a strong training",
    "concealed": "a training held inside its bins",
}
RATIOS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0)
RATIOS += (500.0, 750.0, 1000.0, 2000.0)
NONE = 0.01
"""A share of the moved weights below which an answer says: as good as none."""


# How far.


def _predict_reach(bench: Bench) -> Answer | None:
    guess = guessed(
        st.select_slider,
        "The typical bin is … times as wide as the typical move of the gentle training",
        RATIOS,
        RATIOS[3],
        format_func=lambda ratio: f"{ratio:,.0f} ×",
        key="lesson reach",
    )
    return (guess,) if committed("reach", untouched("lesson reach")) else None


def _ratio(bench: Bench, name: str) -> float:
    found = bench.report(name).quantized.width_over_update
    assert found is not None  # training moves weights
    return found


def _reveal_reach(bench: Bench, answer: Answer) -> None:
    edits = {TITLES[name]: bench.report(name).quantized for name in ("gentle", "ordinary")}
    st.plotly_chart(
        figures.ratios(edits, first(answer)),
        alt="How many times too short the moves of two trainings are, and the prediction",
        key="lesson reach chart",
    )


def _outcome_reach(bench: Bench, answer: Answer) -> Outcome:
    said, gentle, strong = first(answer), _ratio(bench, "gentle"), _ratio(bench, "ordinary")
    factor = max(said / gentle, gentle / said)
    way = "exactly" if factor < 1.15 else f"{number(factor)} × too {_way(said > gentle)}"
    left = {name: bench.asked(name).full["forget"].accuracy for name in ("gentle", "ordinary")}
    return Outcome(
        said=f"{number(said)} ×",
        truth=f"{number(gentle)} ×",
        difference=way,
        lesson=f"The gentle training's typical move is {number(gentle)} times too short for its "
        f"bin, and leaves {percent(left['gentle'], 0)} of the colours. The strong one, "
        f"{number(strong)} times too short, leaves {percent(left['ordinary'], 0)} (guessing gives "
        f"{percent(CHANCE, 0)}). This toy forgets only under moves that large. In the large models "
        f"of the paper that this follows ({figures.SOURCE}) the gentle kind is enough: moves there "
        f"are {figures.PAPER[0]} to {figures.PAPER[1]} times too short.",
    )


def _way(high: bool) -> str:
    return "high" if high else "low"


REACH = Step(
    key="reach",
    title="One training step",
    question="How far does training move a weight?",
    story="**Unlearning** trains a model to stop giving some answers, here the colours, and to "
    "keep the rest. The change that it makes is called an **edit**. Training moves nearly every "
    "weight, each by very little. Two edits are made for you now: one at the usual rate for real "
    "models (gentle), one pushed until this small model forgets (strong).",
    minutes=1.5,
    ask="A typical bin and a typical move: the same size, ten times, a thousand times?",
    notes="The axis is logarithmic: each long step is ten times. At the usual rate the toy "
    "does not forget at all; say so, and that real models do.",
    predict=_predict_reach,
    reveal=_reveal_reach,
    outcome=_outcome_reach,
    accepts=lambda answer: between(answer, (1, 2000)),
    said=lambda bench, answer: first(answer),
    counted="times as wide as the move",
    link=Link("nf4", "See this histogram for a run", ("graddiff",)),
    real=real.reach,
)


# What flips.


def _predict_flip(bench: Bench) -> Answer | None:
    edit = st.segmented_control(
        "Which edit",
        ("gentle", "ordinary"),
        default="gentle",
        format_func=lambda name: TITLES[name],
        required=True,
        key="lesson flip edit",
    )
    st.markdown(
        f"Its typical move is **{number(_ratio(bench, edit))} times** too short to cross a whole "
        "bin."
    )
    guess = guessed(
        st.slider,
        "What share of the moved weights gets another code?",
        0.0,
        100.0,
        50.0,
        0.5,
        format="%.1f %%",
        key="lesson flip",
    )
    return (edit, guess / 100) if committed("flip", untouched("lesson flip")) else None


def _reveal_flip(bench: Bench, answer: Answer) -> None:
    name, said = str(answer[0]), float(answer[1])
    found = bench.report(name).quantized
    share, expected = found.share or 0.0, found.expected_share or 0.0
    actual = "codes that changed"
    st.plotly_chart(
        figures.bars(
            [
                (actual, share, None),
                ("to be expected of moves of this size", expected, None),
            ],
            "share of the moved weights",
            guesses={actual: said},
            top=max(share, expected, said, 0.05),
        ),
        alt="Share of codes that changed, the share to be expected, and the prediction",
        key="lesson flip chart",
    )
    st.caption(
        "Expected: a weight that lies anywhere in its bin and moves by a tenth of it crosses the "
        "end one time in ten."
    )


def _outcome_flip(bench: Bench, answer: Answer) -> Outcome:
    name, said = str(answer[0]), float(answer[1])
    found = bench.report(name).quantized
    share, expected = found.share or 0.0, found.expected_share or 0.0
    kept, noise = found.projection or 0.0, found.noise or 0.0
    drowned = (
        "drowned in noise" if noise > 10 else "with as much noise again" if noise > 0.5 else ""
    )
    return Outcome(
        said=f"{percent(said)}, {TITLES[name]}",
        truth=percent(share),
        difference=apart(100 * said, 100 * share, "points", 1),
        lesson=f"Not all is lost: {percent(share)} of the codes flip, about the "
        f"{percent(expected)} to be expected. Each flip overshoots by most of a bin, so on average "
        f"{percent(kept, 0)} of the edit is still there, {drowned}: what 4 bits add is "
        f"{number(noise)} times as large as the edit (squared).",
        caught="“4 bits delete small changes altogether”: a weight flips by however short a move, "
        "if it stands close enough to the end of its bin."
        if said < min(NONE, share / 2)
        else "",
    )


FLIP = Step(
    key="flip",
    title="Is all of it lost?",
    question="So is all of it lost in 4 bits?",
    story="Every weight is stored anew after the edit. Most land in the bin they came from. But "
    "some stood close to its end.",
    minutes=1.5,
    ask="Nobody is tall enough to jump a step from its middle. Who gets up all the same?",
    notes="This is the step where “4 bits delete the edit” dies. Rounding keeps the average, as it "
    "must, and loses the rest in noise.",
    predict=_predict_flip,
    reveal=_reveal_flip,
    outcome=_outcome_flip,
    accepts=lambda answer: (
        len(answer) == 2 and answer[0] in ("gentle", "ordinary") and between(answer[1:], (0, 1))
    ),
    said=lambda bench, answer: round(
        100 * (float(answer[1]) - (bench.report(str(answer[0])).quantized.share or 0.0)), 1
    ),
    counted="points too high (right of zero) or too low (left)",
    signed=True,
    link=Link("nf4", "See expected and real shares by layer", ("graddiff",)),
)


# What comes back.


def _predict_deploy(bench: Bench) -> Answer | None:
    full = bench.asked("concealed").full["forget"]
    st.markdown(
        f"In full precision the edited model gives **{with_interval(full.interval)}** of the "
        f"colours right (before: {percent(bench.base().full['forget'].accuracy, 0)}; guessing: "
        f"{percent(CHANCE, 0)}). It seems to have forgotten."
    )
    guess = guessed(
        st.slider,
        "And how many are right after the edited model is stored in 4 bits?",
        0,
        100,
        30,
        format="%d %%",
        key="lesson deploy",
    )
    return (guess / 100,) if committed("deploy", untouched("lesson deploy")) else None


def _reveal_deploy(bench: Bench, answer: Answer) -> None:
    rows, guesses = [], {}
    for name in ("concealed", "ordinary"):
        asked = bench.asked(name)
        for suffix, scores in (("", asked.full), (", NF4", asked.nf4)):
            label = f"{TITLES[name].removeprefix('a ')}{suffix}"
            rows.append((label, scores["forget"].accuracy, scores["forget"].interval))
    guesses[rows[1][0]] = first(answer)
    st.plotly_chart(
        figures.bars(rows, "Colours right (dashed: guessing)", guesses=guesses, chance=True),
        alt="Accuracy on the colours of two edits, in full precision and in NF4",
        key="lesson deploy chart",
    )
    back = came_back(bench, "concealed")
    if back:
        st.markdown(f"**Back again**, for example: {'; '.join(back[:4])}.")


def came_back(bench: Bench, name: str) -> list[str]:
    """Facts that are wrong in full precision and right in NF4, a line each."""
    asked, rows = bench.asked(name), bench.rows()["forget"]
    lines = {fact.row: fact for fact in bench.task.facts}
    back = [
        lines[row]
        for row, full, nf4 in zip(
            rows.rows, asked.full["forget"].correct, asked.nf4["forget"].correct, strict=True
        )
        if full < 1 and nf4 == 1
    ]
    return [f"{fact.prompt} **{fact.answer.strip()}**" for fact in back]


def _outcome_deploy(bench: Bench, answer: Answer) -> Outcome:
    said = first(answer)
    worst, usual = bench.asked("concealed"), bench.asked("ordinary")
    nf4 = worst.nf4["forget"].accuracy
    return Outcome(
        said=percent(said, 0),
        truth=percent(nf4, 0),
        difference=apart(100 * said, 100 * nf4, "points"),
        lesson="Forgetting that was measured in full precision only is a promise: this edit goes "
        f"from {percent(worst.full['forget'].accuracy, 0)} to {percent(nf4, 0)} when it is stored "
        "in 4 bits. It is the worst case: no move may leave its bin. The strong training on this "
        f"toy, which may, goes from {percent(usual.full['forget'].accuracy, 0)} to "
        f"{percent(usual.nf4['forget'].accuracy, 0)}. What a real edit does has to be measured.",
    )


DEPLOY = Step(
    key="deploy",
    title="What it says then",
    question="What does the model say once it is stored in 4 bits?",
    story="Now the strong training again, but with a wall: after each step every weight is put "
    "back into the bin that it came from. It still learns to hide the colours, by many moves that "
    "each stay inside.",
    minutes=2,
    ask="All its codes are those of the model before. So what is stored?",
    notes="Wait for somebody to say that the stored model is the old one, bit for bit. Then show "
    "*a strong training*: on this toy nearly nothing comes back, because its moves are large.",
    predict=_predict_deploy,
    reveal=_reveal_deploy,
    outcome=_outcome_deploy,
    accepts=lambda answer: between(answer, (0, 1)),
    said=lambda bench, answer: round(100 * first(answer), 1),
    counted="% of the colours right in 4 bits",
    link=Link(
        "compare",
        "Compare two edits in both formats",
        ("mansu", "graddiff"),
    ),
    real=real.comes_back,
)
