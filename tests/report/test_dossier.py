"""The dossier: whole, from one file, without a word from outside, and repeatable."""

from __future__ import annotations

import json
import re
import shlex
from codecs import BOM_UTF8
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from disks import limited
from made import changed, run_of

from mansu.circuits.diff import diff
from mansu.cli.commands import main, parser
from mansu.errors import BadInputError, DamagedError, StorageError
from mansu.evidence.attacks import Attacks
from mansu.evidence.review import Review
from mansu.evidence.verdict import ABOUT
from mansu.job import names
from mansu.job.runs import Run, examples
from mansu.measure.scores import Measurement, measure_task
from mansu.report import svg
from mansu.report.changes import Changes, Edge, changes, edges_table, sentence
from mansu.report.dossier import (
    Dossier,
    accuracy_table,
    differences,
    dossier,
    failing,
    remarks,
    review_of,
    schema,
    thresholds_table,
)
from mansu.report.flips import counts, flips
from mansu.report.page import page
from mansu.show.numbers import percent
from mansu.show.sentences import capitalised
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

ROOT = Path(__file__).parents[2]
HOSTILE = '</td><script src="http://x/y.js">alert(1)</script><img src=http://x/z onerror=1>'

SIGNED = {"decision": "rejected", "name": HOSTILE, "date": "2026-11-26", "seen": "unknown"}


@pytest.fixture(scope="module")
def base(tiny: Subject, tiny_task: Task) -> Measurement:
    return measure_task(tiny, tiny_task)


@pytest.fixture
def run(tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement) -> Run:
    hostile = replace(tiny_task, title=HOSTILE, provenance=HOSTILE)
    edited = changed(base, forget={"correct": 0.0}, paraphrase={"correct": 0.0})
    return run_of(tmp_path / "run", tiny, hostile, base, {"mansu": edited, "ga": base})


def signed(run: Run, **changes: object) -> Review:
    return Review(**{**SIGNED, "notes": {"gap": HOSTILE}, **changes})  # type: ignore[arg-type]


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_is_read_as_it_was_written_and_to_its_schema(run: Run, tmp_path: Path) -> None:
    run.save({"review": signed(run)}, "mansu")
    made = dossier(run, "mansu", {"nats": 0.5})
    made.save(tmp_path / "d.html")
    read = Dossier.load(tmp_path / "d.json")
    assert read.to_json() == made.to_json()
    assert read.judged == made.judged and read.signed == signed(run)
    jsonschema.validate(read.to_json(), schema())
    published = json.loads((ROOT / "docs" / "dossier.schema.json").read_text(encoding="utf-8"))
    assert published == schema()  # else: mansu dossier --schema > docs/dossier.schema.json
    assert (tmp_path / "d.html").read_text(encoding="utf-8") == page(read)


def test_page_and_json_are_both_written_or_neither(run: Run, tmp_path: Path) -> None:
    made, place = dossier(run, "mansu"), tmp_path / "there" / "d.html"
    made.save(place)
    before = {p: p.read_bytes() for p in place.parent.iterdir()}
    sizes = {p.suffix: len(data) for p, data in before.items()}
    assert sizes[".html"] < sizes[".json"]
    with limited(sizes[".json"] - 1), pytest.raises(StorageError):
        made.save(place)
    assert {p: p.read_bytes() for p in place.parent.iterdir()} == before


@pytest.mark.parametrize("text", ['{"facts": 3}', "[1, 2]", "no JSON"])
def test_no_other_json_is_lost_for_a_dossiers(
    run: Run, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.json").write_text(text)
    place, found = tmp_path / "tasks.html", dossier(run, "mansu")
    with pytest.raises(BadInputError, match="is no dossier's: give the page another name"):
        found.save(place)
    assert main(["dossier", str(run.path), "--method", "mansu", "--to", str(place)]) == 2
    assert "is no dossier's" in capsys.readouterr().err
    assert (tmp_path / "tasks.json").read_text() == text and not place.exists()


def test_the_page_asks_for_nothing_and_runs_nothing(run: Run) -> None:
    run.save({"review": signed(run)}, "mansu")
    text = page(dossier(run, "mansu"))
    elements = Elements(text).found
    tags = {tag for tag, _ in elements}
    assert {"svg", "table", "h1", "figure"} <= tags
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    names = {name for _, attributes in elements for name in attributes}
    assert not {n for n in names if n.startswith("on") or n in ("src", "href", "srcset", "action")}
    assert "url(" not in text and "@import" not in text
    assert "&lt;script" in text  # what was hostile is shown
    levels = [int(tag[1]) for tag in (t for t, _ in elements) if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_settings_of_the_run_and_of_the_method_that_share_a_name_are_both_told() -> None:
    """Both have "steps": integrated gradients' in the run, the edit's in the method."""
    (run,) = (run for run in examples() if run.name == "chemical-symbols")
    made = dossier(run, "mansu")
    of_run, of_method = made.about.run_settings["steps"], made.about.settings["steps"]
    assert of_run != of_method
    settings = page(made).partition("<summary>Settings</summary>")[2].partition("</details>")[0]
    parts = {part.partition("</h3>")[0]: part for part in settings.split("<h3>")[1:]}
    for title, steps in (("Run", of_run), ("Method", of_method)):
        assert re.findall(r">steps</th><td [^>]*>(\d+)</td>", parts[title]) == [str(steps)]


def test_thresholds_that_were_moved_are_marked(run: Run) -> None:
    plain, moved = dossier(run, "mansu"), dossier(run, "mansu", {"nats": 0.5})
    assert plain.original is None and "moved thresholds" not in page(plain)
    assert moved.original == plain.verdict and "moved thresholds" in page(moved)
    marks = [(row[0], row[3]) for row in thresholds_table(moved).rows if row[3] == "MOVED"]
    assert len(marks) == 1 and "log-probability" in marks[0][0]
    with pytest.raises(BadInputError, match="nonsense"):
        dossier(run, "mansu", {"nonsense": 1.0})


def test_a_moved_threshold_is_told_beside_the_verdict(run: Run) -> None:
    made = dossier(run, "mansu", {"nats": 0.5})
    (said,) = (line for line in page(made).splitlines() if "Judged by moved thresholds" in line)
    assert "log-probability, at most 0.500 nats (originally 0.100 nats)" in said
    assert said.count("originally") == 1


@pytest.mark.parametrize(
    ("name", "method"),
    [("tiny-colours", "graddiff"), ("chemical-symbols", "mansu_no_floor")],
)
def test_every_fact_that_fails_stands_under_what_became_of_it(name: str, method: str) -> None:
    (example,) = (each for each in examples() if each.name == name)
    made = dossier(example, method)
    listed: dict[str, list[str]] = {}
    for part in page(made).split("<h3>")[1:]:
        title, _, body = part.partition("</h3>")
        lines = re.findall(r"<li>(.*?)</li>", body.partition("</section>")[0])
        listed.setdefault(title.partition(":")[0], []).extend(lines)
    for kind in failing(made):
        facts = [f for f in made.facts if f.kind == kind]
        assert len({f.path for f in facts}) == 1 and facts[0].path in page(made)
        shown = [line.replace("&nbsp;", " ") for line in listed[capitalised(kind)]]
        assert sorted(shown) == sorted(escape(f"{f.prompt} →{f.answer}") for f in facts)


def test_every_fact_is_followed_through_the_models(
    tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement
) -> None:
    forget, retain = base.splits["forget"], base.splits["retain"]
    assert (forget.correct == 1).all() and (retain.correct == 1).all()
    full = changed(base, forget={"correct": 0.0})
    back = forget.correct * (np.arange(len(forget.rows)) == 3)
    lost = np.where(np.arange(len(retain.rows)) == 5, 0.5, 1.0)  # a tie is not right
    retained = replace(retain, correct=lost, margin=2.0 * lost - 1)
    full = replace(full, splits={**full.splits, "retain": retained})
    nf4 = {**full.splits, "forget": replace(forget, correct=back, margin=2.0 * back - 1)}
    run = run_of(tmp_path / "flips", tiny, tiny_task, base, {"mansu": full})
    run.save({"nf4": replace(full, splits=nf4)}, "mansu")
    found = {flip.row: flip for flip in flips(run, "mansu")}
    assert [row for row, f in found.items() if f.kind == "back in NF4"] == [forget.rows[3]]
    assert [row for row, f in found.items() if f.kind == "lost"] == [retain.rows[5]]
    flip = found[forget.rows[3]]
    assert flip.path == "right → wrong → right"
    assert flip.prompt == tiny_task.facts[flip.row - 1].prompt
    rows = sum(len(s.rows) for s in base.splits.values())
    assert sum(counts(found.values()).values()) == rows == len(found)


def test_every_command_is_one_of_the_command_line_s(run: Run, tmp_path: Path) -> None:
    commands = dossier(run, "mansu", {"nats": 0.5}).commands
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "mansu"
        options = parser(words[1:]).parse_args(words[1:])  # it exits where it does not know one
        assert options.function
        assert str(tmp_path) not in command
    assert "--threshold nats=0.5" in commands[-1]


def test_the_path_of_a_subject_s_folder_is_not_told(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "somebody" / "model"
    manifest = {**run.manifest, "subject": str(home)}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    text = json.dumps(dossier(Run.open(run.path), "mansu").to_json())
    assert str(tmp_path) not in text and '"subject": "model"' in text


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"about": None},
        {"facts": [{"row": "1"}]},
        {"verdict": {}},
        {"more": 1},
        {"review": {"decision": "maybe"}},
        {"review": {**SIGNED, "thresholds": {"nats": "much"}}},
        {"review": {**SIGNED, "notes": 3}},
        {"review": {**SIGNED, "statuses": [], "files": {}}},
        {"review": {**SIGNED, "statuses": dict.fromkeys(ABOUT, "failed"), "files": ["x"]}},
        {"thresholds": {}},
        {"originals": {"margin": 0.5, "tolerance": 7.0}},
        {"accuracies": {"Forget": [[1.0, 0.5]]}},
        {"accuracies": {"Forget": [[]]}},
    ],
)
def test_what_is_no_dossier_is_refused(run: Run, change: dict[str, object]) -> None:
    whole = dossier(run, "mansu").to_json()
    assert Dossier.from_json(json.dumps(whole)).about.run == run.name
    assert Dossier.from_json(BOM_UTF8 + json.dumps(whole).encode()).about.run == run.name
    with pytest.raises(DamagedError):
        Dossier.from_json(json.dumps({**whole, **change}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"version": NaN}', "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(DamagedError, match="no dossier"):
        Dossier.from_json(text)


def test_whoever_reads_a_signature_knows_by_what_it_was_made(run: Run) -> None:
    assert remarks(dossier(run, "mansu")) == []
    run.save({"review": signed(run, decision="accepted", thresholds={"nats": 0.5})}, "mansu")
    made = dossier(run, "mansu")
    assert made.status != "passed" != made.judged.status
    said = " ".join(remarks(made))
    assert f"although the verdict is {made.status}" in said and "0.500 nats (orig" in said
    assert all(escape(remark) in page(made) for remark in remarks(made))
    run.save({"review": review_of(made, "rejected", "Ada", {})}, "mansu")
    assert remarks(dossier(run, "mansu")) == []


def test_thresholds_other_than_the_signer_s_are_told(run: Run) -> None:
    away = {"drift": 0.0}
    first, moved = dossier(run, "mansu"), dossier(run, "mansu", away)
    assert first.judged.retention.status != moved.judged.retention.status
    run.save({"review": review_of(first, "rejected", "Rita", {})}, "mansu")
    (whole, by, were) = remarks(dossier(run, "mansu", away))
    assert whole == f"It was signed when the verdict was {first.status}."
    assert by == "It was signed by the original thresholds; the verdict here is by others."
    assert were == (
        f"It was signed when retain preservation was {first.judged.retention.status} (here "
        f"{moved.judged.retention.status})."
    )
    run.save({"review": review_of(moved, "rejected", "Rita", {})}, "mansu")
    (_, by, _) = remarks(dossier(run, "mansu"))
    assert by.startswith("It was signed by moved thresholds: drift on text, at most 0.000 nats")
    assert by.endswith("; the verdict here is by others.")
    (by,) = remarks(dossier(run, "mansu", away))
    assert by.startswith("It was signed by moved thresholds") and "others" not in by


def test_evidence_that_its_signer_did_not_see_is_told(run: Run, base: Measurement) -> None:
    """Another edit's is not, nor the same made anew, nor what is no measurement."""

    def said() -> list[str]:
        return remarks(Dossier.from_json(json.dumps(dossier(run, "mansu").to_json())))

    run.save({"review": review_of(dossier(run, "mansu"), "rejected", "Rita", {})}, "mansu")
    scores = {kind: base.splits["forget"] for kind in ("none", "relearning")}
    tried = Attacks(scores, (scores["none"],), {})
    full, nf4 = (run.measurement("mansu", nf4=nf4) for nf4 in (False, True))
    run.save({"full": full, "nf4": nf4}, "mansu")
    run.save({"base_attacks": tried, "timings": {"attacks": 1.0}})
    run.save({"attacks": tried}, "ga")
    run.save({"verdict": dossier(run, "mansu").judged}, "mansu")
    assert said() == []
    run.save({"attacks": tried}, "mansu")
    assert said() == ["The evidence has changed since it was signed (new: recovery attacks)."]
    run.file("survival", "mansu").unlink(missing_ok=True)
    run.save({"nf4": replace(full, drift=(0.02,) * 8)}, "mansu")
    assert "(new: recovery attacks; changed: measurement in NF4)" in said()[-1]
    run.save({"review": review_of(dossier(run, "mansu"), "rejected", "Rita", {})}, "mansu")
    run.file("attacks", "mansu").unlink()
    assert said() == ["The evidence has changed since it was signed (gone: recovery attacks)."]


def test_an_edit_s_other_name_is_no_other_evidence(run: Run) -> None:
    told, base = replace(run.edit("ga"), meta={"method": "mansu"}), run.base(nf4=False)
    run.save({"edit": told, "full": base, "nf4": base}, "mansu")
    run.save({"review": review_of(dossier(run, "mansu"), "rejected", "Rita", {})}, "mansu")
    names.rename(run, "mansu", "mansu-slow")
    assert remarks(dossier(run, "mansu-slow")) == []


def test_of_an_earlier_mansu_s_review_nothing_is_known(run: Run) -> None:
    """Its file is read as ever."""
    run.save({"review": signed(run, seen=dossier(run, "mansu").status)}, "mansu")
    file, new = run.file("review", "mansu"), ("statuses", "files", "digest of the rest")
    file.write_text(
        json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in new})
    )
    made = dossier(run, "mansu")
    assert made.signed is not None and made.signed.statuses is made.signed.files is None
    (said,) = remarks(made)
    assert "an earlier MANSU" in said and "is unknown" in said and said in page(made)


def test_a_review_goes_with_its_edit(run: Run) -> None:
    review = signed(run)
    run.save({"review": review}, "mansu")
    assert run.read("review", "mansu") == review
    run.save({"edit": run.edit("ga")}, "mansu")  # another edit: nobody has signed that
    assert not run.has("review", "mansu")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"decision": "maybe"}, "no decision"),
        ({"name": " "}, "needs a name"),
        ({"date": "yesterday"}, "no date"),
        ({"notes": {"beauty": "x"}}, "no property"),
        ({"notes": {"gap": "x" * 5001}}, "too long"),
        ({"seen": "fine"}, "no status"),
        ({"statuses": {"gap": "failed"}}, "one of each"),
        ({"statuses": dict.fromkeys(ABOUT, "fine")}, "one of each"),
    ],
)
def test_a_review_that_says_nothing_is_refused(
    run: Run, change: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        signed(run, **change)


def test_two_dossiers_are_compared_line_by_line(run: Run) -> None:
    one, other = dossier(run, "mansu"), dossier(run, "ga", {"nats": 0.5})
    marks = {row[0]: row[3] for row in differences(one, other).rows}
    assert marks["Method"] == "differs" and marks["Fingerprint"] == ""
    assert marks["Fall of kept log-probability, at most"] == "differs"
    assert marks["Drift on text, at most"] == ""
    assert len([name for name in marks if name.lower() in ABOUT.values()]) >= 3
    assert not any(row[3] for row in differences(one, one).rows)


def test_relearning_that_was_cut_short_is_said() -> None:
    found = dossier(examples()[0], "mansu")
    assert found.attacks is not None
    base, edited = found.attacks["relearning"]
    rest = {attack: both for attack, both in found.attacks.items() if attack != "relearning"}
    for both, cut in (((base, edited), ""), ((base, None), "b"), ((None, edited), "a")):
        said = page(replace(found, attacks={**rest, "relearning": both}))
        assert ("Relearning of the unedited model ended early" in said) == (cut == "a")
        assert ("Relearning of this edit ended early" in said) == (cut == "b")
    assert page(replace(found, attacks=rest)).count("ended early") == 2


def test_which_rows_the_attacks_ask_is_said() -> None:
    """Without an attack it is another accuracy than that of all forget rows, a section above."""
    (run,) = (run for run in examples() if run.name == "chemical-symbols")
    made = dossier(run, "mansu")
    asked = len(run.attacks("mansu").scores["none"].rows)
    assert f"half that the attacker does not know: {asked} rows; so" in page(made)
    whole = made.to_json()
    jsonschema.validate(whole, schema())
    assert Dossier.from_json(json.dumps(whole)).attacked == asked
    old = {k: v for k, v in whole.items() if k != "attacked"}  # of an earlier MANSU
    assert "half that the attacker does not know; so" in page(Dossier.from_json(json.dumps(old)))


def test_a_set_of_one_fact_alone_has_no_interval(
    tmp_path: Path, tiny: Subject, tiny_task: Task, base: Measurement
) -> None:
    held = base.splits["holdout"]
    one = replace(held, facts=("the one",) * len(held.rows))
    alone = Measurement({**base.splits, "holdout": one}, base.text_loss, (0.01,) * 8)
    made = dossier(run_of(tmp_path / "one", tiny, tiny_task, alone, {"mansu": alone}), "mansu")
    read = Dossier.from_json(json.dumps(made.to_json()))
    (row,) = [row for row in accuracy_table(read).rows if row[0].startswith("Held out")]
    assert row[1:] == (f"{percent(held.accuracy)} (one fact alone)",) * 4
    (other,) = [row for row in accuracy_table(read).rows if row[0].startswith("Paraphrase")]
    assert "[" in other[1]


def test_what_is_left_in_nf4_was_in_the_circuit() -> None:
    """New edges are counted apart, and what is gone only in NF4 is not said to be the edit's."""
    (run,) = (run for run in examples() if run.name == "chemical-symbols")
    found = changes(run, "mansu")
    assert found is not None
    before, full, nf4 = diff(run.circuit(), run.edge_scores("mansu")).member.T
    left, new = int((before & nf4).sum()), int((~before & nf4).sum())
    text = sentence(found)
    assert (left, new, int((before & full & ~nf4).sum())) == (147, 24, 35)
    assert f"In NF4 {left} of them are left, beside {new} new edges; 31 are new" in text
    assert "533 are gone in NF4 (by the edit, or by NF4 alone)" in text and "171" not in text


def test_an_edge_that_is_all_but_gone_or_reversed_is_not_only_kept() -> None:
    """By the definition again, of the scores: the strongest edge of all keeps none of its own."""
    (run,) = (run for run in examples() if run.name == "chemical-symbols")
    found, of = changes(run, "mansu"), diff(run.circuit(), run.edge_scores("mansu"))
    assert found is not None
    shares = of.scores[:, 1:] / of.scores[:, :1]
    there = of.member[:, :1] & of.member[:, 2:] & of.member[:, 1:]
    weak = (there & (shares < 0.1)).any(1)
    assert found.weak == int(weak.sum()) == 61
    assert "Of the 147 that are left, 61 are weakened or reversed" in sentence(found)
    assert all((" but " in e.fate) == (_left(e) < 0.1) for e in found.edges)
    strongest = max(found.edges, key=lambda edge: edge.strength)
    assert strongest.change == "kept" and strongest.fate == "kept, but reversed"
    assert ("Kept, but reversed", "embed → m0") in [row[:2] for row in edges_table(found).rows]
    assert strongest.drawn < 0.01 * strongest.strength  # nor is it the thickest line
    lines = re.findall(r'stroke-width="([\d.]+)"[^>]*><title>([^<]*)', svg.circuit(found))
    (width,) = (float(width) for width, told in lines if told.startswith("embed → m0:"))
    assert width < max(float(width) for width, _ in lines) / 2
    old = {k: v for k, v in asdict(found).items() if k != "weak"}
    assert "weakened" not in sentence(Changes(**old))  # a dossier of before does not know


def _left(edge: Edge) -> float:
    before, *after = edge.scores
    if edge.change in ("gone", "new"):
        return 1.0
    return min(score / before for score in (after if edge.change == "kept" else after[1:]))


def test_it_shows_what_is_left_of_the_circuit() -> None:
    (run,) = (run for run in examples() if run.name == "tiny-colours")
    made = dossier(run, "graddiff")
    found, of = made.circuit, diff(run.circuit(), run.edge_scores("graddiff"))
    assert found is not None
    assert found.counts == of.counts() and list(found.sizes) == of.member.sum(0).tolist()
    assert sorted(edge.change for edge in found.edges) == sorted(of.changes)
    pairs = {(edge.nodes[0], target) for edge in found.edges for target in edge.nodes[1:]}
    assert Dossier.from_json(json.dumps(made.to_json())).circuit == found
    jsonschema.validate(made.to_json(), schema())
    text = page(made)
    lines = [a for tag, a in Elements(text).found if tag == "path" and a.get("fill") == "none"]
    assert len(lines) == len(pairs)
    assert "8 edges 0 are kept, 0 are gone after the edit but back after NF4, and 8 are" in text
    strongest = max((e for e in found.edges if e.change == "gone"), key=lambda e: e.strength)
    assert escape(f"{strongest.source} → {strongest.destination}") in text
    old = {k: v for k, v in made.to_json().items() if k != "circuit"}  # of an earlier MANSU
    assert Dossier.from_json(json.dumps(old)).circuit is None
