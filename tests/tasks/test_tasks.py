from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import limited
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mansu import tasks
from mansu.errors import BadInputError, MansuError, StorageError
from mansu.evidence.cad import Signals
from mansu.evidence.relearning import halves
from mansu.measure.scores import measure
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import entities, forms

COLOURS = (" red", " blue", " green", " yellow", " black")
NAMES = ("boben", "bodar", "bofin", "bogus", "bolam")


def fact(prompt: str, answer: str, split: str = "forget", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer, "split": split, **more}


def build(rows: Sequence[dict[str, Any]], retain: bool = True) -> Task:
    """A task of these rows, with a retain set where none is under test."""
    lines = list(rows)
    if retain:
        lines += [
            fact(f"The food of {n} is", c, "retain") for n, c in zip(NAMES, COLOURS, strict=True)
        ]
    return tasks.parse("\n".join(map(json.dumps, lines)), "mine")


def colours(template: str = "The colour of {} is") -> list[dict[str, Any]]:
    return [fact(template.format(n), c) for n, c in zip(NAMES, COLOURS, strict=True)]


# ------------------------------------------------------------------------------------ parsing


@pytest.mark.parametrize("name", tasks.shipped())
def test_a_shipped_fact_has_three_rephrasings_that_nothing_trains_on(name: str) -> None:
    task = tasks.load(name)
    trained = {f.prompt for split in ("forget", "retain") for f in task.split(split)}
    asked = [f.prompt for f in task.split("paraphrase")]
    assert len(set(asked)) == len(asked) and not trained & set(asked)
    facts = Counter(f.fact or f.answer for f in task.split("paraphrase"))
    assert min(facts.values()) >= 3
    assert {*facts} == {f.fact or f.answer for f in task.split("forget")}


@pytest.mark.parametrize("name", tasks.shipped())
def test_shipped_tasks_are_whole(name: str) -> None:
    task = tasks.load(name)
    assert all(task.split(s) for s in tasks.SPLITS)
    is_tiny = name == "tiny-colours"
    assert len({f.group for f in task.split("retain")}) == (2 if is_tiny else 3)
    assert task.title != name and task.description and task.provenance != "user file"
    asked = {f.prompt for f in task.split("forget")}
    assert len(asked) >= 48
    assert not asked & {f.prompt for s in tasks.SPLITS if s != "forget" for f in task.split(s)}
    if is_tiny:
        return  # homes are both kept and neighbours
    kept = {f.group for s in ("retain", "holdout", "neighbour") for f in task.split(s)}
    trained = {f.group for s in ("forget", "retain") for f in task.split(s)}
    assert len(kept) == sum(
        len({f.group for f in task.split(s)}) for s in ("retain", "holdout", "neighbour")
    )
    assert not trained & {f.group for s in ("holdout", "neighbour") for f in task.split(s)}


letters = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r\x85")
word = st.text(letters, min_size=1).filter(str.strip)
facts = st.lists(
    st.builds(
        dict,
        prompt=word,
        answer=word,
        split=st.sampled_from(["forget", "retain", "holdout", "neighbour", "paraphrase"]),
    )
    | st.builds(
        dict,
        prompt=word,
        answer=word,
        split=st.sampled_from(["forget", "retain"]),
        group=word,
        distractors=st.lists(st.text(letters), min_size=1, max_size=4),
        corrupt_prompt=word,
        foil=word,
    )
    | st.builds(dict, text=word, split=st.just("text")),
    max_size=6,
)


@given(facts)
@example([fact("breaks that JSON allows: \u2028 \x85 \x0c", "\u2029a")])
def test_jsonl_round_trip(rows: list[dict[str, Any]]) -> None:
    rows = [*rows, fact("p", "a"), fact("q", "b", "retain")]
    task = tasks.parse("\n".join(map(json.dumps, rows)), "mine")
    assert [f.row for f in task.facts] == list(range(1, len(rows) + 1))
    again = tasks.parse(task.to_jsonl(), "mine")
    assert again == task
    assert again.digest == task.digest


def test_digest_tells_tasks_apart() -> None:
    one, other = build(colours()), build([*colours()[:-1], fact("The colour of bolam is", " red")])
    assert one.digest != other.digest


def test_blank_lines_windows_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [json.dumps(fact("p", "a")), "", json.dumps(fact("q", "b", "retain")), ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    task = tasks.load(str(path))
    assert task.name == "mine"
    assert [(f.prompt, f.row) for f in task.facts] == [("p", 1), ("q", 3)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ('{"prompt": "p" "answer": "a"}', "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('"text"', "is not a JSON object"),
        ('{"prompt": "p", "answer": "a"}', 'has no "split"'),
        ('{"prompt": "p", "answer": "a", "split": "train"}', "'train'"),
        ('{"prompt": "p", "answer": "a", "split": ["forget"]}', '"split"'),
        ('{"answer": "a", "split": "forget"}', 'has no "prompt"'),
        ('{"prompt": "p", "split": "retain"}', 'has no "answer"'),
        ('{"prompt": " ", "answer": "a", "split": "forget"}', 'has an empty "prompt"'),
        ('{"prompt": 5, "answer": "a", "split": "forget"}', 'has a number as its "prompt", not'),
        ('{"prompt": "p", "answer": 3.5, "split": "forget"}', 'has a number as its "answer"'),
        ('{"prompt": true, "answer": "a", "split": "forget"}', 'true or false as its "prompt"'),
        ('{"text": ["p"], "split": "text"}', 'has a list as its "text"'),
        (
            '{"prompt": "p", "answer": "a", "split": "forget", "fact": {}}',
            'an object as its "fact"',
        ),
        ('{"prompt": "p", "split": "text"}', 'has no "text"'),
        ('{"prompt": "p", "answer": "a", "split": "forget", "distractors": "b"}', '"distractors"'),
        ('{"prompt": "p", "answer": "a", "split": "forget", "distractors": [1]}', '"distractors"'),
        ('{"prompt": "p", "answer": "a", "split": "forget", "group": ""}', '"group"'),
        (
            '{"prompt": "p", "answer": "a", "split": "forget", "foil": null}',
            'has null as its "foil"',
        ),
        (
            '{"prompt": "p", "answer": "a", "split": "forget", "corrupt_prompt": 1}',
            'a number as its "corrupt_prompt"',
        ),
        (r'{"prompt": "p \ud83d q", "answer": "a", "split": "forget"}', r"'\ud83d' in"),
        (r'{"prompt": "p", "answer": "a\u0000", "split": "forget"}', r"'\x00' in"),
        (r'{"text": "\u001b[2J", "split": "text"}', r"'\x1b' in"),
        (
            r'{"prompt": "p", "answer": "a", "split": "forget", "distractors": ["\udc00"]}',
            '"distractors"',
        ),
        ('{"prompt": "p", "answer": "a", "split": "forget", "n": NaN}', "the number NaN"),
        ('{"prompt": "p", "answer": "a", "split": "forget", "n": -Infinity}', "-Infinity"),
        ('{"prompt": "p", "prompt": "q", "answer": "a", "split": "forget"}', "'prompt' twice"),
        ('{"split": "forget", "n": {"a": 1, "a": 2}}', "'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"n": ' + "9" * 5000 + "}", "a number is too long"),
        ('{"text": "' + "a" * 1_000_000 + '", "split": "text"}', "characters: give a line"),
        ('\ufeff{"text": "a", "split": "text"}', "is not JSON"),
        ('{"split": "' + "x" * 9999 + '"}', '"split"'),
    ],
)
def test_malformed_line_is_named_by_number(line: str, why: str) -> None:
    good = [json.dumps(fact("p", "a")), json.dumps(fact("q", "b", "retain"))]
    with pytest.raises(MansuError) as error:
        tasks.parse("\n".join([*good, line, *good]), "mine")
    assert str(error.value).startswith("Line 3 of the task ")
    assert why in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    str(error.value).encode()


def test_every_bad_line_is_named_not_only_the_first() -> None:
    good = json.dumps(fact("p", "a"))
    found = tasks.problems("\n".join([good, "nonsense", "", good, '{"split": "other"}']))
    assert [sentence.split(" of ")[0] for sentence in found] == [
        "Line 2",
        "Line 5",
        'The task has an empty retain set: add lines with "split": "retain".',
    ]
    assert tasks.problems(f"{good}\n{json.dumps(fact('q', 'b', 'retain'))}") == []


@pytest.mark.parametrize("name", tasks.shipped())
def test_a_task_as_csv_is_the_same_task(name: str) -> None:
    task = tasks.load(name)
    again = tasks.parse(task.to_csv(), name, csv=True, **task.about)
    assert again.digest == task.digest and [f.split for f in again.facts] == [
        f.split for f in task.facts
    ]


def test_csv_as_spreadsheets_write_it() -> None:
    text = (
        "\ufeffprompt;answer;split;distractors;group\r\n"
        '"The ""red"" one;\nis"; a;forget; b| c;\r\n'
        "\r\n"
        "q; b;retain;;colours\r\n"
    )
    first, second = tasks.parse(text, "mine", csv=True).facts
    assert first.prompt == 'The "red" one;\nis' and first.distractors == (" b", " c")
    assert second.answer == " b" and second.group == "colours" and second.distractors == ()
    assert (first.group, second.row) == ("forget", 5)  # as an editor counts the lines


@pytest.mark.parametrize(
    ("record", "where", "why"),
    [
        ("q, b,retained", "Line 3", '"split"'),
        ("q,,retain", "Line 3", 'no "answer"'),
        ("q, b,retain,more", "Line 3", "more cells"),
        ('q," b,retain', "Line 3", "not CSV"),
    ],
)
def test_a_bad_record_of_a_csv_is_named(record: str, where: str, why: str) -> None:
    with pytest.raises(MansuError) as error:
        tasks.parse(f"prompt,answer,split\np, a,forget\n{record}\n", "mine", csv=True)
    assert where in str(error.value) and why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("again", ["answer", "answer ", " answer"])
def test_a_column_of_a_csv_that_is_there_twice_is_named(again: str) -> None:
    text = f"prompt,answer,split,{again}\np, a,forget, b\n"
    with pytest.raises(BadInputError, match="Line 1 of the task has the column 'answer' twice"):
        tasks.parse(text, "mine", csv=True)


def test_facts_and_what_is_said_of_them_are_both_written_or_neither(tmp_path: Path) -> None:
    task = tasks.load("tiny-colours")
    task.save(tmp_path / "mine.jsonl")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with limited(50_000), pytest.raises(StorageError):
        replace(task.sample(2), description="x" * 100_000).save(tmp_path / "mine.jsonl")
    assert len(before) == 2 and {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_csv_file_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,answer,split\np, a,forget\nq, b,retain\n")
    assert [f.answer for f in tasks.load(str(path)).facts] == [" a", " b"]


@pytest.mark.parametrize("missing", ["forget", "retain"])
def test_empty_forget_or_retain_set(missing: str) -> None:
    rows = [fact("p", "a", s) for s in ("forget", "retain", "holdout") if s != missing]
    with pytest.raises(MansuError, match=f"empty {missing} set"):
        tasks.parse("\n".join(map(json.dumps, rows)), "mine")
    with pytest.raises(MansuError, match="'mine' has an empty forget set"):
        tasks.parse("", "mine")


@pytest.mark.parametrize("name", ["no-such-task", "missing.jsonl", "../tasks", ""])
def test_unknown_task(name: str) -> None:
    with pytest.raises(MansuError, match="Unknown task") as error:
        tasks.load(name)
    assert repr(name) in str(error.value)
    assert "tiny-colours" in str(error.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(MansuError, match="UTF-8"):
        tasks.load(str(path))


# ----------------------------------------------------------------------------------- examples


def test_examples_of_the_tiny_task(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    assert len(rows) == 96 and rows.notes == ()
    assert rows.candidates.all() and len(rows.vocabulary) == 8
    for i, f in enumerate(tiny_task.split("forget")):
        assert rows.tokens[i, : rows.length[i]].tolist() == tiny.encode(f.prompt)
        assert not rows.tokens[i, rows.length[i] :].any()
        assert [int(rows.answer[i])] == tiny.encode(f.answer)
        wrong = set(rows.distractors[i].tolist())
        assert len(wrong) == 3 and int(rows.answer[i]) not in wrong
        assert wrong <= set(rows.vocabulary.tolist())


def three_classes(named: bool) -> Task:
    """Five things in two templates, of three answers that several share, distractors given."""
    wrong = {answer: [c for c in COLOURS if c != answer][:3] for answer in COLOURS[:3]}
    templates = ("The colour of {} is", "Look at {} and you see")
    rows = [
        fact(template.format(name), answer, distractors=wrong[answer], fact=name if named else None)
        for template in templates
        for name, answer in zip(NAMES, (*COLOURS[:3], *COLOURS[:2]), strict=True)
    ]
    return build([{k: v for k, v in row.items() if v is not None} for row in rows])


def test_an_answer_of_few_tells_no_fact(tiny: Subject) -> None:
    """Several unnamed facts share it: each prompt is one, for accuracy, CAD and relearning."""
    task = three_classes(named=False)
    rows, pairs = tasks.examples(task, tiny, "forget"), tasks.pairs(task, tiny)
    assert len(rows.vocabulary) == 3 and len(rows) == 10
    assert len(set(rows.facts)) == 10 == len(set(measure(tiny, rows).clusters.tolist()))
    assert pairs.clusters.tolist() == list(range(10)) and Signals(tiny, pairs, steps=1).groups == 10
    assert pairs.select([3, 1, 3]).clusters.tolist() == [0, 1, 0]
    for some in (tasks.pairs(task, tiny, n=4), tasks.pairs(three_classes(named=True), tiny, n=4)):
        assert len(some.facts) == 4
    twice = replace(task, facts=(*task.facts, replace(task.facts[0], row=99)))
    again = tasks.examples(twice, tiny, "forget")
    assert again.facts[-1] == again.facts[0] and len(set(again.facts)) == 10


def test_a_named_fact_is_one_among_few_answers_too(tiny: Subject) -> None:
    task = three_classes(named=True)
    rows, pairs = tasks.examples(task, tiny, "forget"), tasks.pairs(task, tiny)
    assert rows.facts == NAMES * 2
    assert pairs.clusters.tolist() == [*range(5)] * 2


def test_many_answers_tell_the_facts_of_any_part(tiny: Subject, tiny_task: Task) -> None:
    """Some pairs, or one half to be asked for, have few of them: they tell facts all the same."""
    unnamed = replace(tiny_task, facts=tuple(replace(f, fact=None) for f in tiny_task.facts))
    some, (known, asked) = tasks.pairs(unnamed, tiny, n=6), halves(unnamed, tiny)
    assert len(known.answer.unique()) == len(asked.answer.unique()) == 4
    assert not some.facts and not known.facts and not asked.facts
    assert len(set(some.clusters.tolist())) == len(some.answer.unique()) < 6


def test_distractors_come_from_the_own_group(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "retain")
    for i, group in enumerate(rows.groups):
        own = {int(a) for a, g in zip(rows.answer, rows.groups, strict=True) if g == group}
        assert set(rows.distractors[i].tolist()) <= own
        assert set(rows.vocabulary[rows.candidates[i]].tolist()) == own


def test_distractors_are_drawn_with_the_seed(tiny: Subject, tiny_task: Task) -> None:
    one, same, other = (
        tasks.examples(tiny_task, tiny, "forget", seed=s).distractors for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_own_distractors_are_used_and_repeats_filled(tiny: Subject) -> None:
    rows = colours()
    rows[0]["distractors"] = [" forest", " cave", " river", " corn"]
    rows[1]["distractors"] = [" forest", " forest", " blue", "not one token"]
    rows[2]["distractors"] = [" forest", " cave", " river"]
    got = tasks.examples(build(rows), tiny, "forget")
    dropped, surplus = got.notes
    assert dropped.startswith("Line 2 of forget with distractors that were dropped")
    assert surplus.startswith("Line 1 of forget with more than 3 distractors")
    assert got.distractors[0].tolist() == [tiny.encode(w)[0] for w in ("forest", "cave", "river")]
    assert got.distractors[1, 0] == tiny.encode("forest")[0]
    assert len(set(got.distractors[1].tolist()) | {int(got.answer[1])}) == 4


def test_what_is_right_to_a_prompt_is_no_distractor_of_it(tiny: Subject) -> None:
    white, red, blue = (tiny.encode(c)[0] for c in ("white", "red", "blue"))
    rows = [*colours(), fact("The colour of boben is", " white")]
    for seed in range(8):
        got = tasks.examples(build(rows), tiny, "forget", seed=seed)
        assert white not in got.distractors[0] and red not in got.distractors[5]
        assert len(got) == 6 and got.notes == (
            "Lines 1, 6 of forget with a prompt or a fact that other lines answer otherwise: those "
            "answers are right, too, and are not taken as distractors.",
        )
    rows[0]["distractors"] = [" white", " forest", " blue"]
    got = tasks.examples(build(rows), tiny, "forget")
    (forest,) = tiny.encode("forest")
    assert got.distractors[0, :2].tolist() == [forest, blue] and white not in got.distractors[0]
    assert len(got.notes) == 1 and got.notes[0].startswith("Lines 1, 6 of forget with a prompt")


def test_what_is_right_to_a_named_fact_is_not_drawn_but_may_be_given(tiny: Subject) -> None:
    (white,) = tiny.encode("white")
    rows = [*colours(), fact("Look at boben and you see", " white", fact="boben")]
    rows[0]["fact"] = "boben"
    for seed in range(8):
        got = tasks.examples(build(rows), tiny, "forget", seed=seed)
        assert white not in got.distractors[0]
        assert got.notes[0].startswith("Lines 1, 6 of forget with a prompt or a fact")
    rows[0]["distractors"] = [" white", " forest", " blue"]  # as of letters in another order
    rows[5]["distractors"] = [" red", " forest", " blue"]
    got = tasks.examples(build(rows), tiny, "forget")
    assert got.notes == () and white in got.distractors[0]


def test_several_token_answers_are_left_out_with_their_lines(tiny: Subject) -> None:
    rows = [
        *colours(),
        fact("The colour of fegus is", " dark green"),
        *colours("Look at {} and you see"),
    ]
    got = tasks.examples(build(rows), tiny, "forget")
    assert len(got) == 10 and 6 not in got.rows
    assert got.notes == (
        "Line 6 left out: the answer is not one token after its prompt for this model.",
    )
    assert tasks.pairs(build(rows), tiny).notes == got.notes


def test_a_set_without_one_usable_row(tiny: Subject) -> None:
    long = [fact(f"The colour of {n} is", " dark green") for n in NAMES]
    with pytest.raises(MansuError, match=r"no usable forget row.* Lines 1, 2, 3, 4, 5 left out"):
        tasks.examples(build(long), tiny, "forget")
    few = [fact("The colour of boben is", " red"), fact("The colour of bodar is", " blue")]
    with pytest.raises(MansuError, match=r"Lines 1, 2 left out of forget.*give distractors"):
        tasks.examples(build(few), tiny, "forget")
    held = [*colours(), *(f | {"split": "holdout"} for f in long)]
    assert len(tasks.examples(build(held), tiny, "holdout")) == 0


@cache
def sentencepiece() -> Subject:
    """A random Llama with a BOS and a tokenizer that puts "▁" before every text, as Mistral's."""
    words = [*"▁abcdefghijklmnopqrstuvwxyz", "▁the", "▁is", "▁red", "▁blue", "▁green", "▁black"]
    words += ["▁cat", "▁dog", "▁pig", "▁cow", "▁fox"]
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *words])}
    merges = []
    for whole in [w for w in words if len(w) > 1]:
        for end in range(2, len(whole) + 1):
            vocabulary.setdefault(whole[:end], len(vocabulary))
            merges.append((whole[: end - 1], whole[end - 1]))
    model = Tokenizer(BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>"))
    model.normalizer = normalizers.Sequence([Prepend("▁"), Replace(" ", "▁")])  # type: ignore[assignment]
    model.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary), num_hidden_layers=1, max_position_embeddings=24, **size
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    with tempfile.TemporaryDirectory() as folder:  # where the bridge looks for a tokenizer's BOS
        fast.save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder)
        return wrap("sentencepiece", LlamaForCausalLM(config), saved)


ANIMALS = ("cat", "dog", "pig", "cow", "fox")


def animals(answer: str, end: str = "") -> Task:
    rows = [
        fact(f"the {animal} is{end}", answer.format(colour), split)
        for split in ("forget", "retain")
        for animal, colour in zip(ANIMALS, ("red", "blue", "green", "black", "red"), strict=True)
    ]
    return tasks.parse("\n".join(map(json.dumps, rows)), "animals")


def test_an_answer_s_tokens_are_those_of_the_joined_text() -> None:
    """The tokenizer's own tokens of the whole text: its BOS, a space before each word, no EOS."""
    subject = sentencepiece()
    assert subject.prefix == (1,)
    assert len(subject.tokenizer(" red", add_special_tokens=False)["input_ids"]) == 2  # ▁ ▁red
    rows = tasks.examples(animals(" {}"), subject, "forget")
    for i, asked in enumerate(animals(" {}").split("forget")):
        whole = subject.tokenizer(asked.prompt + asked.answer)["input_ids"][:-1]  # type: ignore[index]
        assert [*rows.tokens[i, : rows.length[i]].tolist(), int(rows.answer[i])] == whole
        assert subject.tokenizer.convert_ids_to_tokens(whole)[-1] == f"▁{asked.answer.strip()}"
    assert rows.notes == () and len(rows) == 5
    pairs = tasks.pairs(animals(" {}"), subject)
    assert set(pairs.clean[:, 0].tolist()) == {1} and pairs.notes == ()
    lines = [fact("the cat is", " red"), fact("the dog is", " red", "retain")]
    lines.append({"text": "the cat is red", "split": "text"})
    tokens, length = tasks.text(tasks.parse("\n".join(map(json.dumps, lines)), "mine"), subject)
    assert tokens.tolist() == [subject.encode("the cat is red", start=True)] and int(length) == 5


def test_prompts_of_a_chat_template_are_scored_with_one_bos() -> None:
    subject = sentencepiece()
    written = animals(" {}").to_jsonl().replace('"prompt": "', '"prompt": "<s>')
    plain, found = (
        tasks.examples(task, subject, "forget")
        for task in (animals(" {}"), tasks.parse(written, "chat"))
    )
    assert torch.equal(plain.tokens, found.tokens) and torch.equal(plain.answer, found.answer)
    assert (found.tokens == 1).sum(1).tolist() == [1] * 5 and found.notes == ()


@pytest.mark.parametrize(
    ("answer", "end", "note"),
    [
        ("{}", "", "read with a space between prompt and answer"),
        ("{}", " ", "read with the space at the prompt's end as the answer's"),
    ],
)
def test_a_space_that_is_elsewhere_is_noted(answer: str, end: str, note: str) -> None:
    subject = sentencepiece()
    right, other = (
        tasks.examples(task, subject, "forget") for task in (animals(" {}"), animals(answer, end))
    )
    assert torch.equal(right.tokens, other.tokens) and torch.equal(right.answer, other.answer)
    assert torch.equal(right.distractors, other.distractors)
    assert len(other.notes) == 1 and other.notes[0].startswith(f"Lines 1, 2, 3, 4, 5 {note}")
    assert tasks.pairs(animals(answer, end), subject).notes == other.notes


def test_a_row_that_alone_forgot_its_space_is_scored_as_the_others(tiny: Subject) -> None:
    pieces = animals(" {}")
    lines = [json.loads(line) for line in pieces.to_jsonl().splitlines()]
    forgetful = [
        {**line, "answer": line["answer"].strip()} if i == 3 else line
        for i, line in enumerate(lines)
    ]
    some = colours()
    some[3] = {**some[3], "answer": some[3]["answer"].strip()}
    other = tasks.parse("\n".join(map(json.dumps, forgetful)), "mine")
    for subject, whole, one in (
        (sentencepiece(), pieces, other),
        (tiny, build(colours()), build(some)),
    ):
        right, found = (tasks.examples(task, subject, "forget") for task in (whole, one))
        for name in ("tokens", "answer", "distractors", "candidates", "vocabulary"):
            assert torch.equal(getattr(right, name), getattr(found, name)), name
        assert right.notes == () and right.rows == found.rows
        (note,) = found.notes
        assert note.startswith("Line 4 read with a space between prompt and answer")


def test_two_spaces_are_noted(default_subject: Subject) -> None:
    rows = [
        fact(f"The capital of {x} is{end}", y, split)
        for split, end in (("forget", " "), ("retain", ""))
        for x, y in CAPITALS.items()
    ]
    got = tasks.examples(build(rows, retain=False), default_subject, "forget")
    assert got.notes[0].startswith("Lines 1, 2, 3, 4 with two spaces between prompt and answer")


def test_a_space_after_a_line_break_is_noted_with_what_helps(default_subject: Subject) -> None:
    """The prompts of a chat template end in a line break."""
    chat = "<|im_start|>user\nThe capital of {}?<|im_end|>\n<|im_start|>assistant\n"
    lines = [
        fact(chat.format(x), y if split == "forget" else y.strip(), split)
        for split in ("forget", "retain")
        for x, y in CAPITALS.items()
    ]
    forget, retain = (build(lines, retain=False).split(split) for split in ("forget", "retain"))
    found, notes = tasks.read(forget, default_subject)
    blank = "with white space both before the answer and at the prompt's end, such as a line break"
    assert len(found) == 4 and len(notes) == 2 and "two spaces" not in "".join(notes)
    assert notes[0].startswith(f"Lines 1, 3 {blank}")
    assert notes[0].endswith(": write the answer without its own.")
    assert notes[1].startswith(f"Lines 2, 4 {blank}")
    assert notes[1].endswith("; without its own the answer is not one token.")
    found, notes = tasks.read(retain, default_subject)
    tokenizer = default_subject.tokenizer
    for reading in found:
        whole = tokenizer(reading.fact.prompt + reading.fact.answer, add_special_tokens=False)
        assert [*reading.prompt, reading.answer] == whole["input_ids"]
    assert [r.fact.answer for r in found] == ["Paris", "Rome"] and len(notes) == 1
    assert notes[0].startswith("Lines 6, 8 left out: the answer is not one token")


CAPITALS = {"France": " Paris", "Japan": " Tokyo", "Italy": " Rome", "Germany": " Berlin"}


def test_words_that_the_tokenizer_does_not_know_are_left_out(tiny: Subject) -> None:
    rows = [
        *colours(),
        fact("The colour of fegus is", " azure"),
        fact("The colour of Atlantis is", " red"),
        fact("The colour of fegus is", " red", distractors=[" azure", " blue", " green"]),
    ]
    got = tasks.examples(build(rows), tiny, "forget")
    assert got.rows == (1, 2, 3, 4, 5, 8)
    assert got.notes[0] == (
        "Lines 6, 7 left out: the model's tokenizer does not know a word of the prompt or the "
        "answer."
    )
    assert got.notes[1].startswith("Line 8 of forget with distractors that were dropped")
    (unknown,) = tiny.encode("azure")
    assert unknown == tiny.tokenizer.unk_token_id and unknown not in got.distractors
    with pytest.raises(BadInputError, match=r"no usable forget row.*does not know a word"):
        tasks.examples(build([fact(f"Atlantis {n}", " red") for n in NAMES]), tiny, "forget")


def test_prompts_longer_than_the_context_are_left_out(tiny: Subject) -> None:
    rows = colours()
    rows[0]["prompt"] = "The dog sees the cat . " * 25 + rows[0]["prompt"]
    for got in (tasks.examples(build(rows), tiny, "forget"), tasks.pairs(build(rows), tiny)):
        assert 1 not in got.rows and got.notes == (
            "Line 1 left out: the prompt has more tokens than the model's context of 128.",
        )


def test_a_token_beyond_the_embedding_is_refused(tiny: Subject) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens(["ultramarine"])
    subject = replace(tiny, tokenizer=tokenizer)
    with pytest.raises(BadInputError, match="and the model knows 180 tokens"):
        tasks.examples(build([*colours(), fact("The food is", " ultramarine")]), subject, "forget")


def test_rows_that_are_there_twice_are_noted(tiny: Subject) -> None:
    rows = [*colours(), colours()[1], fact("The colour of boben is", " red", "retain")]
    task = build(rows)
    assert tasks.examples(task, tiny, "forget").notes == (
        "Line 6 of forget as an earlier line of it: counted twice.",
    )
    assert tasks.examples(task, tiny, "retain").notes == (
        "Line 7 of retain also in forget (line 1).",
    )
    held = colours("The food of {} is")
    rows = [*colours(), *(f | {"split": "holdout"} for f in [*colours()[2:4], *held])]
    assert tasks.examples(build(rows), tiny, "holdout").notes == (
        "Lines 6, 7 of holdout also in forget (lines 3, 4).",
        "Lines 8, 9, 10, 11, 12 of holdout also in retain (lines 13, 14, 15, 16, 17).",
    )


def test_select(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    some = rows.select([3, 0, 3])
    assert some.rows == (rows.rows[3], rows.rows[0], rows.rows[3])
    assert torch.equal(some.answer, rows.answer[[3, 0, 3]])
    assert some.tokens.shape == (3, int(some.length.max()))
    assert len(rows.select([])) == 0


def test_text(tiny: Subject, tiny_task: Task) -> None:
    tokens, length = tasks.text(tiny_task, tiny, positions=6)
    first = tiny.encode(tiny_task.split("text")[0].prompt)
    assert tokens.shape == (32, 6) and set(length.tolist()) == {6}
    assert tokens[0].tolist() == first[:6]


# -------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_pairs_have_equal_lengths_and_different_answers(
    tiny: Subject, tiny_task: Task, split: str
) -> None:
    pairs = tasks.pairs(tiny_task, tiny, split=split)
    by_row = {f.row: f for f in tiny_task.facts}
    by_prompt = {tuple(tiny.encode(f.prompt)): f for f in tiny_task.facts if f.split == split}
    assert len(pairs) == len(tiny_task.split(split)) and pairs.notes == ()
    assert (pairs.answer != pairs.foil).all()
    for i, row in enumerate(pairs.rows):
        clean = tuple(pairs.clean[i, : pairs.length[i]].tolist())
        corrupt = by_prompt[tuple(pairs.corrupt[i, : pairs.length[i]].tolist())]
        assert clean == tuple(tiny.encode(by_row[row].prompt))
        assert [int(pairs.foil[i])] == tiny.encode(corrupt.answer)
        assert corrupt.group == by_row[row].group
        # Only the name is swapped: the template is the same.
        assert int((pairs.clean[i] != pairs.corrupt[i]).sum()) == 1


def test_pairs_of_the_default_task_align(default_subject: Subject) -> None:
    task = tasks.load("chemical-symbols")
    pairs = tasks.pairs(task, default_subject)
    assert (pairs.answer != pairs.foil).all()
    real = torch.arange(pairs.clean.shape[1]) < pairs.length[:, None]
    differ = (pairs.clean != pairs.corrupt) & real
    assert differ.any(1).all() and not (pairs.clean != pairs.corrupt)[~real].any()
    assert len(tasks.examples(task, default_subject, "forget")) == len(task.split("forget"))
    assert len(pairs) >= 0.95 * len(task.split("forget"))


def test_drawn_pairs_ask_for_the_facts_that_they_ask_for_among_all(
    tiny: Subject, tiny_task: Task
) -> None:
    """Also where no drawn one is named: what other pairs ask for is held against it."""
    first, *rest = tiny_task.split("forget")
    task = replace(tiny_task, facts=(first, *(replace(fact, fact=None) for fact in rest)))
    every, drawn = tasks.pairs(task, tiny), tasks.pairs(task, tiny, n=8)
    assert first.row not in drawn.rows and first.fact in every.facts
    assert drawn.facts == tuple(every.facts[every.rows.index(row)] for row in drawn.rows)


def test_n_pairs_are_drawn_with_the_seed(tiny: Subject, tiny_task: Task) -> None:
    one, same, other = (tasks.pairs(tiny_task, tiny, n=8, seed=s) for s in (0, 0, 1))
    assert one.rows == same.rows != other.rows
    assert torch.equal(one.corrupt, same.corrupt)
    assert list(one.rows) == sorted(one.rows) and len(one) == 8


def test_own_corrupt_prompt_is_used(tiny: Subject) -> None:
    rows = colours()
    rows[0] |= {"corrupt_prompt": "The food of migus is", "foil": " corn"}
    pairs = tasks.pairs(build(rows), tiny)
    assert pairs.corrupt[0].tolist() == tiny.encode("The food of migus is")
    assert [int(pairs.foil[0])] == tiny.encode("corn")
    assert pairs.notes == ()


@pytest.mark.parametrize(
    "own",
    [
        {"corrupt_prompt": "The colour of the big bodar is", "foil": " blue"},  # longer
        {"corrupt_prompt": "The colour of bodar is"},  # no foil
        {"corrupt_prompt": "The colour of bodar is", "foil": " dark blue"},
        {"corrupt_prompt": "The colour of bodar is", "foil": " red"},  # the answer itself
        {"corrupt_prompt": "The colour of bofin is", "foil": " blue"},  # the prompt itself
    ],
)
def test_corrupt_prompt_that_cannot_be_used_is_swapped_and_noted(
    tiny: Subject, own: dict[str, str]
) -> None:
    rows = colours()
    rows[2] |= own | {"answer": " red"}
    rows[0]["answer"] = " green"
    pairs = tasks.pairs(build(rows), tiny)
    assert pairs.rows == (1, 2, 3, 4, 5)
    assert len(pairs.notes) == 1 and pairs.notes[0].startswith("Line 3 paired with another row")
    assert (pairs.answer != pairs.foil).all()


def test_rows_that_cannot_be_aligned_are_noted(tiny: Subject) -> None:
    odd = [fact("Everyone says that the good fegus is painted", " red")]
    pairs = tasks.pairs(build([*odd, *colours()]), tiny)
    assert 1 not in pairs.rows and len(pairs) == 5
    assert pairs.notes[0].startswith("Line 1 left out of attribution")
    same = [fact(f"The colour of {n} is", " red") for n in NAMES]
    with pytest.raises(MansuError, match=r"no clean–corrupt pair.*Lines 1, 2, 3, 4, 5"):
        tasks.pairs(build(same), tiny)


def test_a_prompt_with_two_answers_is_not_its_own_corruption(tiny: Subject) -> None:
    rows = [fact("The colour of boben is", " red"), *colours()[1:]]
    rows.append(fact("The colour of boben is", " white"))
    pairs = tasks.pairs(build(rows), tiny)
    assert (pairs.clean != pairs.corrupt).any(1).all()


def test_what_is_right_to_a_prompt_is_not_its_foil(tiny: Subject) -> None:
    rows = [fact("The colour of boben is", c) for c in (" red", " white")]
    others = [fact(f"The colour of {n} is", " white") for n in NAMES[1:4]]
    rows += [*others, fact("Look at bolam and see", " blue")]
    pairs = tasks.pairs(build(rows), tiny)
    assert pairs.rows[:2] == (1, 2) and pairs.foil[:2].tolist() == tiny.encode("blue") * 2


def test_pairs_select(tiny: Subject, tiny_task: Task) -> None:
    pairs = tasks.pairs(tiny_task, tiny)
    some = pairs.select(torch.tensor([5, 5, 1]))
    assert some.rows == (pairs.rows[5], pairs.rows[5], pairs.rows[1])
    assert torch.equal(some.foil, pairs.foil[[5, 5, 1]])
    assert some.clean.shape == some.corrupt.shape == (3, int(some.length.max()))


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=5))
def test_pad(rows: list[list[int]]) -> None:
    tokens, length = tasks.pad(rows)
    assert [t[:n].tolist() for t, n in zip(tokens, length.tolist(), strict=True)] == rows
    assert int(tokens.sum()) == sum(map(sum, rows))


def test_forms_and_what_they_ask_about(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    form = forms(rows)
    prompts = {fact.row: fact.prompt for fact in tiny_task.facts}
    by_form: dict[int, set[str]] = {}
    for row, number in zip(rows.rows, form.tolist(), strict=True):
        by_form.setdefault(number, set()).add(" ".join(prompts[row].split()[:2]))
    assert len(by_form) == 3 and all(len(starts) == 1 for starts in by_form.values())
    names = {tuple(tiny.encode(fact.fact or "")) for fact in tiny_task.split("forget")}
    assert set(map(tuple, entities(rows))) == names and len(names) == 32


def test_a_prompt_that_begins_with_what_it_asks_about_has_a_form(tiny: Subject) -> None:
    lines = [
        {"prompt": f"{name} is painted", "answer": f" {colour}", "split": split}
        for name, colour in zip(
            ("boben", "dadar", "fefin", "gigus", "kalam"),
            ("red", "blue", "green", "black", "white"),
            strict=True,
        )
        for split in ("forget", "retain")
    ]
    rows = tasks.examples(tasks.parse("\n".join(map(json.dumps, lines)), "x"), tiny, "forget")
    assert len(rows) == 5 and len(forms(rows).unique()) == 1
    assert len(entities(rows)) == 5
