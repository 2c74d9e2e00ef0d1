"""Steps about what lasts: the floor, hidden or gone, and whether to sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import streamlit as st

from app import glossary, words
from app.lesson import figures
from app.lesson.answers import coin
from app.lesson.bench import EDITS, Bench
from app.lesson.line import line
from app.lesson.step import Answer, Link, Outcome, Step, between
from app.lesson.weights import LEVELS, committed, guessed, untouched
from mansu.evidence import ABOUT, Verdict
from mansu.progress import OnStep
from mansu.progress import Step as Done
from mansu.quant import BOUNDARIES, FORMATS, NF4, Format
from mansu.quant.block import bin_of
from mansu.show.numbers import number, percent, written
from mansu.show.sentences import capitalised, sentence
from mansu.tasks.facts import CHANCE

SHOWN = (NF4, Format("fp4"), Format("int8"))
FORMAT_TITLES = {"nf4": "NF4", "fp4": "FP4 (other codes)", "int8": "int8 (8 bits)"}


# The floor.


def _predict_floor(bench: Bench) -> Answer | None:
    said = []
    for column, format in zip(
        st.columns(len(SHOWN), vertical_alignment="bottom"), SHOWN, strict=True
    ):
        with column:
            said.append(
                guessed(
                    st.slider,
                    f"Moves that {FORMAT_TITLES[format.kind]} sees",
                    0,
                    100,
                    50,
                    format="%d %%",
                    key=f"lesson floor {format.kind}",
                )
                / 100
            )
    lacking = untouched(*(f"lesson floor {format.kind}" for format in SHOWN))
    return tuple(said) if committed("floor", lacking) else None


def _reveal_floor(bench: Bench, answer: Answer) -> None:
    rows, guesses = [], {}
    for said, format in zip(answer, SHOWN, strict=True):
        for name, title in (("mansu", "MANSU"), ("ordinary", "strong training")):
            label = f"{title}, {format.kind.upper() if format.kind != 'int8' else 'int8'}"
            rows.append((label, bench.kept(name)[str(format)].share or 0.0, None))
        guesses[rows[-2][0]] = float(said)
    st.plotly_chart(
        figures.bars(rows, "moved weights whose code changes", guesses=guesses),
        alt="Share of moves that each format sees, of MANSU and of a strong training",
        key="lesson floor chart",
    )
    bin, moved = bench.bin, bench.moved_to(bench.edit("mansu"))
    st.markdown(f"**The weight of step 1.** {followed(bench)}")
    line(
        "lesson floor line",
        "Where MANSU put the weight",
        LEVELS,
        bin.value,
        own_label="before",
        value=bin.value if moved is None else moved,
        bin=(bin.low, bin.high),
        boundaries=BOUNDARIES.tolist(),
        truth=None if moved is None else (moved, "after"),
        fixed=True,
    )


def followed(bench: Bench) -> str:
    """What MANSU did with the weight of the first step, a sentence."""
    bin, moved = bench.bin, bench.moved_to(bench.edit("mansu"))
    if moved is None:
        return f"MANSU left it where it was, at {written(bin.value, '.3f')}, in code {bin.code}."
    block = bench.block.clone()
    place = int((block / block.abs().max() - bin.value).abs().argmin())
    block[place] = moved * block.abs().max()
    now = bin_of(block, place)
    return (
        f"It was at {written(bin.value, '.3f')}, in code {bin.code}. MANSU moved it to "
        f"{written(moved, '.3f')}, where code {now.code} lies ({written(now.level, '.3f')}): not a "
        "little, but to the middle of another bin."
    )


def _outcome_floor(bench: Bench, answer: Answer) -> Outcome:
    kept = bench.kept("mansu")
    shares = [kept[str(format)].share or 0.0 for format in SHOWN]
    off = max(abs(float(said) - share) for said, share in zip(answer, shares, strict=True))
    whole = sum(k.changed == k.moved for k in kept.values())
    moved = kept[str(NF4)].moved
    usual = bench.kept("ordinary")[str(NF4)].share
    return Outcome(
        said=", ".join(percent(float(said), 0) for said in answer),
        truth=", ".join(percent(share, 0) for share in shares),
        difference=f"{100 * off:.0f} points apart at most",
        lesson=f"By construction, and checked with the real rounding: all of MANSU's {moved:,} "
        f"moves change their code in {whole} of the {len(FORMATS)} formats asked, for a weight "
        "moves to the middle of another bin or not at all (the floor). Of the strong training's "
        f"moves {percent(usual, 0)} do in NF4.",
    )


FLOOR = Step(
    key="floor",
    title="The floor",
    question="What does a floor under each move guarantee?",
    story="**MANSU** moves only weights in and beside the circuit, and has one more rule: a weight "
    "moves to the middle of another bin, or stays exactly where it is. It was run on this model "
    "just now. It looked at NF4 and at other ways to store weights.",
    minutes=1.5,
    ask="If every move ends in the middle of another bin: how many can be lost?",
    notes="Point at the line below the bars: it is the weight that everybody dragged in step 1.",
    predict=_predict_floor,
    reveal=_reveal_floor,
    outcome=_outcome_floor,
    accepts=lambda answer: between(answer, *[(0, 1)] * len(SHOWN)),
    said=lambda bench, answer: round(100 * sum(float(x) for x in answer) / len(answer), 1),
    counted="% of the moves, mean of the three formats",
    link=Link("nf4", "See what each format keeps", ("mansu",)),
)


# Hidden or gone.


MODELS = ("mansu", "suppressor")
CHOICES = (*MODELS, "same")
MODEL_TITLES = {"mansu": "MANSU", "suppressor": "a suppressor", "same": "both at the same time"}


def _letters(answer: Answer | None = None) -> dict[str, str]:
    """Which model is A and which B: by the toss of a coin for each student, kept in the answer."""
    straight = coin() if answer is None else answer[1] == "A"
    return dict(zip(MODELS if straight else MODELS[::-1], ("A", "B"), strict=True))


def _named(choice: str, answer: Answer) -> str:
    """A choice with the letter that the student knows it by."""
    letter = _letters(answer).get(choice)
    return f"model {letter}: {MODEL_TITLES[choice]}" if letter else MODEL_TITLES[choice]


def _predict_hidden(bench: Bench) -> Answer | None:
    letters = _letters()
    rows = []
    for name, letter in sorted(letters.items(), key=lambda pair: pair[1]):
        scores = bench.asked(name).full["forget"]
        rows.append((f"model {letter}", scores.accuracy, scores.interval))
    st.plotly_chart(
        figures.bars(rows, "Colours right (dashed: guessing)", chance=True),
        alt="Two models that get about as many colours right",
        key="lesson hidden chart before",
    )
    choice = st.radio(
        "Both are now taught half of the colours again, step by step. In which one do the *other* "
        "colours come back first?",
        sorted(CHOICES, key=lambda name: letters.get(name, "Z")),
        format_func=lambda name: (
            f"model {letters[name]}" if name in letters else MODEL_TITLES[name]
        ),
        index=None,
        horizontal=True,
        key="lesson hidden",
    )
    asked = committed("hidden", "" if choice else "Choose one of the three.")
    return (choice, letters[MODELS[0]]) if asked and choice else None


def _half(bench: Bench, name: str) -> float:
    """After how many steps half of what the unedited model knew is back; infinity: never."""
    found = bench.relearned(name)
    steps = found.steps_to(found.before / 2)
    return math.inf if steps is None else steps


def _sooner(bench: Bench) -> str:
    steps = {name: _half(bench, name) for name in MODELS}
    if steps["mansu"] == steps["suppressor"]:
        return "same"
    return min(steps, key=lambda name: steps[name])


def _hiding(bench: Bench) -> list[str]:
    """The models that relearn sooner than one that does not know the colours."""
    return [name for name in MODELS if _half(bench, name) < _half(bench, "ablation")]


def hidden(hiding: Sequence[str], sooner: str) -> str:
    """Which of the two models only hides the colours, as relearning tells it, a clause.

    Args:
        hiding: those that relearn sooner than one that does not know. sooner: of ``CHOICES``.
    """
    if not hiding:
        return "neither relearns the colours sooner than a model without them"
    if len(hiding) == 1:
        return f"only one of them hides the colours: {MODEL_TITLES[hiding[0]]}"
    first = "" if sooner == "same" else f", in one ({MODEL_TITLES[sooner]}) sooner"
    return f"the colours come back in both{first}: on this toy they are gone from neither"


def _reveal_hidden(bench: Bench, answer: Answer) -> None:
    letters = _letters(answer)
    curves = {
        f"{letters[name]}: {MODEL_TITLES[name]}": bench.relearned(name).curve for name in MODELS
    }
    curves["a model that does not know them"] = bench.relearned("ablation").curve
    left, right = st.columns(2)
    with left:
        st.plotly_chart(
            figures.relearning(curves),
            alt="Accuracy on the colours that were not taught again, by step",
            key="lesson hidden curves",
        )
    with right:
        details = bench.verdict("mansu", _telling()).erasure.details
        shown = {
            "MANSU": float(details["signal"][0]),
            "a suppressor": float(details["signal_suppressor"][0]),
            "circuit set to zero": float(details["signal_ablation"][0]),
        }
        st.plotly_chart(
            figures.controls(shown),
            alt="Change of what the circuit writes after MANSU, a suppressor, and its ablation",
            key="lesson hidden cad",
        )
    st.caption(
        "The curves are of the half that is not taught, and the bars before were of all colours: "
        "a curve need not begin where its bar ended."
    )
    st.caption(
        "A *suppressor* only cancels the answer at the very end; everything before it still writes "
        "the answer. *CAD* compares the circuit before and after an edit; *signal CAD*, shown "
        "here, only what its parts write."
    )


def _beside(said: str, truth: str) -> str:
    """How an answer stands to what was measured, both of ``CHOICES``."""
    if said == truth:
        return "right"
    if truth == "same":
        return "neither was sooner"
    return "not at the same time" if said == "same" else "the other way"


def _outcome_hidden(bench: Bench, answer: Answer) -> Outcome:
    said, truth = str(answer[0]), _sooner(bench)
    one = {name: bench.relearned(name).curve[1].accuracy for name in MODELS}
    last = {name: bench.relearned(name).curve[-1].accuracy for name in (*MODELS, "ablation")}
    right = {name: bench.asked(name).full["forget"].accuracy for name in MODELS}
    steps, hiding = bench.relearned("mansu").steps, _hiding(bench)
    found = hidden(hiding, truth)
    return Outcome(
        said=_named(said, answer),
        truth=_named(truth, answer),
        difference=_beside(said, truth),
        lesson=f"Of all colours MANSU has {percent(right['mansu'])} right, the suppressor "
        f"{percent(right['suppressor'])}, and yet they are different models. After one step the "
        f"suppressor is at {percent(one['suppressor'], 0)}, MANSU at "
        f"{percent(one['mansu'], 0)}; after {steps}, the suppressor is at "
        f"{percent(last['suppressor'], 0)}, MANSU at {percent(last['mansu'], 0)}, a model without "
        f"the colours at {percent(last['ablation'], 0)}. {capitalised(found)}. What a model says "
        "does not tell hidden from gone: look inside, and teach it again.",
        caught=f"“Lower accuracy means erased”: both models have it, and {found}."
        if said in MODELS and said != truth and hiding
        else "",
    )


HIDDEN = Step(
    key="hidden",
    title="Gone, or only hidden?",
    question="Two models get about as many colours right: are the others gone, or only hidden?",
    story="One of these two models was edited by MANSU, the other only taught to keep quiet about "
    "the answer at the last moment (a **suppressor**). They are not labelled.",
    minutes=2,
    ask="How would you find out whether somebody has forgotten, or only does not say?",
    notes="Everybody has another labelling: ask “the quiet one or the other?”. Say what MANSU's "
    "curve says, too: on this toy it does not stay at the bottom. The suppressor's falls again, "
    "though the taught half stays wholly right: teaching asks for the taught colours only, and no "
    "colour is of both halves. The unedited model, taught alike, keeps them all; why the "
    "suppressor's does not, was not measured. What was back so soon was there, whatever became of "
    "it later.",
    predict=_predict_hidden,
    reveal=_reveal_hidden,
    outcome=_outcome_hidden,
    accepts=lambda answer: len(answer) == 2 and answer[0] in CHOICES and answer[1] in ("A", "B"),
    said=lambda bench, answer: MODEL_TITLES[str(answer[0])],
    link=Link("compare", "See CAD and relearning of a run", ("mansu",)),
)


# Would you sign?


Mark = Literal["passed", "failed", "undecided"]
MARKS: tuple[Mark, ...] = ("passed", "undecided", "failed")
EDIT_TITLES = {
    "mansu": "MANSU",
    "ordinary": "the strong training",
    "retrained": "trained anew without the colours",
}


ASKS = {
    "forgetting": "Are the colours as good as unknown, also when asked for in other words?",
    "retention": "Is everything else still there?",
    "gap": "Is nothing back after storing in 4 bits?",
    "erasure": "Is the circuit's signal gone, so that teaching half brings back no more?",
}
"""Each property as a question."""


def _telling() -> OnStep:
    """Where a verdict reports to: one line that goes when it is done."""
    place = st.empty()

    def tell(step: Done) -> None:
        if step.share < 1 or step.stage != "relearning":
            place.caption(f"Measuring … {sentence(step)}")
        else:
            place.empty()

    return tell


def _predict_sign(bench: Bench) -> Answer | None:
    edit = st.segmented_control(
        "Which edit",
        EDITS,
        default=EDITS[0],
        format_func=lambda name: f"edit {EDITS.index(name) + 1}",
        required=True,
        key="lesson sign edit",
    )
    verdict = bench.verdict(edit, _telling())
    given: list[str] = []
    for p in verdict.properties:
        with st.container(border=True):
            st.markdown(f"**{ASKS[p.name]}** ({p.title})", help=words.help(p.name))
            st.caption(words.plain(p.evidence))
            if p.worst is not None:
                st.caption(f"**It is decided by:** {words.plain(str(p.worst))}.")
            choice = st.segmented_control(
                f"Your verdict on {p.title}",
                MARKS,
                label_visibility="collapsed",
                key=f"lesson sign {edit} {p.name}",
            )
            given += [choice] if choice else []
    words_of = ("Interval", "Chance", "Nat", "KL from uniform", "McNemar's test", "CAD")
    words_of += ("Noise floor", "Suppressor", "Relearning")
    st.caption(f"Words: {', '.join(glossary.link(word) for word in words_of)}.")
    lacking = "" if len(given) == len(ABOUT) else f"{len(given)} of {len(ABOUT)} given."
    return (edit, *given) if committed("sign", lacking) else None


def _reveal_sign(bench: Bench, answer: Answer) -> None:
    edit, given = str(answer[0]), answer[1:]
    verdict = bench.verdict(edit, _telling())
    st.markdown(f"This was **{EDIT_TITLES[edit]}**.")
    st.table(
        {
            "Property": [capitalised(p.title) for p in verdict.properties],
            "You": [str(mark) for mark in given],
            "Measured": [p.status for p in verdict.properties],
            "Decided by": [str(p.worst) for p in verdict.properties],
        }
    )


def compared(verdict: Verdict, given: tuple[float | str, ...]) -> tuple[int, int, int]:
    """Of how many properties a student judged as measured, too kindly, too strictly."""
    order: dict[str, int] = {"failed": 0, "unknown": 1, "vacuous": 1, "undecided": 1, "passed": 2}
    differences = [
        order[str(mine)] - order[p.status]
        for mine, p in zip(given, verdict.properties, strict=True)
    ]
    return (
        sum(d == 0 for d in differences),
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
    )


def _outcome_sign(bench: Bench, answer: Answer) -> Outcome:
    verdict = bench.verdict(str(answer[0]))
    same, kind, strict = compared(verdict, answer[1:])
    below = verdict.forgetting.details.get("forget", {}).get("after", 1.0) < CHANCE - 0.1
    return Outcome(
        said=", ".join(map(str, answer[1:])),
        truth=", ".join(p.status for p in verdict.properties),
        difference=f"{same} as measured, {kind} too kind, {strict} too strict",
        lesson=f"A verdict is {len(ABOUT)} intervals, not a feeling. Together this one, "
        f"{EDIT_TITLES[str(answer[0])]}, is {verdict.status}: all must pass. A property is decided "
        "only where its whole interval lies on one side of the threshold.",
        caught="“Below guessing is better than guessing”: who is always wrong knows the answer."
        if below and answer[1] == "passed" and verdict.forgetting.status != "passed"
        else "",
    )


SIGN = Step(
    key="sign",
    title="Would you sign?",
    question="Would you sign that this edit has forgotten, for good, at no cost?",
    story="Three unlabelled edits, four properties, and what was measured of each. Choose an edit, "
    "read, and give your verdict by property. “Undecided”, that it "
    "cannot be told, is a verdict, too.",
    minutes=3.5,
    ask="Which single number would you want to see before you sign?",
    notes="The edit that was trained anew is what perfect unlearning would give; on this toy it is "
    "known. Ask who would have signed the others.",
    predict=_predict_sign,
    reveal=_reveal_sign,
    outcome=_outcome_sign,
    accepts=lambda answer: (
        len(answer) == 1 + len(ABOUT)
        and answer[0] in EDITS
        and all(mark in MARKS for mark in answer[1:])
    ),
    said=lambda bench, answer: (
        number(compared(bench.verdict(str(answer[0])), answer[1:])[0]) + " as measured"
    ),
    link=Link(
        "compare",
        "Read a verdict with its evidence",
        ("mansu", "graddiff"),
    ),
)
