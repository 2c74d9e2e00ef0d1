"""The table of seeds says what the runs hold; its units are those of the reproduction."""

import re

import pytest

from experiments import reproduce, seeds
from mansu.job.runs import EXAMPLES, Run
from mansu.methods import named
from scripts import readme


@pytest.mark.parametrize(("subject", "task", "methods"), seeds.PLANS)
def test_the_first_seed_is_what_the_reproduction_does(
    subject: str, task: str, methods: tuple[str, ...]
) -> None:
    (experiment, *_) = reproduce.chosen(reproduce.configured(), subject, task)
    ours = {u.id for u in seeds.planned(subject, task, methods) if u.run["seed"] == 0}
    assert ours == {u.id for u in experiment.units(methods)}


@pytest.mark.parametrize(
    "what",
    [
        ("--subject", "tiny", "--task", "antonyms"),
        ("--task", "gemma-symbols", "--method", "mansu", "--method", "kl"),
    ],
)
def test_what_is_not_planned_is_refused(
    what: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        seeds.main([*what])
    assert "not all of that is planned" in capsys.readouterr().err


def test_the_document_says_what_its_tables_are_and_of_which_commit() -> None:
    head, *tables = (readme.ROOT / "docs" / "seeds.md").read_text(encoding="utf-8").split("\n\n## ")
    assert head == seeds.HEAD
    for text, (subject, task, methods) in zip(tables, seeds.PLANS, strict=True):
        assert re.match(rf"{task} on {subject}\n\nAt commit [0-9a-f]{{8,}}\+?\.\n\n\| Method", text)
        assert re.findall(r"^\| ([^|]+) \| 3 \|", text, re.M) == [named(m).title for m in methods]


def test_a_row_has_the_mean_the_least_and_the_most() -> None:
    run = Run.open(EXAMPLES / "tiny-colours")
    found = seeds.table(
        {"mansu": [(run, "mansu"), (run, "graddiff")], "graddiff": [(run, "mansu")]}
    )
    both, alone = found.rows
    full = [100 * run.measurement(e, nf4=False).splits["forget"].accuracy for e in run.edits()]
    low, high = sorted(full)
    assert both[1] == "2"
    assert both[2].startswith(f"{sum(full) / 2:.0f} [{low:.0f}, {high:.0f}] / ")
    assert "[" not in alone[2]
    status = run.verdict("mansu").gap.status
    assert found.columns["PTQ gap ≤ 0"][1] == f"1 {seeds.mark(status)}"
