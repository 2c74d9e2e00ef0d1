"""Build the shipped tasks: keep the facts that the default model knows, and write them as JSONL.

A fact is kept when the model picks its answer over three distractors (drawn with seed 0) under
every training template. Run ``python scripts/build_tasks.py``; the result is committed.
"""

from __future__ import annotations

import json

import torch
from facts import ANTONYMS, CAPITALS, LANGUAGES, SYMBOLS, TEXT, Relation

from mansu import subjects, tasks
from mansu.measure import scores

PROVENANCE = (
    "Facts from common reference knowledge, written for this project (scripts/facts.py), kept "
    "where SmolLM2-135M-Instruct answers right under every training template "
    "(scripts/build_tasks.py)."
)


def rows(relation: Relation, split: str, group: str, templates: tuple[str, ...]) -> list[dict]:
    return [
        {"prompt": t.format(s), "answer": f" {a}", "split": split, "group": group}
        for t in templates
        for s, a in relation.facts.items()
    ]


def known(relation: Relation, subject: subjects.Subject) -> Relation:
    """The facts that the model answers right under every template."""
    wrong = set()
    for template in relation.templates:
        lines = rows(relation, "forget", "x", (template,)) + rows(
            relation, "retain", "x", (template,)
        )
        task = tasks.parse("\n".join(map(json.dumps, lines)), "probe")
        examples = tasks.examples(task, subject, "forget")
        correct = scores.measure(subject, examples).correct
        names = list(relation.facts)
        usable = {row: bool(ok) for row, ok in zip(examples.rows, correct, strict=True)}
        wrong |= {name for i, name in enumerate(names, start=1) if not usable.get(i, False)}
    facts = {s: a for s, a in relation.facts.items() if s not in wrong}
    return relation._replace(facts=dict(list(facts.items())[:40]))


def write(
    name: str, title: str, description: str, forget: tuple[str, Relation], keep: dict
) -> None:
    group, relation = forget
    lines = rows(relation, "forget", group, relation.templates)
    lines += rows(relation, "paraphrase", group, relation.paraphrases)
    for kept_group, kept in keep.items():
        lines += rows(kept, "retain", kept_group, kept.templates[:1])
    lines += rows(known_antonyms, "holdout", "antonyms", ANTONYMS.templates)
    lines += [{"text": t, "split": "text"} for t in TEXT]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    tasks.parse(text, name)
    (tasks.FOLDER / f"{name}.jsonl").write_text(text)
    about = {"title": title, "description": description, "provenance": PROVENANCE}
    (tasks.FOLDER / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(name, {s: sum(line["split"] == s for line in lines) for s in tasks.SPLITS})


if __name__ == "__main__":
    torch.manual_seed(0)
    model = subjects.load()
    symbols, capitals, languages = (known(r, model) for r in (SYMBOLS, CAPITALS, LANGUAGES))
    known_antonyms = known(ANTONYMS, model)
    tasks.FOLDER.mkdir(parents=True, exist_ok=True)
    write(
        "chemical-symbols",
        "Chemical symbols",
        "Forget the chemical symbols of 40 elements; keep capitals and languages.",
        ("symbols", symbols),
        {"capitals": capitals, "languages": languages},
    )
    write(
        "capitals",
        "Capital cities",
        "Forget the capitals of countries; keep chemical symbols and languages.",
        ("capitals", capitals),
        {"symbols": symbols, "languages": languages},
    )
    write(
        "languages",
        "Official languages",
        "Forget the languages of countries; keep chemical symbols and capitals.",
        ("languages", languages),
        {"symbols": symbols, "capitals": capitals},
    )
