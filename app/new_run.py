"""The form for a new run: a model, a task (shipped, copied or the user's own), how, and start."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import streamlit as st

from app import hub_rows, jobs, links, state, subjects, words
from mansu import methods, tasks
from mansu.errors import MansuError
from mansu.job.pipeline import check_usable, refuse_unknown
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.measure.scores import Measurement, measure_task
from mansu.settings import configure, settings_of
from mansu.show.numbers import between
from mansu.subjects import Subject, shipped, weights
from mansu.tasks import Task

KNOWN = settings_of(Settings)
FORMAT = """One fact a line, as JSON:

    {"prompt": "The chemical symbol for gold is", "answer": " Au", "split": "forget"}

`split` is forget, retain, holdout, neighbour or paraphrase. No method is trained on the last three:
facts of another kind and facts next to the forgotten ones, to be kept, and rephrasings.
`{"text": "…", "split": "text"}` adds plain text to keep. Optional: `distractors` (a list of wrong
answers), `corrupt_prompt` with its `foil`, and `group`. The answer must be one token of the model,
its leading space included. A CSV file has columns of the same names; several distractors stand in
one cell, with | between them."""
SHOWN_PROBLEMS = 50


def form(chosen: Run | None) -> None:
    """Draw it; a button starts the run.

    Args:
        chosen: the run in the sidebar, whose task can be taken again.
    """
    left, right = st.columns(2)
    with left:
        subject = _subject()
    with right:
        name = _task_name(subject, chosen)
    task, own = _task(subject, chosen, name)
    ready = bool(subject) and subjects.prepared(subject) and task is not None
    if subject and task is not None and ready:
        if own:
            ready = _base_accuracy(subject, task)
        with st.expander("What is in the task", icon=":material/list:"):
            _preview(task, subject, st.session_state.get("pairs", Settings().pairs))
    *columns, last = st.columns(4)
    given = _numbers(columns)
    baselines = [name for name in methods.NAMES if name != "mansu"]
    with last:
        baseline = state.choose(
            "Baseline",
            [*baselines, links.NO_BASELINE],
            "baseline",
            default=baselines.index("graddiff"),
            format_func=words.title,
            help="The method that MANSU is compared with.",
        )
    asked = ["mansu", *([] if baseline == links.NO_BASELINE else [baseline])]
    if subject and ready:
        st.caption(f":material/timer: {jobs.takes(subject, asked)}")
    left, right = st.columns(2)
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
    if subject and task is not None and (whole or only):
        with state.show_errors():
            kept = chosen.manifest["settings"] if chosen and _copies() else {}
            run = _create(subject, task, configure(Settings, {**kept, **given}, "a run"), asked)
            start(run, "run" if whole else "attribute")


def start(run: Run, command: str) -> None:
    """Start (or go on with) a run, choose it and show it.

    Raises:
        MansuError: a job is at work on it.
    """
    arguments = [command, "--folder", str(run.path)]
    if command == "run":
        for name in run.asked:
            arguments += ["--method", name]
    jobs.start(arguments, run.path)
    state.select("run", run.name)
    state.select("view", links.RESULT)
    st.rerun()


def _subject() -> str | None:
    """The model's name, "" while none is typed; None while a link's unknown one is not replaced."""
    name = state.choose_or_wait(
        "Subject",
        [*shipped.OFFERED, links.OTHER_MODEL],
        "subject",
        help="The model under study.\n\n"
        + "\n".join(f"- {name}: {shipped.TABLE[name].title}" for name in shipped.OFFERED),
    )
    if name != links.OTHER_MODEL:
        return name
    return st.text_input(
        "Hub id or folder",
        key="model",
        bind="query-params",
        placeholder="EleutherAI/pythia-70m, or /path/to/checkpoint",
        help=f"A Hugging Face checkpoint: {weights.titles()}.",
    ).strip()


def _task_name(subject: str | None, chosen: Run | None) -> str | None:
    names, default = subjects.offered(subject)
    copied = [] if chosen is None else [links.SAME_TASK]
    return state.choose_or_wait(
        "Task",
        [*names, *copied, links.OWN_TASK],
        "task",
        default=default,
        help="What to forget, what to keep.",
    )


def _task(subject: str | None, chosen: Run | None, name: str | None) -> tuple[Task | None, bool]:
    """The task, None while there is none or a bad one (which is said), and whether it is a user's.

    Nobody measured what the model knows of a user's own.
    """
    names, default = subjects.offered(subject)
    if name is None:
        return None, False
    if name in names:
        return tasks.load(name), False
    with state.show_errors():
        if name == links.SAME_TASK and chosen is not None:
            st.caption(f"The task of the run {words.plain(chosen.name)}.")
            return chosen.task(), True
        return _own(names[default]), True
    return None, True


def _copies() -> bool:
    """Whether the form is a copy of the chosen run, with the settings that it does not ask for."""
    return st.session_state.get("task") == links.SAME_TASK


def _own(example: str) -> Task | None:
    """A task that was uploaded or pasted; each bad line is named with its number.

    Args:
        example: the shipped task that the sample file is made of.
    """
    left, right = st.columns(2)
    file = left.file_uploader("Task file (JSONL or CSV)", type=["jsonl", "csv"], help=FORMAT)
    with left:
        _samples(example)
    pasted = right.text_area(
        "Or paste its lines (JSONL)",
        key="pasted",
        height=120,
        placeholder='{"prompt": "The sky is", "answer": " blue", "split": "forget"}',
    )
    about: dict[str, Any] = {}
    if file is None and not pasted.strip():
        title = "Or rows of a data set on the hub"
        read = None
        with st.expander(title, icon=":material/dataset:"), state.show_errors():
            read = hub_rows.rows()
        if read is None:
            st.info("Waiting for a file, lines or rows. A sample file shows how they are written.")
            return None
        text, path, about = read.text, Path(f"{read.name}.jsonl"), {"provenance": read.source}
    else:
        text = pasted if file is None else _text(file.getvalue())
        path = Path("pasted.jsonl" if file is None else file.name)
    wrong, task = _read(text, path.stem, path.suffix == ".csv", about)
    if wrong:
        said = "\n".join(f"- {words.plain(sentence)}" for sentence in wrong[:SHOWN_PROBLEMS])
        more = len(wrong) - SHOWN_PROBLEMS
        said += f"\n- … and {more:,} more" if more > 0 else ""
        st.error(f"{len(wrong):,} to mend in the task:\n\n{said}", icon=":material/error:")
    return task


@st.cache_resource(max_entries=4, show_spinner=False)
def _read(text: str, name: str, csv: bool, about: dict[str, Any]) -> tuple[list[str], Task | None]:
    """What is wrong with a task, and the task where nothing is; once a content, not a rerun."""
    wrong = list(tasks.problems(text, csv=csv))
    return wrong, None if wrong else tasks.parse(text, name, csv=csv, **about)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MansuError("The task file is not UTF-8 text: save it as UTF-8.") from error


def _samples(example: str) -> None:
    """Buttons for the same sample task as JSONL and as CSV: it can be uploaded as it is."""
    task = tasks.load(example).sample(8)
    with st.container(horizontal=True):
        for name, text in (("sample.jsonl", task.to_jsonl()), ("sample.csv", task.to_csv())):
            st.download_button(name, text, name, icon=":material/download:", on_click="ignore")


@st.cache_resource(
    max_entries=32,
    show_spinner="Asking the model what it knows of the task …",
    show_time=True,
    hash_funcs={Subject: lambda s: s.fingerprint, Task: lambda t: t.digest},
)
def _measured(subject: Subject, task: Task) -> Measurement:
    """The unedited model, measured once for all sessions that ask for this task."""
    with subject.lock:  # no other session's edit may be on
        return measure_task(subject, task)


def _base_accuracy(subject: str, task: Task) -> bool:
    """What the unedited model knows of a user's own task, before anything else is done.

    Returns:
        Whether the task can be used with the model; else why not is said.
    """
    with state.show_errors():
        model = state.subject(subject)
        if notes := check_usable(task, model, Settings()):
            said = "\n".join(f"- {words.plain(note)}" for note in notes)
            st.warning(f"What this model cannot use of the task:\n\n{said}", icon=":material/rule:")
        found = _measured(model, task)
        st.table(
            {
                "Set": list(map(words.plain, found.sets())),
                "Rows": [str(len(s.correct)) for s in found.sets().values()],
                "Right of four choices": [between(s.interval) for s in found.sets().values()],
            }
        )
        st.caption("What the model knows before any edit. Guessing is right in 25 %.")
        refuse_unknown(model, found)
        return True
    return False


def _preview(task: Task, subject: str, pairs: int) -> None:
    st.markdown(f"**{words.plain(task.title)}.** {words.plain(task.description)}")
    st.caption(f"Source: {words.plain(task.provenance)}")
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


def _numbers(columns: list[Any]) -> dict[str, Any]:
    """The settings that are asked for."""
    asked = (
        ("pairs", "Pairs", 1, 512, 1),
        ("steps", "Steps K", 1, 64, 1),
        ("tau", "Faithfulness τ", 0.05, 1.0, 0.05),
    )
    found = {}
    for column, (name, label, low, high, step) in zip(columns, asked, strict=True):
        with column:
            about = KNOWN[name]
            found[name] = state.number(label, about, name, (low, high), step=step, help=about.help)
    return found


def _create(subject: str, task: Task, settings: Settings, asked: list[str]) -> Run:
    """Make the run folder, after all that can be refused has been checked.

    Raises:
        MansuError: the model cannot be loaded, or the task cannot be used with it.
    """
    model = state.subject(subject)
    check_usable(task, model, settings)
    return Run.create(model, task, settings, asked=asked)
