"""``mansu score`` measures the unedited and the edited model, in full precision and in NF4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mansu import cli, quant, tasks
from mansu.errors import MansuError
from mansu.job.runs import Run
from mansu.sets import score, tofu
from mansu.statistics import SHARE, bootstrap
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

COLOURS = [
    {
        "question": f"The colour of {name} is",
        "answer": colour,
        "paraphrased_answer": colour,
        "perturbed_answer": ["yellow", "brown"],
    }
    for name, colour in (("boben", "blue"), ("bodar", "black"), ("bofin", "purple"))
]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def edit(tiny: Subject) -> Edit:
    name = "model.layers.1.mlp.down_proj.weight"
    weight = tiny.parameters[name]
    return Edit.between(tiny.parameters, {name: weight + 0.5 * weight.abs().max()}, "shifted")


@pytest.fixture
def run(tiny: Subject, edit: Edit, tmp_path: Path) -> Run:
    made = Run.create(tiny, tasks.load("tiny-colours"), path=tmp_path / "run")
    made.save({"edit": edit}, "mansu")
    return made


def test_each_model_is_scored_by_the_measures_themselves(
    tiny: Subject, edit: Edit, tmp_path: Path
) -> None:
    sources = [
        lines(tmp_path / "forget10_perturbed.json", COLOURS),
        lines(tmp_path / "retain_perturbed.json", COLOURS[1:]),
        lines(tmp_path / "world_facts_perturbed.json", COLOURS[:2]),
    ]
    before = {n: p.clone() for n, p in tiny.parameters.items()}
    found = score.score(tiny, "tofu", sources, edit=edit, in_nf4=True, tokens=4)
    assert all(bool((p == before[n]).all()) for n, p in tiny.parameters.items())
    assert list(found["models"]) == ["unedited", "unedited NF4", "shifted", "shifted NF4"]
    sets = {name: tofu.read(s) for name, s in zip(("f", "r", "w"), sources, strict=True)}
    with edit.applied(tiny), quant.quantized(tiny):
        own = {n: tofu.scores(tiny, rows, world=n == "w", tokens=4) for n, rows in sets.items()}
    metrics = found["models"]["shifted NF4"]["metrics"]
    for measure in ("rouge", "probability", "truth_ratio"):
        within = None if measure == "truth_ratio" else SHARE
        expected = bootstrap(own["f"][measure], within=within).to_json()
        np.testing.assert_allclose(metrics[f"forget10_perturbed {measure}"], expected, rtol=1e-5)
    assert metrics["model utility"] == pytest.approx(tofu.utility({"r": own["r"], "w": own["w"]}))
    probabilities = [
        m["metrics"]["forget10_perturbed probability"][0] for m in found["models"].values()
    ]
    assert len(set(probabilities)) == 4  # four models, not one four times
    # A model beside itself cannot be told apart; the edited one can be told from nothing here.
    again = score.score(tiny, "tofu", sources, tokens=4, reference=found)
    quality = again["models"]["unedited"]["metrics"]["forget10_perturbed forget quality"]
    assert quality == pytest.approx(1)


def test_muse_is_scored_from_one_folder(tiny: Subject, tmp_path: Path) -> None:
    known = "The colour of boben is blue"
    lines(
        tmp_path / "verbmem" / "forget.json", [{"prompt": "The colour of boben is", "gt": "blue"}]
    )
    qa = [{"question": "The colour of boben is", "answer": "blue"}]
    for split in ("forget", "retain"):
        lines(tmp_path / "knowmem" / f"{split}_qa.json", qa)
        lines(tmp_path / "knowmem" / f"{split}_qa_icl.json", qa)
    lines(tmp_path / "privleak" / "forget.json", [{"text": known}])
    lines(tmp_path / "privleak" / "retain.json", [{"text": known}])
    lines(tmp_path / "privleak" / "holdout.json", [{"text": "blue is colour boben of The"}])
    found = score.score(tiny, "muse", [str(tmp_path)], tokens=4)
    metrics = found["models"]["unedited"]["metrics"]
    # The known sentence is more probable than the scrambled one: the AUC is 0, membership shows.
    assert metrics["AUC Min-40% forget, holdout"] == [0, 0, 0]
    assert metrics["PrivLeak %"] == [-100, -100, -100]
    assert set(metrics) >= {"VerbMem forget", "KnowMem forget", "KnowMem retain"}
    with pytest.raises(MansuError, match="MUSE takes one folder or hub id"):
        score.score(tiny, "muse", ["a", "b"])


def test_words_that_the_subject_cannot_read_are_said(tiny: Subject, tmp_path: Path) -> None:
    known = [{"question": "The colour of boben is", "choices": ["blue", "red", "white", "green"]}]
    strange = [
        {"question": "Who discovered osmium", "choices": ["Tennant", "Curie", "Bohr", "Lee"]}
    ]
    for rows, notes in ((known, 0), (strange, 1)):
        source = lines(tmp_path / f"wmdp-{notes}.jsonl", [{**row, "answer": 0} for row in rows])
        found = score.score(tiny, "wmdp", [source], form="cloze")["notes"]
        assert len(found) == notes
        assert all("of the words of wmdp-1 are not in the vocabulary of tiny" in n for n in found)


def test_files_of_one_name_are_both_scored(tiny: Subject, tmp_path: Path) -> None:
    row = {"question": "The colour of boben is", "choices": ["blue", "red", "white", "green"]}
    counts = {"A/test.jsonl": 4, "B/test.jsonl": 7, "C/test 2.jsonl": 1, "D/test.jsonl": 2}
    sources = [lines(tmp_path / f, [{**row, "answer": 0}] * n) for f, n in counts.items()]
    found = score.score(tiny, "mmlu", sources, form="cloze")["models"]["unedited"]
    rows = {part: len(measured["accuracy"]) for part, measured in found["rows"].items()}
    assert rows == {"test": 4, "test 2": 7, "test 2 2": 1, "test 3": 2}
    assert {f"{part} accuracy" for part in rows} <= found["metrics"].keys()
    pairs = [lines(tmp_path / f"{f}/forget.json", COLOURS[:n]) for f, n in (("A", 1), ("B", 2))]
    rows = score.score(tiny, "tofu", pairs, tokens=2)["models"]["unedited"]["rows"]
    assert {p: len(m["rouge"]) for p, m in rows.items()} == {"forget": 1, "forget 2": 2}


def test_the_command_scores_a_run_s_edit_and_saves_what_it_prints(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": r["question"], "choices": [r["answer"], "red", "white", "green"], "answer": 0}
        for r in COLOURS
    ]
    source = lines(tmp_path / "wmdp-chem.jsonl", rows)
    edited = ["--run", str(run.path), "--method", "mansu", "--nf4", "--form", "cloze"]
    assert cli.main(["score", source, "--set", "wmdp", *edited]) == 0
    shown = capsys.readouterr().out
    saved = json.loads((run.file("edit", "mansu").parent / "scores" / "wmdp.json").read_text())
    assert saved["method"] == "mansu" and saved["run"] == run.name and saved["form"] == "cloze"
    assert len(saved["models"]) == 4
    for model, found in saved["models"].items():
        value, low, high = found["metrics"]["wmdp-chem accuracy"]
        assert np.mean(found["rows"]["wmdp-chem"]["accuracy"]) == pytest.approx(value)
        assert model in shown and f"{value:.3f} [{low:.3f}, {high:.3f}]" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rows.jsonl", "--set", "gsm8k"], "Unknown set 'gsm8k': use one of wmdp, mmlu"),
        (["nowhere.json", "--set", "wmdp"], "There is no file 'nowhere.json'"),
        (["rows.jsonl", "--set", "wmdp"], "lacks the column 'choices'"),
        (["rows.jsonl", "--set", "tofu", "--method", "mansu"], "--method needs --run"),
        (["rows.jsonl", "--set", "tofu", "--reference", "other.json"], "is no result of"),
        (["rows.jsonl", "--set", "tofu", "--reference", "list.json"], "is no result of"),
        (["rows.jsonl", "--set", "tofu", "--reference", "odd.json"], "is no result of"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "rows.jsonl", [{"question": "The colour of boben is", "answer": "blue"}])
    (tmp_path / "other.json").write_text('{"set": "muse", "models": {}}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "odd.json").write_text('{"set": "tofu", "models": {"a": {"rows": 3}}}')
    assert cli.main(["score", *arguments, "--subject", "tiny"]) == 2
    shown = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mansu: ")]
    assert len(shown) == 1 and sentence in shown[0]
    assert not (tmp_path / "runs").exists()
