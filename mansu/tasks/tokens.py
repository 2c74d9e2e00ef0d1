"""A task as one subject's tokens: examples to score, clean–corrupt pairs to attribute."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.subjects.subject import Subject
from mansu.tasks.facts import N_DISTRACTORS, NEEDED, Fact, Task


@dataclass(frozen=True)
class Examples:
    """One split, tokenised for one subject (N rows, T positions, right-padded).

    Attributes:
        tokens: int64 ``[N, T]``; length: int64 ``[N]``; answer: int64 ``[N]``.
        distractors: int64 ``[N, 3]``, wrong answers for 4-way multiple choice.
        candidates: bool ``[N, C]`` over ``vocabulary``: the answers of the row's own group.
        vocabulary: int64 ``[C]``, every distinct answer token of the split.
        rows: line numbers in the task file. groups: each row's group.
        notes: what was left out and why, a sentence each.
        facts: the fact that each row asks for; empty where the answers say it.
    """

    tokens: Tensor
    length: Tensor
    answer: Tensor
    distractors: Tensor
    candidates: Tensor
    vocabulary: Tensor
    rows: tuple[int, ...]
    groups: tuple[str, ...]
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Sequence[int]) -> Examples:
        """The same examples at ``indices`` only."""
        i = torch.as_tensor(list(indices), dtype=torch.long)
        length = self.length[i]
        width = int(length.max()) if len(i) else 0
        return Examples(
            self.tokens[i][:, :width],
            length,
            self.answer[i],
            self.distractors[i],
            self.candidates[i],
            self.vocabulary,
            tuple(self.rows[int(k)] for k in i),
            tuple(self.groups[int(k)] for k in i),
            self.notes,
            tuple(self.facts[int(k)] for k in i) if self.facts else (),
        )


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt prompts of equal token length, for attribution.

    Attributes:
        clean, corrupt: int64 ``[N, T]`` right-padded; length: int64 ``[N]``, the same for both.
        answer: int64 ``[N]``, the clean prompt's answer; foil: int64 ``[N]``, the corrupt one's.
        rows: line numbers in the task file. notes: what was left out and why.
    """

    clean: Tensor
    corrupt: Tensor
    length: Tensor
    answer: Tensor
    foil: Tensor
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Tensor | Sequence[int]) -> Pairs:
        """The same pairs at ``indices`` only (repeats allowed)."""
        i = torch.as_tensor(indices, dtype=torch.long)
        length = self.length[i]
        width = int(length.max()) if len(i) else 0
        return Pairs(
            self.clean[i][:, :width],
            self.corrupt[i][:, :width],
            length,
            self.answer[i],
            self.foil[i],
            tuple(self.rows[int(k)] for k in i),
            self.notes,
        )


def examples(task: Task, subject: Subject, split: str, *, seed: int = 0) -> Examples:
    """Tokenise one split. Rows whose answer is not one token are left out and noted.

    Distractors, where a row gives none, are drawn (seeded) from the other answers of its group.

    Raises:
        MansuError: no row of the forget or retain set can be used.
    """
    usable, notes = _one_token(task.split(split), subject)
    answers: dict[str, set[int]] = defaultdict(set)
    for fact, answer in usable:
        answers[fact.group].add(answer)
    rng = random.Random(seed)
    kept, tokens, distractors, few = [], [], [], []
    for fact, answer in usable:
        wrong = [subject.encode(d) for d in fact.distractors]
        given = list(dict.fromkeys(w[0] for w in wrong if len(w) == 1 and w[0] != answer))
        pool = sorted(answers[fact.group] - {answer} - set(given))
        missing = N_DISTRACTORS - len(given)
        if missing > len(pool):
            few.append(fact.row)
            continue
        distractors.append(given[:N_DISTRACTORS] + rng.sample(pool, max(missing, 0)))
        kept.append((fact, answer))
        tokens.append(subject.encode(fact.prompt))
    if few:
        notes.append(
            f"{_rows(few)} left out of {split}: fewer than {N_DISTRACTORS} one-token wrong "
            "answers; give distractors."
        )
    if not kept and split in NEEDED:
        raise MansuError(f"The task {task.name!r} has no usable {split} row. {' '.join(notes)}")
    padded, length = pad(tokens)
    vocabulary = sorted({answer for _, answer in kept})
    candidates = torch.tensor(
        [[v in answers[fact.group] for v in vocabulary] for fact, _ in kept], dtype=torch.bool
    ).reshape(len(kept), len(vocabulary))
    return Examples(
        tokens=padded,
        length=length,
        answer=torch.tensor([a for _, a in kept], dtype=torch.long),
        distractors=torch.tensor(distractors, dtype=torch.long).reshape(-1, N_DISTRACTORS),
        candidates=candidates,
        vocabulary=torch.tensor(vocabulary, dtype=torch.long),
        rows=tuple(f.row for f, _ in kept),
        groups=tuple(f.group for f, _ in kept),
        notes=tuple(notes),
        facts=(tuple(f.fact or f.answer for f, _ in kept) if any(f.fact for f, _ in kept) else ()),
    )


def text(task: Task, subject: Subject, *, positions: int = 32) -> tuple[Tensor, Tensor]:
    """The task's plain text as (tokens ``[N, T]``, length ``[N]``), cut at ``positions``."""
    return pad([subject.encode(f.prompt)[:positions] for f in task.split("text")])


def pairs(
    task: Task, subject: Subject, *, n: int | None = None, seed: int = 0, split: str = "forget"
) -> Pairs:
    """Clean–corrupt pairs of equal token length.

    A row's own ``corrupt_prompt`` is used where it has the same length; else (and noted) the
    subject is swapped: the corrupt prompt is another row of the group with the same length, another
    answer, and the most tokens in common. Rows that cannot be aligned are noted by line number.

    Args:
        n: keep this many, drawn with ``seed``, in file order.

    Raises:
        MansuError: no row can be paired.
    """
    usable, notes = _one_token(task.split(split), subject)
    encoded = [(fact, answer, tuple(subject.encode(fact.prompt))) for fact, answer in usable]
    buckets: dict[tuple[str, int], list[tuple[Fact, int, tuple[int, ...]]]] = defaultdict(list)
    for item in encoded:
        buckets[item[0].group, len(item[2])].append(item)
    rng = random.Random(seed)
    found: list[tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = []
    unaligned, swapped = [], []
    for fact, answer, clean in encoded:
        partner = own = _own_corrupt(fact, answer, clean, subject)
        if own is None:
            bucket = buckets[fact.group, len(clean)]
            others = [o for o in bucket if o[1] != answer and o[2] != clean]
            rng.shuffle(others)
            best = max(
                others,
                key=lambda o: sum(a == b for a, b in zip(o[2], clean, strict=True)),
                default=None,
            )
            partner = None if best is None else (best[2], best[1])
        if partner is None:
            unaligned.append(fact.row)
        else:
            found.append((clean, partner[0], answer, partner[1], fact.row))
            if own is None and fact.corrupt_prompt is not None:
                swapped.append(fact.row)
    if swapped:
        notes.append(
            f"{_rows(swapped)} paired with another row of the task instead of the corrupt_prompt "
            "given, which is not of the prompt's token length or has no one-token foil."
        )
    if unaligned:
        notes.append(
            f"{_rows(unaligned)} left out of attribution: no prompt of equal token length with "
            "another answer; give corrupt_prompt."
        )
    if not found:
        raise MansuError(
            f"The task {task.name!r} has no clean–corrupt pair of equal token length. "
            f"{' '.join(notes)}"
        )
    if n is not None and n < len(found):
        found = [found[i] for i in sorted(rng.sample(range(len(found)), n))]
    clean, length = pad([list(f[0]) for f in found])
    corrupt, _ = pad([list(f[1]) for f in found])
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        length=length,
        answer=torch.tensor([f[2] for f in found]),
        foil=torch.tensor([f[3] for f in found]),
        rows=tuple(f[4] for f in found),
        notes=tuple(notes),
    )


def _own_corrupt(
    fact: Fact, answer: int, clean: tuple[int, ...], subject: Subject
) -> tuple[tuple[int, ...], int] | None:
    if fact.corrupt_prompt is None:
        return None
    corrupt = tuple(subject.encode(fact.corrupt_prompt))
    foils = [fact.foil] if fact.foil else list(fact.distractors)
    tokens = [t[0] for t in map(subject.encode, foils) if len(t) == 1 and t[0] != answer]
    if len(corrupt) != len(clean) or not tokens:
        return None
    return corrupt, tokens[0]


def _one_token(facts: Sequence[Fact], subject: Subject) -> tuple[list[tuple[Fact, int]], list[str]]:
    """The facts whose answer is one token, with it, and a note on those left out."""
    kept, long = [], []
    for fact in facts:
        answer = subject.encode(fact.answer)
        if len(answer) == 1:
            kept.append((fact, answer[0]))
        else:
            long.append(fact.row)
    notes = [f"{_rows(long)} left out: the answer is not one token for this model."] if long else []
    return kept, notes


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return f"{'Line' if len(rows) == 1 else 'Lines'} {shown}"


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-pad token rows with 0 to (tokens ``[N, T]``, length ``[N]``)."""
    length = torch.tensor([len(r) for r in rows], dtype=torch.long)
    tokens = torch.zeros(len(rows), int(length.max()) if len(rows) else 0, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, length
