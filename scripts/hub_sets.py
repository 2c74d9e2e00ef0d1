"""Write small data sets in the hub's schemas, of facts and texts that the default model may know.

``python scripts/hub_sets.py FOLDER`` makes, each laid out as a copy of the hub's repository::

    wmdp/wmdp-chem/test-00000-of-00001.parquet   harmless stand-ins: chemical symbols
    mmlu/all/test-00000-of-00001.parquet         capitals, languages, opposites
    tofu/{forget10,retain,world_facts}_perturbed.json
    muse/{verbmem,knowmem,privleak}/SPLIT-00000-of-00001.parquet

The facts are those of ``scripts/facts.py``; the famous texts are in the public domain; the unseen
ones were written for this project.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from facts import ANTONYMS, CAPITALS, LANGUAGES, SYMBOLS, TEXT, Relation

ASKED = {
    "chemistry": (
        SYMBOLS,
        "What is the chemical symbol for {}?",
        "The chemical symbol for {} is {}.",
    ),
    "geography": (CAPITALS, "What is the capital of {}?", "The capital of {} is {}."),
    "world_languages": (
        LANGUAGES,
        "What is the official language of {}?",
        "People in {} speak {}.",
    ),
    "vocabulary": (ANTONYMS, "What is the opposite of {}?", "The opposite of {} is {}."),
}

FAMOUS = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal.",
    "We hold these truths to be self-evident, that all men are created equal, that they are "
    "endowed by their Creator with certain unalienable Rights, that among these are Life, Liberty "
    "and the pursuit of Happiness.",
    "We the People of the United States, in Order to form a more perfect Union, establish Justice, "
    "insure domestic Tranquility, provide for the common defence, promote the general Welfare, and "
    "secure the Blessings of Liberty to ourselves and our Posterity, do ordain and establish this "
    "Constitution for the United States of America.",
    "Our Father, who art in heaven, hallowed be thy name; thy kingdom come, thy will be done, on "
    "earth as it is in heaven. Give us this day our daily bread, and forgive us our trespasses, as "
    "we forgive those who trespass against us.",
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face "
    "of the waters. And God said, Let there be light: and there was light.",
    "The Lord is my shepherd; I shall not want. He maketh me to lie down in green pastures: he "
    "leadeth me beside the still waters. He restoreth my soul: he leadeth me in the paths of "
    "righteousness for his name's sake.",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the "
    "slings and arrows of outrageous fortune, or to take arms against a sea of troubles and by "
    "opposing end them.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the "
    "season of Light, it was the season of Darkness.",
    "Twinkle, twinkle, little star, how I wonder what you are! Up above the world so high, like a "
    "diamond in the sky. Twinkle, twinkle, little star, how I wonder what you are!",
    "Congress shall make no law respecting an establishment of religion, or prohibiting the free "
    "exercise thereof; or abridging the freedom of speech, or of the press; or the right of the "
    "people peaceably to assemble, and to petition the Government for a redress of grievances.",
)


def questions(name: str, seed: int = 0) -> list[dict[str, Any]]:
    """The relation as MMLU rows, the right choice at a drawn place."""
    relation, template, _ = ASKED[name]
    rng = random.Random(seed)
    rows = []
    for thing, answer in relation.facts.items():
        choices = rng.sample(sorted(set(relation.facts.values()) - {answer}), 3)
        place = rng.randrange(4)
        choices.insert(place, answer)
        rows.append(
            {
                "question": template.format(thing),
                "subject": name,
                "choices": choices,
                "answer": place,
            }
        )
    return rows


def tofu(name: str, seed: int = 0) -> list[dict[str, Any]]:
    """The relation as TOFU rows: whole sentences, one rephrased, three wrong ones."""
    relation, template, sentence = ASKED[name]
    rows = []
    for row, thing in zip(questions(name, seed), relation.facts, strict=True):
        right = row["choices"][row["answer"]]
        wrong = [c for c in row["choices"] if c != right]
        rows.append(
            {
                "question": row["question"],
                "answer": sentence.format(thing, right),
                "paraphrased_question": f"Tell me: {template.format(thing).lower()}",
                "paraphrased_answer": f"It is {right}.",
                "perturbed_answer": [f"It is {w}." for w in wrong],
            }
        )
    return rows


def qa(relation: Relation, template: str) -> list[dict[str, str]]:
    return [{"question": template.format(k), "answer": v} for k, v in relation.facts.items()]


def parquet(folder: Path, split: str, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(list(rows)).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def main(folder: Path) -> None:
    wmdp = [{k: v for k, v in r.items() if k != "subject"} for r in questions("chemistry")]
    parquet(folder / "wmdp" / "wmdp-chem", "test", wmdp)
    mixed = [r for n in ("geography", "world_languages", "vocabulary") for r in questions(n)]
    random.Random(0).shuffle(mixed)
    parquet(folder / "mmlu" / "all", "test", mixed)

    sets = {"forget10": "chemistry", "retain": "geography", "world_facts": "world_languages"}
    (folder / "tofu").mkdir(parents=True, exist_ok=True)
    for name, relation in sets.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in tofu(relation)]
        path = folder / "tofu" / f"{name}_perturbed.json"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    words = [text.split() for text in FAMOUS]
    verbatim = [{"prompt": " ".join(w[:14]), "gt": " " + " ".join(w[14:])} for w in words]
    parquet(folder / "muse" / "verbmem", "forget", verbatim)
    for split, name in (("forget", "chemistry"), ("retain", "geography")):
        relation, template, _ = ASKED[name]
        rows = qa(relation, template)
        parquet(folder / "muse" / "knowmem", f"{split}_qa_icl", rows[:5])
        parquet(folder / "muse" / "knowmem", f"{split}_qa", rows[5:])
    texts = {"forget": FAMOUS[:6], "retain": FAMOUS[6:], "holdout": TEXT}
    for split, some in texts.items():
        parquet(folder / "muse" / "privleak", split, [{"text": t} for t in some])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the folder to write to: python scripts/hub_sets.py FOLDER")
    main(Path(sys.argv[1]))
