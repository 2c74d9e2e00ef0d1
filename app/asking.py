"""Asking the models of a run: what is loaded is shared, and an answer is given once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from app import address, state
from app.shelf import shelf
from mansu import quant
from mansu.circuits.lens import Asked, logit_lens
from mansu.errors import BadInputError
from mansu.job.runs import Run
from mansu.measure.answers import Answered, answered
from mansu.report import asked
from mansu.sets.ask import Answers, ask, check_prompt
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Fact
from mansu.tasks.tokens import read


def _nf4(subject: Subject) -> quant.Dequantized:
    """What the subject's weights are in NF4, once for all sessions."""
    size = sum(subject.parameters[name].nbytes for name in subject.quantized_names)
    return shelf().get(
        ("nf4", subject.fingerprint),
        lambda: quant.Dequantized.of(subject),
        "Rounding the model to 4 bits",
        size,
    )


def answers(run: Run, methods: Sequence[str], prompt: str, wanted: str, tokens: int) -> Answers:
    """What the unedited model and each edit say after a prompt, in full precision and NF4.

    Args:
        wanted: the answer whose probability is followed; "" for what the unedited model says.

    Raises:
        MansuError: the prompt cannot be asked, or the run is of another subject.
    """
    subject = state.session(run).subject
    digests = tuple(run.digest(method) for method in methods)
    return _answers(run, subject, tuple(methods), digests, prompt, wanted, tokens)


@st.cache_resource(
    max_entries=64,
    show_spinner="Asking the models …",
    show_time=True,
    hash_funcs={Subject: lambda s: s.fingerprint, Run: lambda r: str(r.path)},
)
def _answers(
    run: Run,
    subject: Subject,
    methods: tuple[str, ...],
    digests: tuple[str, ...],
    prompt: str,
    wanted: str,
    tokens: int,
) -> Answers:
    right = _token(subject, prompt, wanted) if wanted.strip() else ()
    edits = {method: state.edit(run, method) for method in methods}
    return ask(subject, prompt, edits, tokens=tokens, wanted=right, nf4=_nf4(subject))


def linked(key: str) -> bool:
    """Whether a link has a prompt in somebody's own words, and leaves ``key``, whose, to it."""
    return bool(st.query_params.get("prompt")) and key not in st.query_params


def leave_out(own: str) -> None:
    """Where a prompt of the task is asked: one that a link has, too, is said to be left out.

    Args:
        own: the option for own words, as it is shown.
    """
    prompt = st.query_params.get("prompt")
    if prompt and not st.session_state.get("typed"):
        address.warn(
            f"The link has the prompt “{address.brief(prompt)}”, which is asked under “{own}” "
            "alone: it is left out."
        )
        address.link({"prompt": "", "answer": ""})


def typed(longest: int) -> tuple[str, str]:
    """The prompt and the right answer that somebody types, "" while there is none.

    Args:
        longest: characters of the prompt, at most.
    """
    st.session_state["typed"] = True  # from here on Streamlit itself takes them out of the address
    left, right = st.columns([3, 1])
    prompt = left.text_input(
        "Beginning of a sentence", key="prompt", bind="query-params", max_chars=longest
    )
    answer = right.text_input(
        "Right answer (optional)", key="answer", bind="query-params", max_chars=100
    )
    return str(prompt or ""), str(answer or "")


def own_prompt(run: Run, prompt: str, wanted: str) -> Asked:
    """A prompt that somebody typed, to look at a node on.

    Args:
        wanted: the answer whose logit is followed; "" for what the unedited model says.

    Raises:
        MansuError: the prompt cannot be asked, or the answer is not one token.
    """
    subject = state.session(run).subject
    row = check_prompt(subject, prompt, 1)
    token = _token(subject, prompt, wanted)[0] if wanted.strip() else _says(subject, prompt)
    return Asked(tuple(row), token)


@st.cache_data(max_entries=256, show_spinner=False, hash_funcs={Subject: lambda s: s.fingerprint})
def _says(subject: Subject, prompt: str) -> int:
    """The token that the unedited model goes on with."""
    return int(logit_lens(subject, prompt, top=1, last=True).top[-1, 0, 0])


def _token(subject: Subject, prompt: str, answer: str) -> tuple[int]:
    """The answer's token after the prompt, as the task's facts are read.

    Raises:
        BadInputError: it is not one token for this model.
    """
    found, _ = read([Fact(prompt, answer, "forget", 1, "forget")], subject)
    if not found:
        raise BadInputError(
            f"The answer {answer!r:.40} is not one token after this prompt for {subject.name!r}: "
            "give a shorter one, or leave it empty."
        )
    return (found[0].answer,)


@dataclass(frozen=True)
class Filter:
    """Which facts are shown: those of some sets whose answers one edit flips in one way.

    Attributes:
        flip: one of ``FLIPS``, or "" for any. sets: as ``asked.kind`` names them; none for all.
    """

    flip: str
    sets: Sequence[str]

    def places(self, found: Sequence[Answered]) -> list[int]:
        """Where the facts are that it lets through."""
        return [
            i
            for i, one in enumerate(found)
            if self.flip in ("", one.flip) and (not self.sets or asked.kind(one.fact) in self.sets)
        ]


def facts(run: Run, methods: Sequence[str]) -> dict[str, tuple[Answered, ...]]:
    """What the models answer to every fact of the run, by method, as it was measured.

    Raises:
        NotMeasuredError: an edit was not measured yet.
    """
    task, base = run.task(), run.base(nf4=False)
    return {
        m: answered(task, base, run.measurement(m, nf4=False), run.measurement(m, nf4=True))
        for m in methods
    }
