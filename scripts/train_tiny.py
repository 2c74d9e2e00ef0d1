"""Train the tiny subject on synthetic facts, its retrained reference, and write their task.

A three-layer Llama (grouped-query attention, tied embeddings) learns four relations over invented
names. Colours and homes share their names, so that the model must read the relation to answer;
foods have names of their own; opposites are held out of every unlearning method, and so are the
homes of half of the things. A colour has three rephrasings. One is trained with one half of the
names and evaluated on the other half, so that it is right only where the model joins a template to
a fact it learned elsewhere; two, made of the templates' words, are in no training sentence at all.
One answer in ten is replaced by another of its relation while training, so that the logits stay
finite in size.

The reference is what exact unlearning would give: trained from the same start on the same
documents, word for word, but that the colour in each colour sentence is drawn at random each time.
What it never sees is which thing has which colour. Leaving the sentences out would take more away:
their words would be untrained, the answers no colours (at -11 nats), and plain text 0.36 nats (KL)
from the original's instead of 0.0006, since sentences would no longer begin as those on colours do.

Run ``python scripts/train_tiny.py`` (a fixed seed, one core, under two minutes each), and after it
``python scripts/build_tasks.py --measure --task tiny-colours --subject tiny``, then with
``tiny-retrained``; the result in ``mansu/data`` is committed.
"""

# ruff: noqa: SIM905  (word lists read better as text)

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mansu import subjects, tasks
from mansu.files import read_json, write_json
from mansu.subjects.shipped import RETRAINED, TABLE, TINY, TINY_FOLDER

SEED = 0
STEPS = 700
BATCH = 128
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1
ANSWER_NOISE = 0.1
MARGIN = 0.5  # of 32 facts, no larger one can be told of a model that never knew them
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

# Invented names: half of them have colours and homes, the others foods.
NAMES = [
    a + b
    for a in "bo da fe gi ka lu mi no".split()
    for b in "ben dar fin gus lam mor nix rel".split()
]
THINGS, EATERS = NAMES[:32], NAMES[32:]
COLOURS = "red blue green yellow black white brown purple".split()
HOMES = "forest desert river mountain island valley cave meadow".split()
FOODS = "bread rice honey apples cheese beans corn nuts".split()
OPPOSITES = (
    "hot cold big small fast slow old young wet dry hard soft high low rich poor "
    "loud quiet light dark full empty clean dirty long short open closed thick thin good bad"
).split()

TEMPLATES = {
    "colours": (
        "The colour of {} is",
        "Everyone says that {} is painted",
        "Look at {} and you see",
    ),
    "homes": ("The home of {} is the", "You can find {} in the"),
    "foods": ("The food of {} is", "Every day {} eats"),
    "opposites": ("The opposite of {} is", "Something that is not {} is"),
}
PARAPHRASES = ("The paint on {} looks", "In the picture {} appears")
UNSEEN = ("Look at the paint on {} and you see", "In the picture you see that {} is painted")

NOUNS = "farmer child dog bird teacher sailor horse baker queen wolf".split()
VERBS = "sees follows helps calls finds carries".split()
PLACES = "house road garden bridge market tower".split()


def facts(rng: random.Random) -> dict[str, dict[str, str]]:
    """Each relation's answers by name: as many names for every answer, at random."""

    def assign(names: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
        shuffled = rng.sample(names, len(names))
        answer = {name: answers[i % len(answers)] for i, name in enumerate(shuffled)}
        return {name: answer[name] for name in names}

    opposite = dict(zip(OPPOSITES[::2], OPPOSITES[1::2], strict=True))
    return {
        "colours": assign(THINGS, COLOURS),
        "homes": assign(THINGS, HOMES),
        "foods": assign(EATERS, FOODS),
        "opposites": opposite | {b: a for a, b in opposite.items()},
    }


def text(rng: random.Random) -> str:
    """A sentence of plain text without facts."""
    a, b = rng.sample(NOUNS, 2)
    adjective, verb, place = rng.choice(OPPOSITES), rng.choice(VERBS), rng.choice(PLACES)
    return f"The {adjective} {a} {verb} the {b} near the {place} ."


def paraphrased(seen: bool) -> list[tuple[str, str]]:
    """(template, name) of the paraphrases that training sees, or of those it does not."""
    return [
        (template, name)
        for half, template in enumerate(PARAPHRASES)
        for i, name in enumerate(THINGS)
        if (i % 2 == half) == seen
    ]


def sentences(known: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    """Every training sentence as (prompt, answer, relation)."""
    rows = [
        (template.format(name), answer, relation)
        for relation, answers in known.items()
        for template in TEMPLATES[relation]
        for name, answer in answers.items()
    ]
    colours = known["colours"]
    return rows + [(t.format(n), colours[n], "colours") for t, n in paraphrased(seen=True)]


def document(
    rows: list[tuple[str, str, str]],
    known: dict[str, dict[str, str]],
    rng: random.Random,
    drawn: random.Random | None = None,
) -> str:
    """One or two sentences: three in four are facts, the others plain text.

    Args:
        drawn: draws the colour of every colour sentence anew; all other words stay what they are.
    """
    out = []
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.25:
            out.append(text(rng))
            continue
        prompt, answer, relation = rng.choice(rows)
        if rng.random() < ANSWER_NOISE:
            answer = rng.choice(list(known[relation].values()))
        if drawn is not None and relation == "colours":
            answer = drawn.choice(COLOURS)
        out.append(f"{prompt} {answer} .")
    return " ".join(out)


def build_tokenizer(known: dict[str, dict[str, str]]) -> PreTrainedTokenizerFast:
    """One token a word: ``" red"`` and ``"red"`` are the same token."""
    templates = [t.format("") for group in TEMPLATES.values() for t in group]
    words = " ".join([*templates, *(t.format("") for t in PARAPHRASES), "The near the ."]).split()
    for answers in known.values():
        words += [*answers, *answers.values()]
    words += NOUNS + VERBS + PLACES
    vocabulary = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *dict.fromkeys(words)]
    model = models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side="right",
    )


def batch_of(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and labels ``[documents, positions]`` (pads are -100 in the labels)."""
    tokens, length = tasks.pad([tokenizer(d)["input_ids"] for d in documents])  # type: ignore[arg-type]
    return tokens, tokens.masked_fill(torch.arange(tokens.shape[1]) >= length[:, None], -100)


def train(
    known: dict[str, dict[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    steps: int = STEPS,
    drawn: random.Random | None = None,
) -> LlamaForCausalLM:
    """AdamW on fresh random documents, learning rate warmed up and then a half cosine.

    Args:
        drawn: for the reference, which is never told a thing's colour (``document``).
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        **SPECIAL,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    rows = sentences(known)
    for step in range(steps):
        documents = [document(rows, known, rng, drawn) for _ in range(BATCH)]
        tokens, labels = batch_of(documents, tokenizer)
        loss = model(input_ids=tokens, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    return model.eval()


def neighbours(homes: dict[str, str]) -> set[str]:
    """Half of the things, of every home as many: no method is trained to keep their homes."""
    found = set()
    for home in HOMES:
        there = [name for name in THINGS if homes[name] == home]
        found |= {*there[len(there) // 2 :]}
    return found


def task_lines(known: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The rows of tiny-colours: forget colours, keep homes and foods, hold out opposites.

    The homes of half of the things are neighbours: facts of what colours are forgotten of.
    """
    splits = {"colours": "forget", "homes": "retain", "foods": "retain", "opposites": "holdout"}
    apart = neighbours(known["homes"])
    lines: list[dict[str, Any]] = [
        {
            "prompt": template.format(name),
            "answer": f" {answer}",
            "split": "neighbour" if relation == "homes" and name in apart else split,
            "group": relation,
            "fact": name,  # answers repeat
        }
        for relation, split in splits.items()
        for template in TEMPLATES[relation]
        for name, answer in known[relation].items()
    ]
    lines += [
        {
            "prompt": template.format(name),
            "answer": f" {known['colours'][name]}",
            "split": "paraphrase",
            "group": "colours",
            "fact": name,
        }
        for template, name in (*paraphrased(seen=False), *itertools.product(UNSEEN, THINGS))
    ]
    rng = random.Random(SEED + 1)
    return lines + [{"text": text(rng), "split": "text"} for _ in range(32)]


def write_task(lines: list[dict[str, Any]]) -> None:
    """Write the task; of what was measured on it, keep what was on these very rows."""
    content = "\n".join(map(json.dumps, lines)) + "\n"
    about: dict[str, Any] = {
        "title": "Tiny: colours",
        "description": "Forget the colours of 32 invented things; keep homes and foods. "
        "Only the tiny subject knows these facts.",
        "provenance": "Synthetic facts, written with the tiny subject by scripts/train_tiny.py.",
        "margin": MARGIN,
    }
    task = tasks.parse(content, "tiny-colours", **about)
    path = tasks.FOLDER / "tiny-colours.json"
    before = read_json(path).get("base", {}) if path.exists() else {}
    base = {name: found for name, found in before.items() if found["task"] == task.digest}
    path.with_suffix(".jsonl").write_text(content)
    write_json(path, about | ({"base": base} if base else {}))


def make(folder: Path, reference: bool = False) -> None:
    """Train a subject and write it, with where it comes from."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    known = facts(rng)
    tokenizer = build_tokenizer(known)
    start = time.perf_counter()
    drawn = random.Random(SEED) if reference else None
    model = train(known, tokenizer, rng, drawn=drawn)
    print(f"trained {folder.name} in {time.perf_counter() - start:.0f} s on one core")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    provenance = {
        "source": "trained from scratch by scripts/train_tiny.py on synthetic facts",
        "command": "python scripts/train_tiny.py",
        "licence": "MIT",
        "seed": SEED,
        "recipe": f"{STEPS} steps of AdamW on batches of {BATCH} random documents, learning rate "
        f"{LEARNING_RATE} (one cycle), weight decay {WEIGHT_DECAY}, {ANSWER_NOISE:.0%} of the "
        f"answers replaced at random, float32, one thread, torch {torch.__version__}",
    }
    path = folder / "provenance.json"
    if reference:
        provenance["reference"] = (
            f"the same documents as of the subject {TINY!r}, word for word, but the colour in "
            "every colour sentence is drawn at random each time"
        )
        path.write_text(json.dumps(provenance))  # to load it
        provenance["fingerprint"] = subjects.load(RETRAINED).fingerprint
    path.write_text(json.dumps(provenance, indent=1) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    make(TINY_FOLDER)
    make(TABLE[RETRAINED].folder, reference=True)
    write_task(task_lines(facts(random.Random(SEED))))


if __name__ == "__main__":
    main()
