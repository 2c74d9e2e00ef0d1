"""Hold the verdict against edits of which it is known what they are.

::

    python -m experiments.calibration > docs/calibration.md
    python -m experiments.calibration --subject tiny           # half a minute

A measure that calls the model retrained without the facts unforgotten, or one that hides them
erased, is wrong, whatever it says of a method. Each control must fail the properties of
``MUST_FAIL`` and no more than it must: of the retrained model none. Below each model's table
stands what suppressors in its other layers show, beside the circuit ablated and MANSU's edit of the
example that ships.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.figures import commit
from mansu import api, subjects, tasks
from mansu.circuits.circuit import Circuit
from mansu.cli.commands import ending
from mansu.errors import BadInputError
from mansu.evidence.cad import PLACES, Signals, cad
from mansu.evidence.controls import KEPT_AT_MOST, Suppression, ablation, suppression
from mansu.evidence.relearning import gained, halves, relearning
from mansu.evidence.verdict import ABOUT, Name, Verdict, kept_groups
from mansu.job.runs import examples
from mansu.measure.scores import worst_nats
from mansu.methods.method import Problem
from mansu.methods.training import Batch, TrainingSettings, forget_and_retain, train
from mansu.show.numbers import NOTHING, measured
from mansu.show.table import Table
from mansu.subjects import shipped
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import CHANCE, Task

SUBJECTS = (subjects.TINY, subjects.DEFAULT)  # each on the task it starts with
REFUSALS = {subjects.TINY: "not"}
REFUSAL = " unknown"
"""What a model is trained to say instead of an answer, a word of its vocabulary."""

REFUSAL_RATE, TOY_REFUSAL_RATE, REFUSAL_STEPS = 2e-5, 1e-4, 400
MOVES = 20_000
"""Random moves, about as many as MANSU makes in the tiny subject."""

MUST_FAIL: Mapping[str, frozenset[Name]] = {
    "unedited": frozenset({"forgetting", "erasure"}),
    "random moves": frozenset({"forgetting", "erasure"}),
    "refusal": frozenset({"forgetting", "erasure"}),
    **{f"suppressor {place}": frozenset({"erasure"}) for place in PLACES},
    "retrained": frozenset(),
}
"""Control → what it must fail: it knows the facts as before, or only hides them. A refusal leaves
the order of the candidate answers."""

HEAD = """# What the verdict says of edits of which it is known what they are

Made by `python -m experiments.calibration`. What an edit must fail is in **bold**; the retrained
model must pass all. The check that decides stands behind each status.

What the worst kept group loses is given by layer in full precision, in results.md in the worse of
that and NF4. MANSU's edit is that of the example that ships; results.md's may be of another run."""
"""What stands above the tables."""


@dataclass(frozen=True)
class Calibrated:
    """A control, what the verdict says of it, and whether that is right."""

    control: str
    verdict: Verdict

    @property
    def right(self) -> str:
        """``yes``; ``no`` and what it passes though it must fail, or, the retrained model, fails;
        ``undecided`` and what is."""
        must = MUST_FAIL[self.control]
        asked = [p for p in self.verdict.properties if not must or p.name in must]
        wanted, opposite = ("failed", "passed") if must else ("passed", "failed")
        wrong = [p.title for p in asked if p.status == opposite]
        open_ = [p.title for p in asked if p.status not in (wanted, opposite)]
        if wrong:
            return f"no: {', '.join(wrong)}"
        return f"undecided: {', '.join(open_)}" if open_ else "yes"


def one_token(subject: Subject, word: str) -> int:
    """The token that a word is.

    Raises:
        BadInputError: it is no single one, or none that the subject's vocabulary has.
    """
    tokens = subject.tokenizer.encode(word, add_special_tokens=False)
    if subject.tokenizer.unk_token_id in tokens:
        raise BadInputError(
            f"The refusal {word!r} is not in the vocabulary of {subject.name}: choose another."
        )
    if len(tokens) != 1:
        raise BadInputError(
            f"The refusal {word!r} is {len(tokens)} tokens, not one: choose another."
        )
    return tokens[0]


def refusal(problem: Problem, word: str) -> Edit:
    """Fine-tune a model until it says one word after every forget prompt, and the rest as before.

    Raises:
        BadInputError: the word is no single token of the subject.
    """
    subject = problem.subject
    token = one_token(subject, word)

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        answer = torch.full_like(rows.forget.answer, token)
        refused = replace(rows, forget=replace(rows.forget, answer=answer))
        now, kept = forget_and_retain(subject, refused)
        yield from {"refusal": -now.mean(), **kept}.items()

    def refuses(step: int) -> bool:
        said = subject.next_token_logits(problem.forget.tokens, problem.forget.length).argmax(-1)
        return bool((said == token).all())

    rate = TOY_REFUSAL_RATE if subject.is_toy else REFUSAL_RATE
    settings = TrainingSettings(learning_rate=rate, steps=REFUSAL_STEPS)
    return train(replace(problem, watch=refuses), settings, loss).edit


def controls(subject: Subject, task: Task, word: str) -> Iterator[tuple[str, Edit]]:
    """Each control that there is for a subject and a task, by name, and its edit."""
    forget, retain = (tasks.examples(task, subject, split) for split in tasks.NEEDED)
    problem = Problem(subject, task, forget, retain, tasks.text(task, subject))
    yield "unedited", Edit({}, label="unedited")
    yield "random moves", api.unlearn(subject, task, method="random_moves", moves=MOVES)
    yield "refusal", refusal(problem, word)
    for place in PLACES:
        yield f"suppressor {place}", suppression(subject, forget, retain, place).reaching(CHANCE)
    yield from retrained(subject, task)


def retrained(subject: Subject, task: Task) -> Iterator[tuple[str, Edit]]:
    """The model trained without the facts, where one ships."""
    if (subject.name, task.name) in subjects.REFERENCES:
        yield "retrained", api.unlearn(subject, task, method="retrained")


def calibrate(subject: Subject, task: Task, circuit: Circuit, word: str) -> Iterator[Calibrated]:
    """Judge every control by a circuit of the task."""
    for name, edit in controls(subject, task, word):
        yield Calibrated(name, api.judge(subject, task, edit, circuit))


def hiding(subject: Subject, task: Task, circuit: Circuit) -> Iterator[tuple[str, Edit]]:
    """Suppressors by layer, at the forget accuracy of chance; and what they are to be told from:
    the circuit ablated, the model retrained and MANSU's edit, where they ship."""
    assert circuit.mask is not None
    forget, retain = (tasks.examples(task, subject, split) for split in tasks.NEEDED)
    last = int(subject.config.num_hidden_layers) - 1
    for layer in sorted({last * part // 8 for part in range(2, 9)}):
        made = Suppression(subject, forget, retain.some(KEPT_AT_MOST), layer=layer)
        yield f"suppressor in layer {layer}", made.reaching(CHANCE)
    yield "circuit ablated", ablation(subject, circuit.mask.tensors())
    yield from retrained(subject, task)
    for run in examples():
        if (run.fingerprint, run.task().digest) == (subject.fingerprint, task.digest):
            yield "MANSU", run.edit("mansu")


def by_layer(subject: Subject, task: Task, circuit: Circuit) -> Table:
    """What ``hiding`` shows: what it costs, its signal CAD, and what relearning brings back."""
    signals = Signals(subject, tasks.pairs(task, subject, n=circuit.n_pairs))
    on_circuit, halved = circuit.edge_mask, halves(task, subject)
    base, rows = kept_groups(api.evaluate(subject, task)), []
    edits = dict(hiding(subject, task, circuit))
    relearned = {name: relearning(subject, task, edit, halved) for name, edit in edits.items()}
    for name, edit in edits.items():
        after = api.evaluate(subject, task, edit)
        falls = {g: worst_nats(base[g], kept) for g, kept in kept_groups(after).items()}
        worst = max(falls, key=lambda group: falls[group])
        signal = cad(signals.base[:, on_circuit], signals.signal_of(edit).signal[:, on_circuit])
        mine, reference = relearned[name], relearned["circuit ablated"]
        cut = mine.cut_short or reference.cut_short
        above = NOTHING if cut else measured(gained(mine, reference), "share")
        print(f"{subject.name}, {name}: signal CAD {signal.value:.3f}", file=sys.stderr)
        rows.append(
            (
                name,
                f"{after.splits['forget'].accuracy:.1%}",
                f"{falls[worst]:.2f} ({worst})",
                measured(signal, "CAD"),
                NOTHING if mine.cut_short else f"{mine.curve[-1].accuracy:.1%}",
                "reference" if name == "circuit ablated" else above,
            )
        )
    titles = ("Edit", "Forget rows", "Worst kept group in full precision, nats", "Signal CAD")
    titles += ("Other half after relearning", "Above the reference's")
    return Table(titles, rows, align="<><>>>")


def table(found: Sequence[Calibrated]) -> Table:
    """A row a control: each property's status and the value of the check that decides it."""
    rows = []
    for one in found:
        cells = []
        for p in one.verdict.properties:
            must = p.name in MUST_FAIL[one.control]
            worst = p.worst
            said = "" if worst is None else f": {worst.what} {measured(worst.value, worst.unit)}"
            cells.append(f"{'**' if must else ''}{p.status}{'**' if must else ''}{said}")
        rows.append((one.control, *cells, one.right))
    titles = [ABOUT[name] for name in ABOUT]
    return Table(("Control", *titles, "As it must be"), rows, align="<<<<<<")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.calibration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--subject", choices=SUBJECTS, help="only on this model")
    parser.add_argument("--refusal", metavar="WORD", help="what a refusal says, one token")
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given)

    def work() -> int:
        print(HEAD)
        wrong = False
        for name in [args.subject] if args.subject else SUBJECTS:
            facts = shipped.TABLE[name].task
            subject, task = subjects.load(name), tasks.load(facts)
            found, word = [], args.refusal or REFUSALS.get(name, REFUSAL)
            one_token(subject, word)  # known before the work
            circuit = api.find_circuit(subject, task, api.attribute(subject, task))
            for one in calibrate(subject, task, circuit, word):
                found.append(one)
                print(f"{name}, {one.control}: {one.verdict.counts}", file=sys.stderr)
            wrong = wrong or any(one.right.startswith("no") for one in found)
            print(f"\n## {facts} on {name}\n\nAt commit {commit()}.", flush=True)
            print(f"\n{table(found).markdown()}", flush=True)
            layers = by_layer(subject, task, circuit).markdown()
            print(f"\n### Suppressors by layer\n\n{layers}", flush=True)
        return int(wrong)

    return ending("calibration", given, work)


if __name__ == "__main__":
    sys.exit(main())
