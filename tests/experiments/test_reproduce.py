"""The reproduction runs what its configuration lists, and its figures are the runs'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import reproduce, search, tables
from experiments.figures import NO_EDIT
from mansu import methods
from mansu.errors import MansuError
from mansu.job.runs import Run
from mansu.show.numbers import mark


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reproduction on the tiny subject, MANSU and one baseline."""
    path = tmp_path_factory.mktemp("reproduce")
    only = ["--subject", "tiny", "--method", "mansu", "--method", "graddiff"]
    assert reproduce.main([*only, "--folder", f"{path}/runs", "--to", f"{path}/to"]) == 0
    return path


def run_of(made: Path, method: str) -> Run:
    (path,) = (made / "runs").glob(f"*-{method}-*")
    return Run.open(path)


def test_the_figures_are_what_the_runs_measured(made: Path) -> None:
    found = json.loads((made / "to" / "reproduce.json").read_text())
    (about,) = found["runs"]
    assert list(about["methods"]) == [NO_EDIT, "mansu", "graddiff"]
    for name in ("mansu", "graddiff"):
        f, run = about["methods"][name], run_of(made, name)
        assert f["full"]["forget"][0] == run.measurement(name, nf4=False).splits["forget"].accuracy
        assert f["status"] == {p.name: p.status for p in run.verdict(name).properties}
        assert f["attacks"]["none"] == run.attacks(name).accuracy("none").to_json()
        assert f["codes changed"] == run.survival(name).quantized.share
        (row,) = [r for r in tables.intervals_table(about).rows if r[0] == name]
        for cell, p in zip(row[1:], run.verdict(name).properties, strict=True):
            assert cell == f"{p.worst} {mark(p.status)}"
    assert found["manifest"]["packages"]["torch"]
    assert found["manifest"]["command"].startswith(
        "python -m experiments.reproduce --subject tiny --method mansu --method graddiff --folder "
    )
    text = tables.report(found)
    assert "is a toy" in text and "Recovery attacks" in text
    for figures in about["methods"].values():
        figures["attacks"] = None
    assert "Recovery attacks" not in tables.report(found)
    assert "| mansu |" in text and "Every parameter that MANSU moves" in text


def test_what_is_done_is_not_done_again(made: Path) -> None:
    files = sorted((made / "runs").rglob("*.json"))
    before = {f: f.stat().st_mtime_ns for f in files}
    only = ["--subject", "tiny", "--method", "graddiff"]
    command = [*only, "--folder", f"{made}/runs", "--to", f"{made}/again"]
    assert reproduce.main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_earlier_figures_stay_and_say_how_they_were_made(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reproduce.json"
    earlier = json.loads((made / "to" / "reproduce.json").read_text())
    del earlier["runs"][0]["methods"]["graddiff"]
    earlier["runs"][0]["methods"]["npo"] = {**earlier["runs"][0]["methods"]["mansu"], "moved": 7}
    earlier["manifest"]["commit"] = "0123456789ab"
    earlier["runs"].append({**earlier["runs"][0], "name": "capitals-elsewhere"})
    path.write_text(json.dumps(earlier))
    command = ["--subject", "tiny", "--method", "mansu", "--folder", f"{made}/runs", "--add"]
    assert reproduce.main([*command, "--to", str(tmp_path)]) == 0
    ours, elsewhere = json.loads(path.read_text())["runs"]
    assert list(ours["methods"]) == [NO_EDIT, "mansu", "graddiff", "npo"]  # as ever
    assert "made" not in ours["methods"]["mansu"]  # measured anew
    assert ours["methods"]["npo"]["moved"] == 7
    assert ours["methods"]["npo"]["made"]["commit"] == "0123456789ab"
    assert elsewhere["name"] == "capitals-elsewhere"
    said = capsys.readouterr().out
    assert "Judged at commit 0123456789ab: on tiny-colours-tiny npo; on capitals-elsewhere " in said

    earlier["runs"][0]["methods"][NO_EDIT]["full"]["forget"] = [0.5, 0.4, 0.6]
    path.write_text(json.dumps(earlier))
    assert reproduce.main([*command, "--to", str(tmp_path)]) == 2
    assert "measure the unedited model otherwise" in capsys.readouterr().err
    assert json.loads(path.read_text()) == earlier

    del earlier["runs"][0]["methods"]["npo"]  # none is left of which nothing newer is known
    path.write_text(json.dumps(earlier))
    assert reproduce.main([*command, "--to", str(tmp_path)]) == 0
    ours, elsewhere = json.loads(path.read_text())["runs"]
    assert ours["methods"][NO_EDIT]["full"]["forget"] != [0.5, 0.4, 0.6]
    assert not any("made" in figures for figures in ours["methods"].values())
    assert elsewhere["name"] == "capitals-elsewhere"

    # Known before anything is run.
    nothing = ["--subject", "tiny", "--method", "mansu", "--folder", f"{tmp_path}/runs", "--add"]
    assert reproduce.main([*nothing, "--to", f"{tmp_path}/empty"]) == 2
    assert "reproduce.json" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "empty").exists()


def test_strengths_end_at_the_whole_edit(made: Path) -> None:
    for name in ("mansu", "graddiff"):
        run = run_of(made, name)
        points = run.strengths(name).points
        assert [p.strength for p in points] == pytest.approx([0.33, 0.67, 1.0])
        whole = run.measurement(name, nf4=False).splits["forget"]
        nf4 = run.measurement(name, nf4=True).splits["forget"]
        assert points[-1].forget == whole.accuracy
        assert points[-1].permanence == pytest.approx(
            whole.log_probability.mean() - nf4.log_probability.mean()
        )
        assert points[0].forgetting <= points[-1].forgetting + 0.05


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert reproduce.main(["--subject", "gpt-9", "--folder", str(tmp_path)]) == 2
    assert "No experiment is on that subject and task" in capsys.readouterr().err
    wrong = ["--subject", "tiny", "--task", "capitals"]
    assert reproduce.main([*wrong, "--folder", str(tmp_path)]) == 2
    assert "capitals on smollm2" in capsys.readouterr().err
    assert reproduce.main(["--method", "magic", "--folder", str(tmp_path)]) == 2
    alone = ["--subject", "tiny", "--method", "random_moves"]
    assert reproduce.main([*alone, "--folder", str(tmp_path)]) == 2
    assert "add --method mansu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_record_is_not_lost_for_one_of_nothing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made / "to" / "reproduce.json"
    before = record.read_bytes()
    only = ["--subject", "smollm2-135m-instruct", "--task", "capitals", "--method", "retrained"]
    for more in ([], ["--add"]):
        command = [*only, *more, "--folder", str(tmp_path / "none"), "--to", str(record.parent)]
        assert reproduce.main(command) == 2
        assert "No experiment on that subject and task is of retrained" in capsys.readouterr().err
    assert record.read_bytes() == before and not list(tmp_path.iterdir())
    experiments = reproduce.chosen(reproduce.configured(), "tiny", None)
    with pytest.raises(MansuError, match="Nothing was measured"):
        reproduce.measure(tmp_path, experiments, lambda units: None, ["mansu"])


def test_the_configuration_lists_every_task_and_method() -> None:
    found = reproduce.configured()
    names = ["tiny", "chemical", "capitals", "languages", "antonyms", "gemma", "gemma"]
    assert [e.name.split("-")[0] for e in found] == names
    assert found[0].methods == methods.ALL
    everywhere = tuple(name for name in methods.ALL if name != "retrained")  # ships for tiny only
    assert all(e.methods == everywhere for e in found[1:])
    assert all(set(e.attacked) <= {*e.methods} for e in found)


def test_a_subjects_own_settings_are_what_its_search_found() -> None:
    given = [
        (e.subject, name, dict(settings))
        for e in reproduce.configured()
        for name, settings in e.settings.items()
    ]
    records = {*search.RESULTS.glob("*/search-*.json")}
    records -= {search.record(search.RESULTS / "tiny", "mansu")}  # the default is another's
    assert records
    found = {search.record(search.RESULTS / subject, name) for subject, name, _ in given}
    assert found == records
    for subject, name, settings in given:
        record = json.loads(search.record(search.RESULTS / subject, name).read_text())
        limits = {limit: record[limit] for limit in ("margin", "tolerance")}
        best = search.best(record["tried"], **limits)
        assert record["subject"] == subject and record["best"] == best
        assert settings == {setting: best[setting] for setting in ("learning_rate", "steps")}


def test_a_subject_may_have_settings_of_its_own(tmp_path: Path) -> None:
    text = "[[experiments]]\nsubject = 'tiny'\ntask = 'tiny-colours'\n"
    (tmp_path / "config.toml").write_text(text + "settings.ga = {learning_rate = 0.5, steps = 3}\n")
    (found,) = reproduce.configured(tmp_path / "config.toml")
    given = {unit.method: unit.given for unit in found.units(["ga", "kl"])}
    assert given == {"ga": {"learning_rate": 0.5, "steps": 3}, "kl": {}}
    (control,) = found.units(["ga"], steps=4)
    assert control.given == {"learning_rate": 0.5, "steps": 4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("experiments = 3", "lists no experiments"),
        ("[[experiments]]\nsubject = 'tiny'", "'task'"),
        ("[[experiments]]\nsubject = 'tiny'\ntask = 'x'\nmethod = ['ga']", "unknown key 'method'"),
        ("[[experiments]]\nsubject = 'tiny'\ntask = 'x'\nmethods = ['magic']", "magic"),
        (
            "[[experiments]]\nsubject = 'tiny'\ntask = 'x'\nsettings = {ga = {speed = 1}}",
            "'speed' is no setting of ga",
        ),
        ("[[", "lists no experiments"),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(MansuError, match=sentence):
        reproduce.configured(tmp_path / "config.toml")
