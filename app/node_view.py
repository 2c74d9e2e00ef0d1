"""What one node does on a prompt: in the unedited model and, beside it, in an edited one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import asking, graph_view, state, tables
from mansu.circuits import lens
from mansu.circuits.lens import Asked, Seen
from mansu.job import names
from mansu.job.runs import Run
from mansu.report import nodes
from mansu.subjects.subject import Subject

TOKENS = 8  # shown at either end
SIDE = 305  # pixels of one of several charts
OWN = "your own words"
LONGEST = 300
"""Characters of one's own prompt: its attention pattern is drawn."""
_PLAIN = {"displayModeBar": False}


def draw(run: Run, index: int, about: Mapping[str, Any], method: str | None) -> None:
    """Draw it, with the choice of the prompt.

    Args:
        index, about: of the node, as ``Circuit.node`` has it. method: the edit's name, if any.
    """
    subject = state.session(run).subject
    asked = _prompt(run)
    if asked is None:
        st.info("Type the beginning of a sentence: the node is looked at after its last word.")
        return
    models = {"Unedited": lens.node_seen(state.look(subject, asked), index)}
    if method:
        edited = names.title(run, method)
        for nf4, title in ((False, edited), (True, f"{edited} in NF4")):
            models[title] = state.node_after(run, method, asked, index, nf4=nf4)
    if about["kind"] == "head":
        _attention(subject, asked, models, about["name"])
    _written(subject, asked, models, about)
    if about["kind"] == "mlp":
        found = {title: seen.neurons for title, seen in models.items() if seen.neurons}
        st.markdown(
            f"**The strongest neurons of {about['name']}**",
            help="Each neuron writes its activation times its column of the down projection. Its "
            "direct effect is what that adds to the logit, as above; the tokens are those that it "
            "raises most in the model named first that has it among its strongest.",
        )
        tables.draw(nodes.neurons(subject, found))


def _prompt(run: Run) -> Asked | None:
    """The prompt that is chosen: one of the task's pairs, or the user's; None while it is empty."""
    found = state.session(run)
    subject, pairs = found.subject, found.pairs
    decode = subject.tokenizer.decode
    rows = {str(line): row for row, line in enumerate(pairs.rows)}
    texts = {k: str(decode(list(Asked.of(pairs, row).clean))) for k, row in rows.items()}
    line = state.choose(
        "Prompt",
        [*rows, OWN],
        "pair",
        default=len(rows) if asking.linked("pair") else 0,
        format_func=lambda k: texts.get(k, k),
    )
    if line == OWN:
        prompt, answer = asking.typed(LONGEST)
        if not prompt.strip():
            return None
        asked = asking.own_prompt(run, prompt, answer)
        (word,) = lens.words(subject, asked.ends)
        whose = "" if answer.strip() else ", what the unedited model says next"
        st.markdown(f"Answer `{word}`{whose}. It is held against no other prompt.")
        return asked
    asking.leave_out(OWN)
    asked = Asked.of(pairs, rows[line])
    answer, foil = lens.words(subject, asked.ends)
    st.markdown(
        f"Corrupt prompt: “{decode(list(asked.corrupt or ()))}”  \nAnswer `{answer}`, foil `{foil}`"
    )
    return asked


def _beside(n: int) -> list[DeltaGenerator]:
    """Places side by side that go below one another where the window is too narrow for them."""
    row = st.container(horizontal=True)
    return [row.container(width="stretch" if n == 1 else SIDE) for _ in range(n)]


def _attention(subject: Subject, asked: Asked, models: Mapping[str, Seen], name: str) -> None:
    side, tokens = "clean", asked.clean
    if asked.corrupt is not None:
        side = state.switch("Prompt read", ["clean", "corrupt"], "side")
        tokens = asked.clean if side == "clean" else asked.corrupt
    st.markdown(f"**Attention pattern of {name}**")
    for column, (title, seen) in zip(_beside(len(models)), models.items(), strict=True):
        assert seen.attention is not None  # it is a head
        column.markdown(title)
        column.plotly_chart(
            graph_view.attention_map(
                seen.attention[int(side == "corrupt")], lens.words(subject, tokens)
            ),
            config=_PLAIN,
            key=f"attention {title}",
            alt=f"Attention of {name} from each position to each earlier one, {title}",
        )


def _written(
    subject: Subject, asked: Asked, models: Mapping[str, Seen], about: Mapping[str, Any]
) -> None:
    """Tokens promoted and demoted, and the direct contribution to the answer's logit."""
    pair, own = asked.corrupt is not None, about["kind"] == "logits"
    title = "The model's own prediction" if own else f"What {about['name']} writes"
    st.markdown(
        f"**{title}**",
        help="Logit lens of "
        + ("the output's difference, clean − corrupt," if pair else "the output")
        + " at the last position: through the final norm and the unembedding. It is the direct "
        "effect only; what later layers make of it is not in it.",
    )
    promoted = {title: seen.promoted for title, seen in models.items()}
    tables.draw(nodes.contributions(subject, asked, promoted))
    shown = lens.extremes([seen.promoted for seen in models.values()], TOKENS, asked.ends)
    limit = max(float(seen.promoted[shown].abs().max()) for seen in models.values())
    for column, (title, seen) in zip(_beside(len(models)), models.items(), strict=True):
        column.markdown(title)
        column.plotly_chart(
            graph_view.token_bars(
                seen.promoted[shown],
                lens.words(subject, shown),
                [shown.tolist().index(token) for token in asked.ends],
                limit,
                of="change of the logit, clean − corrupt" if pair else "part of the logit",
            ),
            config=_PLAIN,
            key=f"tokens {title}",
            alt=f"The tokens that the node raises and lowers most, {title}",
        )
