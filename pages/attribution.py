"""Attribution: which edges of the computation carry what is to be forgotten?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import streamlit as st

from app import graph_view, jobs, state, subjects
from mansu import methods, tasks
from mansu.errors import MansuError
from mansu.job.pipeline import check_usable
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.settings import configure, settings_of
from mansu.subjects import shipped, weights

KNOWN = settings_of(Settings)
OTHER, UPLOAD, NONE = "another model …", "your own file …", "no baseline"
FORMAT = """One fact a line, as JSON:

    {"prompt": "The chemical symbol for gold is", "answer": " Au", "split": "forget"}

`split` is forget, retain, holdout, neighbour or paraphrase. No method is trained on the last three:
facts of another kind and facts next to the forgotten ones, to be kept, and rephrasings.
`{"text": "…", "split": "text"}` adds plain text to keep. Optional: `distractors` (a list of wrong
answers), `corrupt_prompt` with its `foil`, and `group`. The answer must be one token of the model,
its leading space included."""


def choose_subject() -> str:
    name = state.choose(
        "Subject",
        [*shipped.OFFERED, OTHER],
        "subject",
        help="The model under study.\n\n"
        + "\n".join(f"- {name}: {shipped.TABLE[name].title}" for name in shipped.OFFERED),
    )
    if name != OTHER:
        return name
    return st.text_input(
        "Hub id or folder",
        key="model",
        bind="query-params",
        placeholder="EleutherAI/pythia-70m, or /path/to/checkpoint",
        help=f"A Hugging Face checkpoint: {weights.titles()}.",
    ).strip()


def choose_task(subject: str) -> tasks.Task | None:
    """The task, or None while there is no file or a bad one (which is said)."""
    names, default = subjects.offered(subject)
    name = state.choose(
        "Task", [*names, UPLOAD], "task", default=default, help="What to forget, what to keep."
    )
    if name != UPLOAD:
        return tasks.load(name)
    file = st.file_uploader("Task file (JSONL)", type=["jsonl"], help=FORMAT)
    if file is None:
        st.caption("Waiting for a file. Its format is in the tooltip above.")
        return None
    with state.show_errors():
        return tasks.parse(_text(file.getvalue()), file.name.removesuffix(".jsonl"))
    return None


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MansuError("The task file is not UTF-8 text: save it as UTF-8.") from error


def preview(task: tasks.Task, subject: str, pairs: int) -> None:
    st.markdown(f"**{task.title}.** {task.description}")
    st.caption(f"Source: {task.provenance}")
    counts = Counter((fact.split, fact.group) for fact in task.facts)
    first = {(fact.split, fact.group): fact for fact in reversed(task.facts)}
    st.dataframe(
        [
            {
                "set": split if split == group else f"{split}: {group}",
                "rows": n,
                "first row": first[split, group].prompt + first[split, group].answer,
            }
            for (split, group), n in counts.items()
        ],
        hide_index=True,
    )
    shown = st.toggle(
        "Show the clean–corrupt pairs",
        help="Attribution compares each prompt with another of equal token length and another "
        "answer. Showing them loads the model.",
    )
    if not shown:
        return
    with state.show_errors():
        model = state.subject(subject)
        found = tasks.pairs(task, model, n=pairs)
        decode: Any = model.tokenizer.decode
        st.dataframe(
            [
                {
                    "line": row,
                    "clean prompt": decode(clean[:n]),
                    "answer": decode([answer]),
                    "corrupt prompt": decode(corrupt[:n]),
                    "its answer": decode([foil]),
                }
                for row, clean, corrupt, n, answer, foil in zip(
                    found.rows,
                    found.clean.tolist(),
                    found.corrupt.tolist(),
                    found.length.tolist(),
                    found.answer.tolist(),
                    found.foil.tolist(),
                    strict=True,
                )
            ],
            hide_index=True,
            height=260,
        )
        for note in found.notes:
            st.caption(f":material/info: {note}")


def create(subject: str, task: tasks.Task, settings: Settings, asked: list[str]) -> Run:
    """Make the run folder, after all that can be refused has been checked.

    Raises:
        MansuError: the model cannot be loaded, or the task cannot be used with it.
    """
    model = state.subject(subject)
    check_usable(task, model, settings)
    return Run.create(model, task, settings, asked=asked)


def new_run() -> None:
    left, right = st.columns(2)
    with left:
        subject = choose_subject()
    with right:
        task = choose_task(subject)
    there = subjects.prepared(subject)
    if task is not None and there:
        with st.expander("What is in the task", icon=":material/list:"):
            preview(task, subject, st.session_state.get("pairs", Settings().pairs))
    columns = st.columns(4)
    pairs = columns[0].number_input(
        "Pairs",
        1,
        512,
        Settings().pairs,
        key="pairs",
        bind="query-params",
        help=KNOWN["pairs"].help,
    )
    steps = columns[1].number_input(
        "Steps K",
        1,
        64,
        Settings().steps,
        key="steps",
        bind="query-params",
        help=KNOWN["steps"].help,
    )
    tau = columns[2].number_input(
        "Faithfulness τ",
        0.05,
        1.0,
        Settings().tau,
        0.05,
        key="tau",
        bind="query-params",
        help=KNOWN["tau"].help,
    )
    baselines = [name for name in methods.NAMES if name != "mansu"]
    with columns[3]:
        baseline = state.choose(
            "Baseline",
            [*baselines, NONE],
            "baseline",
            default=baselines.index("graddiff"),
            help="The method that MANSU is compared with.",
        )
    asked = ["mansu", *([] if baseline == NONE else [baseline])]
    left, right = st.columns(2)
    ready = task is not None and bool(subject) and there
    whole = left.button(
        "Run the whole job",
        type="primary",
        icon=":material/play_arrow:",
        disabled=not ready,
        width="stretch",
        help="Attribution, circuit, MANSU and the baseline, NF4, CAD, verdict.",
    )
    only = right.button(
        "Attribute only", icon=":material/conversion_path:", disabled=not ready, width="stretch"
    )
    if task is not None and (whole or only):
        with state.show_errors():
            given = {"pairs": pairs, "steps": steps, "tau": tau}
            settings = configure(Settings, given, "a run")
            run = create(subject, task, settings, asked)
            start(run, "run" if whole else "attribute")


def start(run: Run, command: str) -> None:
    """Start (or go on with) a run, choose it and show it."""
    arguments = [command, "--folder", str(run.path)]
    if command == "run":
        for name in run.asked:
            arguments += ["--method", name]
    jobs.start(arguments, run.path)
    state.select("run", run.name)
    state.select("view", RESULT)
    st.rerun()


def result(run: Run) -> None:
    running = jobs.panel(run)
    unfinished = len(run.judged()) < len(run.asked)
    with st.container(), state.show_errors():
        if (unfinished and not running) and st.button(
            "Go on with the whole job", icon=":material/play_arrow:"
        ):
            start(run, "run")
    if not run.has("attribution"):
        if not running:
            st.info("This run has no attribution yet: go on with it, or start a new one.")
        return
    attribution = run.attribution()
    graph = attribution.layout
    a, b, c, d = st.columns(4)
    a.metric(
        "Clean metric",
        f"{attribution.clean:+.2f}",
        help="Mean over the pairs of logit(answer) − logit(foil) on the clean prompts.",
    )
    b.metric(
        "Corrupt metric",
        f"{attribution.corrupt:+.2f}",
        help="The same difference on the corrupt prompts, where the foil is right.",
    )
    c.metric("Edges", f"{graph.n_edges:,}", help="Node output → q, k, v, MLP or logits input.")
    share = attribution.concentration()
    d.metric(
        "Share of the top 100",
        f"{share:.0%}",
        help="Σ |score| of the 100 strongest edges ÷ Σ |score| of all: how concentrated it is.",
    )
    left, right = st.columns(2)
    with left:
        st.subheader(
            "Where the behaviour lives",
            help="An edge's score: EAP-IG's estimate of the change of the metric when the edge is "
            "patched to its corrupt value: negative (blue) where it carries the answer, positive "
            "(orange) where it works against it. A node's score sums its outgoing edges. "
            "Shades go by the square root, so that weaker nodes are seen.",
        )
        st.plotly_chart(
            graph_view.heat_map(attribution),
            config={"displayModeBar": False},
            alt="Heat map of node scores by layer and head; the table beside it has the numbers.",
        )
    with right:
        st.subheader(
            "Strongest edges",
            help="a3.h2 is head 2 of layer 3, ⟨q⟩ its query, kv1⟨k⟩ the key of key/value head 1; "
            "m3 is the MLP of layer 3.",
        )
        st.dataframe(
            graph_view.strongest(attribution, 50),
            hide_index=True,
            height=420,
            column_config={
                "score": st.column_config.NumberColumn(format="%.4f"),
                "share": st.column_config.NumberColumn(
                    format="percent", help="|score| ÷ Σ |score| of all edges"
                ),
            },
        )


def model_card(run: Run) -> None:
    card = st.expander("Model card", icon=":material/id_card:", key="card", on_change="rerun")
    if card.open:
        with card, state.show_errors():
            about = state.subject(run.subject).card()
            if "note" in about:
                st.info(about.pop("note"), icon=":material/info:")
            shown = {k: f"{v:,}" if isinstance(v, int) else str(v) for k, v in about.items()}
            st.table(shown)


RESULT, NEW = "This run", "New run"

run = state.sidebar()
st.title("Attribution")
st.markdown("**Which edges of the computation carry what is to be forgotten?**")
if run is None:
    st.markdown(
        "Choose a model and a task, then run the whole job: it finds the circuit, edits it, "
        "quantises the result and judges it. On the default model and two quiet cores that takes "
        "five to ten minutes."
    )
    new_run()
else:
    if state.switch("Show", [RESULT, NEW], "view", label_visibility="collapsed") == NEW:
        new_run()
    else:
        with state.show_errors():
            result(run)
        model_card(run)
