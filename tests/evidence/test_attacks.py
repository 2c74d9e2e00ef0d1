"""Recovery attacks: fair questions, the model put back, and each attack what it says it is."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mansu import quant, tasks
from mansu.errors import MansuError
from mansu.evidence import attacks, relearning
from mansu.evidence.attacks import Attacks, Material
from mansu.evidence.controls import suppressor
from mansu.measure.scores import Scores, answer_log_probability, measure
from mansu.progress import Step
from mansu.report.rows import attacked, recovery
from mansu.statistics import SHARE, bootstrap
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples


@pytest.fixture(scope="module")
def have(tiny: Subject, tiny_task: Task) -> Material:
    return attacks.material(tiny_task, tiny)


@pytest.fixture(scope="module")
def hidden(tiny: Subject, tiny_task: Task) -> Edit:
    """An edit that only hides the answers."""
    forget, retain = (tasks.examples(tiny_task, tiny, s) for s in ("forget", "retain"))
    return suppressor(tiny, forget, retain, accuracy=0.3)


@pytest.fixture(scope="module")
def found(tiny: Subject, tiny_task: Task, hidden: Edit) -> Attacks:
    with hidden.applied(tiny):
        return attacks.attack(tiny, tiny_task)


pytestmark = pytest.mark.usefixtures("untouched")


def test_the_halves_share_no_answer(tiny: Subject, tiny_task: Task, have: Material) -> None:
    forget = tasks.examples(tiny_task, tiny, "forget")
    known, asked = set(have.known.answer.tolist()), set(have.asked.answer.tolist())
    assert not known & asked and len(known) == len(asked) == 4
    assert not known & set(have.asked.distractors.flatten().tolist())
    assert set(have.known.rows) | set(have.asked.rows) <= set(forget.rows)
    assert len(have.known) == sum(a in known for a in forget.answer.tolist())
    assert attacks.material(tiny_task, tiny, seed=1).asked.rows != have.asked.rows


def test_few_answers_split_by_row(tiny: Subject, tiny_task: Task) -> None:
    """The letters of multiple choice: every answer may be asked, no row is known and asked."""
    letters = [f for f in tiny_task.facts if f.split != "forget" or f.answer != " blue"]
    small = Task("small", "Small", "", tuple(letters))
    assert len(tasks.examples(small, tiny, "forget").vocabulary) == 7
    have = attacks.material(small, tiny)
    assert not set(have.known.rows) & set(have.asked.rows)
    assert set(have.known.answer.tolist()) == set(have.asked.answer.tolist())


def test_hints_hold_the_question_and_never_its_answer(
    tiny: Subject, tiny_task: Task, have: Material
) -> None:
    known = {f.row: f for f in tiny_task.facts if f.row in have.known.rows}
    demonstrations = {tuple(tiny.encode(f"{f.prompt}{f.answer}.")) for f in known.values()}
    assert have.hinted.rows == have.shown.rows == have.asked.rows
    for i, answer in enumerate(have.asked.answer.tolist()):
        question = have.asked.tokens[i, : have.asked.length[i]].tolist()
        for rows in (have.hinted, have.shown):
            tokens = rows.tokens[i, : rows.length[i]].tolist()
            assert tokens[-len(question) :] == question and len(tokens) > len(question)
            assert answer not in tokens
        context = have.shown.tokens[i, : int(have.shown.length[i]) - len(question)].tolist()
        ends = [k + 1 for k, t in enumerate(context) if t == tiny.encode(".")[0]]
        shots = {tuple(context[a:b]) for a, b in zip([0, *ends], ends, strict=False)}
        assert len(shots) == attacks.SHOTS and shots <= demonstrations
        assert len({shot[-2] for shot in shots}) == attacks.SHOTS


def test_behind_another_text_a_prompt_does_not_begin_anew(tiny: Subject, tiny_task: Task) -> None:
    """Prompts of a chat template write the BOS; as the plain ones, they are asked with one."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single="[BOS] $A", special_tokens=[("[BOS]", 2)]
    )
    subject = dataclasses.replace(tiny, tokenizer=tokenizer)
    written = tiny_task.to_jsonl().replace('"prompt": "', '"prompt": "[BOS]')
    chat = tasks.parse(written, tiny_task.name, title=tiny_task.title)
    plain, found = (attacks.material(task, subject) for task in (tiny_task, chat))
    for kind in ("asked", "hinted", "shown"):
        expected, rows = getattr(plain, kind), getattr(found, kind)
        assert len(rows) and torch.equal(rows.tokens, expected.tokens)
        assert set((rows.tokens == 2).sum(1).tolist()) == {1}


def test_each_attack_is_what_it_says(
    tiny: Subject, hidden: Edit, have: Material, found: Attacks
) -> None:
    assert tuple(found.scores) == tuple(a for a in attacks.ATTACKS if a != "paraphrase")
    with hidden.applied(tiny):
        plain = measure(tiny, have.asked)
        hint = measure(tiny, have.hinted)
        with quant.quantized(tiny, format=quant.Format("int8")):
            int8 = measure(tiny, have.asked)
    assert found.scores["none"].to_json() == found.curve[0].to_json() == plain.to_json()
    assert found.scores["hint"].to_json() == hint.to_json()
    assert found.scores["int8"].to_json() == int8.to_json()
    assert found.curve[-1].to_json() == found.scores["relearning"].to_json()
    assert len(found.curve) == relearning.STEPS + 1
    again = Attacks.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()


def test_relearning_is_adamw_on_the_known_rows_only(
    tiny: Subject, tiny_task: Task, have: Material
) -> None:
    """One step with every known row in the batch, against autograd and AdamW's first step."""
    know = have.known.select(range(relearning.BUDGET.batch))  # one batch holds them all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            relearning, "BUDGET", dataclasses.replace(relearning.BUDGET, learning_rate=1e-3)
        )
        curve = relearning.relearn(tiny, tiny_task, know, have.asked, steps=1)
    parameters = tiny.parameters
    for p in parameters.values():
        p.requires_grad_(True)
    try:
        loss = -answer_log_probability(tiny, know).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    finally:
        for p in parameters.values():
            p.requires_grad_(False)
    norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.tensor(0.0)))
    after = {}
    for (name, p), g in zip(parameters.items(), gradients, strict=True):
        g = g * min(1.0, 1.0 / float(norm + 1e-6))
        after[name] = p - 1e-3 * g / (g.abs() + 1e-8)
    with Edit.between(parameters, after).applied(tiny):
        oracle = measure(tiny, have.asked)
    assert curve[1].log_probability == pytest.approx(oracle.log_probability, abs=1e-3)
    assert curve[1].log_probability != pytest.approx(curve[0].log_probability, abs=1e-2)


def test_no_steps_are_no_attack(tiny: Subject, tiny_task: Task, have: Material) -> None:
    (only,) = relearning.relearn(tiny, tiny_task, have.known, have.asked, steps=0)
    assert only.to_json() == measure(tiny, have.asked).to_json()


def test_an_edit_is_put_back_when_relearning_is_cancelled(
    tiny: Subject, tiny_task: Task, hidden: Edit, have: Material
) -> None:
    def cancel(step: Step) -> None:
        raise KeyboardInterrupt

    with hidden.applied(tiny):
        before = {name: p.clone() for name, p in tiny.parameters.items()}
        with pytest.raises(KeyboardInterrupt):
            relearning.relearn(tiny, tiny_task, have.known, have.asked, on_step=cancel)
        assert all(torch.equal(p, before[name]) for name, p in tiny.parameters.items())


def test_a_model_that_knows_the_facts_keeps_them(tiny: Subject, tiny_task: Task) -> None:
    """The control: attacks on the unedited model find what it knows, and recover nothing."""
    found = attacks.attack(tiny, tiny_task)
    assert found.accuracy("none").value == 1.0
    for name in ("relearning", "NF4", "int8"):
        gain = found.recovered(name)
        assert gain is not None and gain.value <= 0
        assert gain.value == pytest.approx(found.accuracy(name).value - 1.0)


def test_relearning_that_was_cut_short_has_no_accuracy(
    tiny: Subject, tiny_task: Task, found: Attacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(subject: Subject, rows: Examples) -> torch.Tensor:
        return answer_log_probability(subject, rows) * torch.inf

    monkeypatch.setattr(relearning, "answer_log_probability", infinite)
    cut = attacks.attack(tiny, tiny_task)
    assert "relearning" not in cut.scores and cut.recovered("relearning") is None
    assert "after 0 steps of 8" in str(cut.cut_short("it")) and found.cut_short("it") is None
    value = json.loads(json.dumps(cut.to_json()))
    assert Attacks.from_json(value).to_json() == cut.to_json()
    value["scores"]["relearning"] = value["curve"][-1]  # as an earlier MANSU wrote it
    assert Attacks.from_json(value).to_json() == cut.to_json()
    shown = recovery(found, cut, "edit")
    last = dict(
        zip(shown.columns["Attack"], zip(*shown.columns.values(), strict=True), strict=True)
    )
    assert last["relearning"][2:] == ("–", "–") and "edited model ended after" in shown.text()
    assert "Relearning of edit ended after" in attacked({"edit": cut}, attacks.ATTACKS).text()
    whole = found.to_json()
    del whole["scores"]["relearning"]
    with pytest.raises(KeyError):
        Attacks.from_json(whole)


def test_other_questions_are_not_paired(tiny: Subject, tiny_task: Task) -> None:
    other = measure(tiny, tasks.examples(tiny_task, tiny, "paraphrase"))
    found = attacks.attack(tiny, tiny_task, paraphrase=other)
    assert found.recovered("paraphrase") is None
    assert found.accuracy("paraphrase").value == other.accuracy


def test_one_fact_cannot_be_split(tiny: Subject) -> None:
    line = {"prompt": "The colour of boben is", "answer": " blue", "split": "forget"}
    wrong = {"distractors": [" red", " black", " green"]}
    lines = [json.dumps({**line, **wrong}), json.dumps({**line, **wrong, "split": "retain"})]
    with pytest.raises(MansuError, match="one fact"):
        attacks.material(tasks.parse("\n".join(lines), "one"), tiny)


def test_an_interval_counts_facts_where_letters_are_the_answers() -> None:
    correct = np.array([True, True, False, False, True, False] * 5)
    zero = np.zeros(30)
    letters = np.array([0, 1, 2] * 10)
    facts = tuple("aabbccddeeffgghhiijjkkllmmnnoo")
    rows = tuple(range(30))
    scores = Scores(correct, correct, zero, zero, zero, zero, letters, ("g",) * 30, rows, facts)
    found = attacks.Attacks({"none": scores}, (scores,), {}).accuracy("none")
    assert found == bootstrap(correct, clusters=np.array(facts), within=SHARE)
    assert found != bootstrap(correct, clusters=letters, within=SHARE)
