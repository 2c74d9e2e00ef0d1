"""One hub set scored on the unedited and the edited model, in full precision and in NF4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mansu import quant
from mansu.errors import BadInputError, MansuError
from mansu.progress import OnStep, Step, silent
from mansu.sets import choices, hub, muse, tofu
from mansu.show.numbers import measured, percent
from mansu.show.table import Table
from mansu.statistics import SHARE, Interval, bootstrap
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

SETS = ("wmdp", "mmlu", "tofu", "muse")


NEVER_SAW = 0.5  # PrivLeak's AUC for a model that saw neither text, where no reference is given


Rows = Mapping[str, Mapping[str, np.ndarray]]


Asked = tuple[Callable[[], Rows], Mapping[str, Any]]
"""What scores the subject as it now is, and the rows that it asks for, by part."""


def score(
    subject: Subject,
    name: str,
    sources: Sequence[str],
    *,
    edit: Edit | None = None,
    in_nf4: bool = False,
    form: str = "letters",
    shots: int = 0,
    tokens: int | None = None,
    reference: Mapping[str, Any] | None = None,
    on_step: OnStep = silent,
) -> dict[str, Any]:
    """Score the set on each model.

    Args:
        name: one of ``SETS``. sources: see ``hub.read``; for ``muse`` one folder or hub id. Each is
            a part of the result, named as ``hub.named`` has it.
        edit: scored beside the unedited model, if given. in_nf4: also both in NF4.
        form, shots: how multiple choice is asked.
        tokens: the longest greedy answer, where it is not to be the set's own.
        reference: an earlier result of this function on a model that never saw the forget set,
            for TOFU's forget quality and MUSE's PrivLeak; its first model is taken.

    Returns:
        JSON values: ``models`` → model → ``metrics`` (metric → [value, low, high], or one number
        that has no interval) and ``rows`` (part → measure → one number a row); ``notes`` (what
        the subject cannot read, a sentence each); and what was asked.

    Raises:
        MansuError: an unknown set, or data that cannot be read.
    """
    if name not in SETS:
        raise MansuError(f"Unknown set {name!r}: use one of {', '.join(SETS)}.")
    known = None if reference is None else _first(reference, name)  # refused before any work
    measure = {"tofu": _tofu, "muse": _muse}.get(name)
    limit: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    once, sets = (
        measure(subject, sources, limit) if measure else _choices(subject, sources, form, shots)
    )
    models: dict[str, Any] = {}
    number = (2 if edit else 1) * (2 if in_nf4 else 1)
    for edited in [None, edit] if edit else [None]:
        for quantised in (False, True) if in_nf4 else (False,):
            label = (edited.label or "edited" if edited else "unedited") + " NF4" * quantised
            on_step(Step("score", len(models), number, part=f"the {label} model"))
            with ExitStack() as stack:
                if edited:
                    stack.enter_context(edited.applied(subject))
                if quantised:
                    stack.enter_context(quant.quantized(subject))
                rows = once()
            metrics = _metrics(name, rows, known)
            models[label] = {
                "metrics": {
                    k: m.to_json() if isinstance(m, Interval) else m for k, m in metrics.items()
                },
                "rows": {
                    part: {k: np.round(v, 6).tolist() for k, v in found.items()}
                    for part, found in rows.items()
                },
            }
    asked: dict[str, Any] = {"set": name, "sources": list(sources), "subject": subject.name}
    asked |= limit
    if not measure:
        asked |= {"form": form, "shots": shots}
    return {**asked, "notes": list(_notes(subject, sets)), "models": models}


def _notes(subject: Subject, sets: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each part in which the subject cannot read every word."""
    unknown = subject.tokenizer.unk_token_id
    for part, rows in sets.items():
        tokens = [token for text in _texts(rows) for token in subject.encode(text)]
        share = tokens.count(unknown) / max(len(tokens), 1)  # type: ignore[arg-type]
        if share > 0:
            yield (
                f"{percent(share)} of the words of {part} are not in the vocabulary of "
                f"{subject.name}, which reads each of them as the same unknown one: scores of "
                "what it cannot read say little."
            )


def _texts(value: Any) -> Iterator[str]:
    """Every text in rows of a set."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _texts(list(value.__dict__.values()))
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _choices(subject: Subject, sources: Sequence[str], form: str, shots: int) -> Asked:
    if form not in choices.FORMS:
        raise MansuError(f"Unknown form {form!r}: use {' or '.join(choices.FORMS)}.")
    sets = {part: choices.read(s) for part, s in hub.named(sources).items()}
    for part, questions in sets.items():
        if len(questions) <= shots:
            raise MansuError(
                f"{part!r} has {len(questions)} rows, too few for {shots} worked examples: give "
                "fewer."
            )

    def once() -> Rows:
        # The last rows are the worked examples and are not asked.
        cut = {part: len(questions) - shots for part, questions in sets.items()}
        return {
            part: choices.scores(subject, q[: cut[part]], form=form, shots=q[cut[part] :])
            for part, q in sets.items()
        }

    return once, {part: [(q.question, q.choices) for q in each] for part, each in sets.items()}


def _tofu(subject: Subject, sources: Sequence[str], limit: Mapping[str, Any]) -> Asked:
    sets = {part: tofu.read(s) for part, s in hub.named(sources).items()}

    def once() -> Rows:
        return {
            part: tofu.scores(subject, rows, world=part.startswith(tofu.WORLD), **limit)
            for part, rows in sets.items()
        }

    return once, sets


def _muse(subject: Subject, sources: Sequence[str], limit: Mapping[str, Any]) -> Asked:
    if len(sources) != 1 or (":" in sources[0] and not Path(sources[0]).exists()):
        raise MansuError(
            "MUSE takes one folder or hub id, with the configs verbmem, knowmem and privleak in it."
        )
    place = sources[0]
    pairs = muse.read_verbatim(f"{place}:verbmem", subject)
    asked = {s: muse.read_knowledge(f"{place}:knowmem", split=f"{s}_qa") for s in _KEEP}
    shown = {s: muse.read_knowledge(f"{place}:knowmem", split=f"{s}_qa_icl") for s in _KEEP}
    texts = {s: muse.read_texts(f"{place}:privleak", split=s) for s in (*_KEEP, "holdout")}

    def once() -> Rows:
        found: dict[str, dict[str, np.ndarray]] = {
            s: {"knowledge": muse.knowledge(subject, asked[s], shown[s], **limit)} for s in _KEEP
        }
        found["verbatim"] = {"verbatim": muse.verbatim(subject, pairs, **limit)}
        leak = {f"min_k {s}": {"min_k": muse.min_k(subject, t)} for s, t in texts.items()}
        return {**found, **leak}

    return once, {"verbmem": pairs, "knowmem": asked, "privleak": texts}


_KEEP = ("forget", "retain")
SHARES = ("accuracy", "accuracy_sum", "rouge", "probability")
"""Measures that lie between 0 and 1."""


def _metrics(name: str, rows: Rows, reference: Rows | None) -> dict[str, Interval | float]:
    if name == "muse":
        return _muse_metrics(rows, reference)
    found: dict[str, Interval | float] = {
        f"{part} {measure}": bootstrap(values, within=SHARE if measure in SHARES else None)
        for part, measures in rows.items()
        for measure, values in measures.items()
    }
    if name == "tofu":
        kept = {part: m for part, m in rows.items() if not part.startswith("forget")}
        if kept and all("truth_ratio" in m for m in kept.values()):
            found["model utility"] = tofu.utility(kept)
        for part, measures in rows.items():
            if reference is not None and part.startswith("forget") and "truth_ratio" in measures:
                other = reference.get(part, {}).get("truth_ratio")
                if other is None:
                    raise MansuError(f"The reference has no truth ratio of {part!r}: score it too.")
                found[f"{part} forget quality"] = tofu.forget_quality(
                    measures["truth_ratio"], other
                )
    return found


def _muse_metrics(rows: Rows, reference: Rows | None) -> dict[str, Interval | float]:
    def area(of: Rows) -> Interval:
        return muse.auc_interval(of["min_k forget"]["min_k"], of["min_k holdout"]["min_k"])

    found, base = area(rows), NEVER_SAW if reference is None else area(reference).value
    leak = [muse.privacy_leak(x, base) for x in (found.value, found.low, found.high)]
    return {
        "VerbMem forget": bootstrap(rows["verbatim"]["verbatim"], within=SHARE),
        "KnowMem forget": bootstrap(rows["forget"]["knowledge"], within=SHARE),
        "KnowMem retain": bootstrap(rows["retain"]["knowledge"], within=SHARE),
        "AUC Min-40% forget, holdout": found,
        "PrivLeak %": Interval(*leak),
    }


def _first(reference: Mapping[str, Any], name: str) -> Rows:
    try:
        if reference["set"] == name:
            rows = next(iter(reference["models"].values()))["rows"]
            return {
                part: {k: np.array(v, dtype=float) for k, v in m.items()}
                for part, m in rows.items()
            }
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        pass  # a file of another shape is another file
    raise BadInputError(
        f"The reference is no result of `mansu score --set {name}`: score a model that never "
        "saw the forget set, and give the file that this wrote."
    )


def table(result: Mapping[str, Any]) -> Table:
    """A row a metric, a column a model: values with their intervals."""
    models = result["models"]
    first = next(iter(models.values()))["metrics"]

    def cell(value: Any) -> str:
        return (
            measured(Interval.from_json(value), "CAD")
            if isinstance(value, list)
            else f"{value:.3f}"
        )

    rows = [(m, *(cell(model["metrics"][m]) for model in models.values())) for m in first]
    return Table(("Metric", *models), rows)
