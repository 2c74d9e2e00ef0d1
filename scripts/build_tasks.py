"""Build the shipped tasks, and measure what the subjects know of them; the results are committed.

    python scripts/build_tasks.py [--subject NAME] [--task TASK …]          build, then measure
    python scripts/build_tasks.py --measure [--subject NAME] [--task TASK …]     measure only

Facts are kept where the subject knows them; what that means is said with each set of tasks. The
base (4-way accuracy by split and group, in full precision and in NF4) is written into the task's
``.json`` under the subject's name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from facts import (
    ANTONYMS,
    CAPITALS,
    COMPARATIVES,
    CONTINENTS,
    CURRENCIES,
    FOREIGN_NATIONALITIES,
    GEMMA_CAPITALS,
    GEMMA_LANGUAGES,
    GEMMA_SYMBOLS,
    KINDS,
    LANGUAGES,
    NATIONALITIES,
    OPPOSITES,
    PAST_TENSES,
    PLURALS,
    QUALITIES,
    STATES,
    SYMBOLS,
    TEXT,
    USES,
    Relation,
)

import mansu
from mansu import statistics, subjects, tasks
from mansu.files import replacing, write_json
from mansu.measure import scores
from mansu.quant.swap import Dequantized, quantized

FORGOTTEN, KEPT, BESIDE = 72, 100, 60  # facts of a kind, at most
DRAWS = 3  # of distractors
SOURCE = "Facts from common reference knowledge, written for this project (scripts/facts.py), kept "

Knows = Callable[[Relation, subjects.Subject], set[str]]
"""The names whose fact the subject knows."""


def rows(relation: Relation, split: str, group: str, templates: tuple[str, ...]) -> list[dict]:
    found = []
    for template in templates:
        for name, answer in relation.facts.items():
            row: dict[str, Any] = {"prompt": template.format(name), "answer": f" {answer}"}
            row |= {"split": split, "group": group}
            if name in relation.wrong:
                row["distractors"] = [f" {word}" for word in relation.wrong[name]]
            if split == "neighbour":  # few answers, so the fact is told by its subject
                row["fact"] = name
            found.append(row)
    return found


def _rows_of(
    relation: Relation, split: str, group: str, names: Mapping[str, Collection[str]]
) -> list[dict]:
    """Rows of each form with the facts that are asked for in it."""
    found = []
    for form, some in names.items():
        facts = {name: answer for name, answer in relation.facts.items() if name in some}
        found += rows(relation._replace(facts=facts), split, group, (form,))
    return found


def asked(
    relation: Relation, subject: subjects.Subject, templates: tuple[str, ...], seed: int = 0
) -> Iterator[tuple[list[str], tasks.Examples]]:
    """For each template the names whose fact can be asked for, and the examples that ask."""
    names = list(relation.facts)
    for template in templates:
        lines = rows(relation, "forget", "x", (template,)) + rows(
            relation, "retain", "x", (template,)
        )
        task = tasks.parse("\n".join(map(json.dumps, lines)), "probe")
        examples = tasks.examples(task, subject, "forget", seed=seed)
        yield [names[row - 1] for row in examples.rows], examples


def right_in_choices(relation: Relation, subject: subjects.Subject) -> set[str]:
    """The subject picks the answer over three distractors under every template, in each of
    ``DRAWS`` draws of them."""
    kept = set(relation.facts)
    for seed in range(DRAWS):
        for names, examples in asked(relation, subject, relation.templates, seed):
            correct = scores.measure(subject, examples).correct
            kept &= {name for name, right in zip(names, correct, strict=True) if right == 1}
    return kept


def says_it(relation: Relation, subject: subjects.Subject) -> set[str]:
    """The answer is the most probable next token under every template, and under every rephrasing
    more probable than any other answer of its kind."""
    kept = set(relation.facts)
    for names, examples in asked(relation, subject, relation.templates):
        first = scores.measure(subject, examples).top1
        kept &= {name for name, right in zip(names, first, strict=True) if right == 1}
    for names, examples in asked(relation, subject, relation.paraphrases):
        best = scores.measure(subject, _against_all(examples)).correct
        kept &= {name for name, right in zip(names, best, strict=True) if right == 1}
    return kept


def _against_all(examples: tasks.Examples) -> tasks.Examples:
    """The same examples with every other answer as a distractor."""
    others = [[v for v in examples.vocabulary.tolist() if v != a] for a in examples.answer.tolist()]
    return replace(examples, distractors=torch.tensor(others))


@dataclass(frozen=True)
class Draft:
    """A task to build: what it forgets, and which facts lie next to that (``beside``, by group).

    All other relations of its set are kept. The neighbours are those of the forgotten facts'
    subjects that the subject picks in multiple choice, in full precision and in NF4; no method is
    trained on them.
    """

    name: str
    title: str
    description: str
    forget: str
    beside: Mapping[str, Relation]


@dataclass(frozen=True)
class Tasks:
    """The tasks that are built for one subject from one set of relations.

    Attributes:
        relations: by group, those that are forgotten by a task and kept by the others. kept: by
            group, those that every task keeps. held_out: the group that is neither forgotten nor
            trained on.
        knows: which facts are kept. criterion: the same in words.
    """

    subject: str
    drafts: tuple[Draft, ...]
    relations: Mapping[str, Relation]
    kept: Mapping[str, Relation]
    held_out: tuple[str, Relation]
    knows: Knows
    criterion: str


OF_ELEMENTS = {"kinds": KINDS, "states": STATES, "uses": USES}
OF_PLACES = {
    "continents": CONTINENTS,
    "nationalities": NATIONALITIES,
    "currencies": CURRENCIES,
}
OF_SPEAKERS = OF_PLACES | {"nationalities": FOREIGN_NATIONALITIES}
OF_WORDS = {"comparatives": COMPARATIVES, "qualities": QUALITIES, "plurals": PLURALS}
OF_ELEMENTS_GEMMA = {"kinds": KINDS, "uses": USES}  # of the states its NF4 knows no more

SMOLLM2_KNOWS = (
    "where SmolLM2-135M-Instruct picks the answer under every training template; neighbours where "
    "it does in full precision and in NF4 (scripts/build_tasks.py)."
)

BUILT = (
    Tasks(
        subject=subjects.DEFAULT,
        drafts=(
            Draft(
                "chemical-symbols",
                "Chemical symbols",
                "Forget the chemical symbols of the elements; keep capitals, languages and past "
                "tenses, and what else is known of the elements.",
                "symbols",
                OF_ELEMENTS,
            ),
            Draft(
                "capitals",
                "Capital cities",
                "Forget the capitals of countries and states; keep chemical symbols, languages and "
                "past tenses, and what else is known of the countries.",
                "capitals",
                OF_PLACES,
            ),
            Draft(
                "languages",
                "Official languages",
                "Forget the languages of countries and regions; keep chemical symbols, capitals "
                "and past tenses, and what else is known of the countries.",
                "languages",
                OF_SPEAKERS,
            ),
        ),
        relations={"symbols": SYMBOLS, "capitals": CAPITALS, "languages": LANGUAGES},
        kept={"past tenses": PAST_TENSES},
        held_out=("antonyms", ANTONYMS),
        knows=right_in_choices,
        criterion=SMOLLM2_KNOWS,
    ),
    Tasks(
        subject=subjects.DEFAULT,
        drafts=(
            Draft(
                "antonyms",
                "Opposites of words",
                "Forget the opposites of words; keep chemical symbols, capitals and languages, and "
                "what else is known of the words.",
                "antonyms",
                OF_WORDS,
            ),
        ),
        relations={"antonyms": OPPOSITES},
        kept={"symbols": SYMBOLS, "capitals": CAPITALS, "languages": LANGUAGES},
        held_out=("past tenses", PAST_TENSES),
        knows=right_in_choices,
        criterion=SMOLLM2_KNOWS,
    ),
    Tasks(
        subject=subjects.GEMMA,
        drafts=(
            Draft(
                "gemma-symbols",
                "Chemical symbols (Gemma 3)",
                "Forget the chemical symbols of the elements; keep capitals, languages and past "
                "tenses, and what else is known of the elements.",
                "symbols",
                OF_ELEMENTS_GEMMA,
            ),
            Draft(
                "gemma-capitals",
                "Capital cities (Gemma 3)",
                "Forget the capitals of countries; keep chemical symbols, languages and past "
                "tenses, and what else is known of the countries.",
                "capitals",
                OF_PLACES,
            ),
            Draft(
                "gemma-languages",
                "Official languages (Gemma 3)",
                "Forget the languages of countries and regions; keep chemical symbols, capitals "
                "and past tenses, and what else is known of the countries.",
                "languages",
                OF_SPEAKERS,
            ),
        ),
        relations={
            "symbols": GEMMA_SYMBOLS,
            "capitals": GEMMA_CAPITALS,
            "languages": GEMMA_LANGUAGES,
        },
        kept={"past tenses": PAST_TENSES},
        held_out=("antonyms", ANTONYMS),
        knows=says_it,
        criterion="where the answer is the most probable next token of Gemma 3 270M (google/"
        "gemma-3-270m, full precision) under every training template and more probable than any "
        "other answer of its kind under every rephrasing; neighbours where it is right in multiple "
        "choice, in full precision and in NF4 (scripts/build_tasks.py).",
    ),
)


def known(relation: Relation, subject: subjects.Subject, knows: Knows) -> Relation:
    """The relation with the facts that the subject knows."""
    kept = knows(relation, subject)
    facts = {name: answer for name, answer in relation.facts.items() if name in kept}
    return relation._replace(facts=facts)


def first(relation: Relation, most: int) -> Relation:
    """The relation with its first facts."""
    return relation._replace(facts=dict(list(relation.facts.items())[:most]))


def in_forms(relation: Relation, group: str, subject: subjects.Subject, knows: Knows) -> list[dict]:
    """Forget rows: each fact in as many forms as there are templates, of these and of ``more``.

    The forms take turns from fact to fact. A method that sees many, each with some of the facts,
    has to find what they share.
    """
    forms = [*relation.templates, *relation.more]
    known_so = {
        form: knows(relation._replace(templates=(form,), paraphrases=()), subject)
        for form in relation.more
    }
    chosen: dict[str, set[str]] = {form: set() for form in forms}
    for i, name in enumerate(relation.facts):
        in_turn = [forms[(i + k) % len(forms)] for k in range(len(forms))]
        so = [form for form in in_turn if name in known_so.get(form, relation.facts)]
        for form in so[: len(relation.templates)]:
            chosen[form].add(name)
    return _rows_of(relation, "forget", group, chosen)


def beside(
    draft: Draft, forget: Relation, subject: subjects.Subject, nf4: Dequantized
) -> Iterator[dict]:
    """Neighbour rows: what the subject knows besides of the subjects of the forgotten facts.

    A row counts where the subject is right in full precision and in NF4. What it is right about in
    one of the two alone it hardly knows: rounding changes such an answer, and so does any edit.
    """
    for group, relation in draft.beside.items():
        facts = {name: a for name, a in relation.facts.items() if name in forget.facts}
        same = first(relation._replace(facts=facts), BESIDE)
        known_so = {}
        for form in relation.templates:
            asked_so = same._replace(templates=(form,))
            known_so[form] = right_in_choices(asked_so, subject)
            with quantized(subject, nf4):
                known_so[form] &= right_in_choices(asked_so, subject)
        yield from _rows_of(same, "neighbour", group, known_so)


def build(plan: Tasks, subject: subjects.Subject, wanted: set[str], folder: Path) -> None:
    """Write the plan's tasks (JSONL and what is said of them), those that are wanted."""
    relations = {g: known(r, subject, plan.knows) for g, r in plan.relations.items()}
    kept = {g: known(r, subject, plan.knows) for g, r in plan.kept.items()}
    nf4 = Dequantized.of(subject)
    held_out, relation = plan.held_out
    apart = first(known(relation, subject, plan.knows), KEPT)
    for draft in plan.drafts:
        if draft.name not in wanted:
            continue
        forget = first(relations[draft.forget], FORGOTTEN)
        lines = in_forms(forget, draft.forget, subject, plan.knows)
        lines += rows(forget, "paraphrase", draft.forget, forget.paraphrases)
        for group, relation in (relations | kept).items():
            if group != draft.forget:
                lines += rows(first(relation, KEPT), "retain", group, relation.templates[:1])
        lines += beside(draft, forget, subject, nf4)
        lines += rows(apart, "holdout", held_out, apart.templates)
        lines += [{"text": t, "split": "text"} for t in TEXT]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
        tasks.parse(text, draft.name)
        about = {"title": draft.title, "description": draft.description}
        about["provenance"] = SOURCE + plan.criterion
        with replacing(folder / f"{draft.name}.jsonl") as temporary:
            temporary.write_text(text, encoding="utf-8")
        write_json(folder / f"{draft.name}.json", about)
        print(draft.name, {s: sum(line["split"] == s for line in lines) for s in tasks.SPLITS})


def measure_base(name: str, subject: subjects.Subject, folder: Path) -> None:
    """Measure a task on the subject, full precision and NF4, into the task's ``.json``."""
    text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    task = tasks.parse(text, name)
    full = scores.measure_task(subject, task)
    with quantized(subject):
        nf4 = scores.measure_task(subject, task)
    about.setdefault("base", {})[subject.name] = {
        "measured": date.today().isoformat(),
        "mansu": mansu.__version__,
        "task": task.digest,
        "full precision": _by_set(full),
        "NF4": _by_set(nf4),
    }
    write_json(folder / f"{name}.json", about)
    print(name, "on", subject.name)
    for label, found in _by_set(full).items():
        print(f"  {label}: {found} NF4 {_by_set(nf4)[label]}")


def _by_set(measurement: scores.Measurement) -> dict[str, dict[str, Any]]:
    """Rows, 4-way accuracy with its 95 % interval by fact, and share said (top-1), by set."""
    found = {}
    for split, measured in measurement.splits.items():
        for group in dict.fromkeys(measured.groups):
            part = measured.group(group)
            interval = statistics.bootstrap(part.correct, clusters=part.clusters)
            found[f"{split}: {group}"] = {
                "rows": len(part.correct),
                "accuracy": [round(x, 4) for x in interval.to_json()],
                "most probable": round(float(part.top1.mean()), 4),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", default=subjects.DEFAULT, help="(%(default)s)")
    parser.add_argument("--task", action="append", help="only these tasks")
    parser.add_argument("--measure", action="store_true", help="build nothing, measure only")
    parser.add_argument(
        "--to", type=Path, default=tasks.FOLDER, help="the folder of the tasks (%(default)s)"
    )
    options = parser.parse_args()
    plans = [plan for plan in BUILT if plan.subject == options.subject]
    if not plans and not (options.measure and options.task):
        parser.error(f"no task is built for {options.subject}: give --measure and --task.")
    drafts = [draft.name for plan in plans for draft in plan.drafts]
    wanted = options.task or drafts
    if not options.measure and not set(wanted) <= set(drafts):
        parser.error(f"built for {options.subject} are {', '.join(drafts)}.")
    torch.manual_seed(0)
    subject = subjects.load(options.subject)
    for plan in plans if not options.measure else ():
        if any(draft.name in wanted for draft in plan.drafts):
            build(plan, subject, set(wanted), options.to)
    for name in wanted:
        measure_base(name, subject, options.to)


if __name__ == "__main__":
    main()
