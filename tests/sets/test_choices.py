"""Multiple choice: the field's prompt, letters by hand, and tasks that the pipeline can use."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import byte_pairs
from multiple_choice import FORGET, KEEP, written
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mansu import cli, tasks
from mansu.circuits.attribution import attribute
from mansu.errors import MansuError
from mansu.measure.scores import measure
from mansu.sets import choices
from mansu.sets.choices import LETTERS, Question
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject

QUESTION = Question("What is the symbol for gold?", ("Ag", "Au", "Fe", "Pb"), 1, "chemistry", 1)
THINGS = [f"thing{i}" for i in range(12)]
VALUES = [f"value{i}" for i in range(12)]


def asked(n: int, about: str = "things", start: int = 0) -> list[Question]:
    return [
        Question(
            f"What is {THINGS[i % 12]} {about} ?",
            tuple(VALUES[(i + j) % 12] for j in range(4)),
            i % 4,
            about,
            i + 1,
        )
        for i in range(start, start + n)
    ]


@cache
def lettered() -> Subject:
    """A random Llama whose tokenizer has the letters and the words of the questions."""
    prompt = choices.letter_prompt(QUESTION) + " Question"
    splitter = Whitespace()
    text = " ".join([prompt, *LETTERS, *THINGS, *VALUES, "things", "others", "Q", "A"])
    words = dict.fromkeys(["[UNK]", *(w for w, _ in splitter.pre_tokenize_str(text))])
    model = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = splitter  # type: ignore[assignment]
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    llama = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        llama.config._name_or_path = folder
        fast = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")
        return wrap("lettered", llama, fast)


def test_the_prompt_is_the_field_s() -> None:
    shot = Question("Is water wet?", ("No", "Yes", "Both", "Ice"), 1, "chemistry", 2)
    assert choices.letter_prompt(QUESTION, [shot]) == (
        "The following are multiple choice questions (with answers) about chemistry.\n\n"
        "Is water wet?\nA. No\nB. Yes\nC. Both\nD. Ice\nAnswer: B\n\n"
        "What is the symbol for gold?\nA. Ag\nB. Au\nC. Fe\nD. Pb\nAnswer:"
    )


def check_letters_by_hand(questions: list[Question]) -> np.ndarray:
    """Accuracy in letters, which is the argmax of four logits of the plain model."""
    subject = lettered()
    found = choices.scores(subject, questions)
    letters = [subject.encode(f" {x}")[0] for x in LETTERS]
    for i, q in enumerate(questions):
        row = torch.tensor([subject.encode(choices.letter_prompt(q))])
        with torch.no_grad():
            logits = subject.model(row).logits[0, -1].double()
        assert found["accuracy"][i] == (int(logits[letters].argmax()) == q.answer)
        own = float(logits.log_softmax(-1)[letters[q.answer]])
        assert found["log_probability"][i] == pytest.approx(own, abs=1e-4)
    return found["accuracy"]


def test_letter_accuracy_is_the_argmax_of_four_logits_by_hand() -> None:
    found = check_letters_by_hand(asked(11))
    assert 0 < found.sum() < len(found)  # neither all right nor all wrong


def test_a_question_that_stands_twice_with_two_answers_is_scored_twice() -> None:
    questions = asked(4)
    others = [replace(q, answer=(q.answer + i) % 4, row=9) for q in questions for i in (1, 2, 3)]
    found = check_letters_by_hand([*questions, *others])
    assert found.sum() == 4  # of four answers to one question the model gives one


def test_a_question_with_a_word_that_the_model_does_not_know_is_scored() -> None:
    strange = replace(asked(1)[0], question="What is quite strange ?")
    assert lettered().tokenizer.unk_token_id in lettered().encode(strange.question)
    assert len(check_letters_by_hand([*asked(3), strange])) == 4


def test_cloze_accuracy_is_the_most_probable_text_a_character_by_hand() -> None:
    """lm-eval's ``acc_norm`` and ``acc``: with and without the length of the choice alone."""
    tokenizer = byte_pairs()
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
    model = LlamaForCausalLM(config)
    subject = wrap("bytewise", model, tokenizer)
    texts = ("né", " is is ", "日本", "X 4 X")
    questions = [Question(f"Which is {i}?", texts, i % 4, "things", i) for i in range(8)]
    found = choices.scores(subject, questions, form="cloze")
    bytewise = []
    for i, q in enumerate(questions):
        head = tokenizer(f"Question: {q.question}\nAnswer:")["input_ids"]
        own = []
        for choice in q.choices:
            tail = tokenizer(f" {choice.strip()}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
            own.append(sum(float(logits[len(head) + k - 1, t]) for k, t in enumerate(tail)))
        size = np.array([len(c.strip()) for c in q.choices])
        assert found["accuracy"][i] == ((np.array(own) / size).argmax() == q.answer)
        assert found["accuracy_sum"][i] == (np.argmax(own) == q.answer)
        assert found["log_probability"][i] == pytest.approx(own[q.answer], abs=1e-4)
        sizes = np.array([len(f" {c.strip()}".encode()) for c in q.choices])
        bytewise.append((np.array(own) / sizes).argmax() == q.answer)
    assert found["accuracy"].tolist() not in (bytewise, found["accuracy_sum"].tolist())
    empty = replace(questions[0], choices=("", *texts[1:]))  # nothing a character is no rate
    assert choices.scores(subject, [empty], form="cloze")["accuracy"] == [0]


def test_a_model_without_letters_is_told_to_use_the_cloze_form(tiny: Subject) -> None:
    with pytest.raises(MansuError, match="has no one-token letters: use the cloze form"):
        choices.scores(tiny, asked(2))


def test_swapping_moves_the_right_choice_and_keeps_the_words() -> None:
    other = QUESTION.swapped(3)
    assert other.choices == ("Ag", "Pb", "Fe", "Au") and other.answer == 3
    for q in choices._permutations(QUESTION):
        assert q.choices[q.answer] == "Au" and sorted(q.choices) == sorted(QUESTION.choices)


def test_a_letter_task_pairs_each_question_with_itself(tmp_path: Path) -> None:
    subject = lettered()
    made = choices.task("made", asked(10), asked(10, "others"), orders=2)
    assert [len(made.split(s)) for s in tasks.SPLITS] == [20, 8, 2, 0, 10, 0]
    again = tasks.parse(made.to_jsonl(), "made", description=made.description)
    assert again == made  # many lines a prompt survive JSONL
    pairs = tasks.pairs(made, subject)
    assert len(pairs) == 20 and not pairs.notes
    assert torch.equal(pairs.clean.sort(1).values, pairs.corrupt.sort(1).values)
    assert bool(((pairs.clean != pairs.corrupt).sum(1) == 2).all())  # two choices changed places
    assert bool((pairs.answer != pairs.foil).all())
    rows = tasks.examples(made, subject, "forget")
    letters = {subject.encode(f" {x}")[0] for x in LETTERS}
    assert set(rows.vocabulary.tolist()) == letters and bool(rows.candidates.all())
    scores = measure(subject, rows)
    assert len(set(scores.clusters.tolist())) == 10  # two orders of one question are one fact
    assert type(scores).from_json(json.loads(json.dumps(scores.to_json()))).facts == scores.facts
    assert len(set(scores.group("things").clusters.tolist())) == 10
    assert rows.select([0, 3]).facts == (rows.facts[0], rows.facts[3])
    assert attribute(subject, pairs.select(range(4)), steps=2).n_pairs == 4


def test_a_cloze_task_asks_for_the_words() -> None:
    made = choices.task("made", asked(10), asked(10, "others"), form="cloze", shots=1)
    assert [len(made.split(s)) for s in tasks.SPLITS] == [10, 7, 2, 0, 10, 0]
    first = made.split("forget")[0]
    assert first.prompt.endswith("\n\nQuestion: What is thing0 things ?\nAnswer:")
    assert first.answer == " value0" and first.distractors == (" value1", " value2", " value3")
    assert made.split("paraphrase")[0].prompt == "Q: What is thing0 things ?\nA:"
    assert len(tasks.pairs(made, lettered())) == 10


def test_worked_examples_are_no_rows_of_the_task() -> None:
    made = choices.task("made", asked(4), asked(8, "others"), shots=3)
    shown = asked(8, "others")[5:]
    for fact in made.facts:
        assert all(q.question in fact.prompt for q in shown)
        assert not any(fact.fact == f"{q.about}: {q.question}" for q in shown)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "Q?", "choices": ["a", "b"], "answer": 0}, "has 2 choices and the answer 0"),
        ({"question": "Q?", "choices": list("abcd"), "answer": 4}, "has 4 choices and the answer"),
    ],
)
def test_a_row_without_four_choices_is_refused(row: dict, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(MansuError, match=sentence):
        choices.read(str(path))


def test_shipped_facts_make_rows_of_the_schema(tmp_path: Path) -> None:
    keep = choices.read(str(written(tmp_path, "mmlu", KEEP)))
    forget = choices.read(str(written(tmp_path, "wmdp", FORGET)))
    for rows in (forget, keep):
        assert len({q.question for q in rows}) == len(rows) >= 60
        assert all(len(set(q.choices)) == 4 for q in rows)
    right = {q.question: q.choices[q.answer] for q in (*forget, *keep)}
    assert right["What is the symbol for hydrogen?"] == "H"
    assert right["What is the capital of France?"] == "Paris"
    assert {q.answer for q in forget} == {0, 1, 2, 3}


def test_too_few_rows_and_unknown_forms_are_refused() -> None:
    with pytest.raises(MansuError, match="too few for a task with 5 worked examples"):
        choices.task("made", asked(4), asked(5), shots=5)
    with pytest.raises(MansuError, match="Unknown form 'essay'"):
        choices.task("made", asked(4), asked(5), form="essay")


def test_the_command_writes_an_ordinary_task_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, questions in (("wmdp-bio", asked(6)), ("mmlu", asked(10, "others"))):
        lines = [
            json.dumps({"question": q.question, "choices": q.choices, "answer": q.answer})
            for q in questions
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "hazard.jsonl"
    sources = ["--wmdp", str(tmp_path / "wmdp-bio.jsonl"), "--mmlu", str(tmp_path / "mmlu.jsonl")]
    assert cli.main(["task", *sources, "-o", str(out), "--rows", "5"]) == 0
    assert "10 forget, 4 retain, 1 holdout, 5 paraphrase" in capsys.readouterr().out
    made = tasks.load(str(out))
    assert "about biology.\n\n" in made.split("forget")[0].prompt
    assert cli.main(["task", *sources, "-o", str(tmp_path / "x.txt")]) == 2
    assert "is no .jsonl file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "about"),
    [
        ("wmdp-bio.jsonl", "biology"),
        ("my_Cyber_set.jsonl", "cybersecurity"),
        ("chemistry.jsonl", "chemistry"),
        ("wmdp-bio/test-00000-of-00001.jsonl", "biology"),  # as the hub lays it out
        ("fabio/rows.jsonl", "general knowledge"),
        ("bio/rows.jsonl", "general knowledge"),
        ("symbiosis.jsonl", "general knowledge"),
    ],
)
def test_a_set_is_about_what_its_name_says(place: str, about: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"question": "Q?", "choices": list("abcd"), "answer": 0}))
    assert [q.about for q in choices.read(str(path))] == [about]
