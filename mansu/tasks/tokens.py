"""A task as one subject's tokens: examples to score, clean–corrupt pairs to attribute."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.subjects.subject import Subject
from mansu.tasks.facts import N_DISTRACTORS, NEEDED, SPLITS, Fact, Task

FEW_ANSWERS = 8
"""Where a split has fewer different answers (true and false, letters), they tell no fact: each
prompt that names none is one."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One split, tokenised for one subject (N rows, T positions, right-padded).

    Attributes:
        tokens: int64 ``[N, T]``; length: int64 ``[N]``; answer: int64 ``[N]``.
        distractors: int64 ``[N, 3]``, wrong answers for 4-way multiple choice.
        candidates: bool ``[N, C]`` over ``vocabulary``: the answers of the row's own group.
        vocabulary: int64 ``[C]``, every distinct answer token of the split.
        rows: line numbers in the task file. groups: each row's group.
        notes: what was left out and why, a sentence each.
        facts: the fact that each row asks for, by its name, or by its line where answers are few
            (``FEW_ANSWERS``); empty where the answers say it.
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

    def some(self, most: int) -> Examples:
        """At most so many of them, evenly spaced."""
        return self.select(evenly(len(self), most))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupt prompts of equal token length, for attribution.

    Attributes:
        clean, corrupt: int64 ``[N, T]`` right-padded; length: int64 ``[N]``, the same for both.
        answer: int64 ``[N]``, the clean prompt's answer; foil: int64 ``[N]``, the corrupt one's.
        rows: line numbers in the task file. notes: what was left out and why.
        facts: the fact that each clean prompt asks for, as in ``Examples``.
    """

    clean: Tensor
    corrupt: Tensor
    length: Tensor
    answer: Tensor
    foil: Tensor
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 (16 hex digits) of all tokens: two equal ones are the same pairs."""
        found = hashlib.sha256()
        for tensor in (self.clean, self.corrupt, self.length, self.answer, self.foil):
            found.update(f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    @property
    def asked(self) -> Sequence[str | int]:
        """The fact that each pair asks for; its answer, where the answers say it."""
        return self.facts or self.answer.tolist()

    @cached_property
    def clusters(self) -> np.ndarray:
        """Which pairs ask for the same fact: int64 ``[N]``, numbered as they are met."""
        place: dict[str | int, int] = {}
        return np.array([place.setdefault(fact, len(place)) for fact in self.asked], dtype=np.int64)

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
            tuple(self.facts[int(k)] for k in i) if self.facts else (),
        )


@dataclass(frozen=True)
class Reading:
    """A fact as one subject's tokens, which are those of prompt and answer as one text.

    Attributes:
        prompt: token ids, with the tokenizer's BOS. answer: the one token after them.
        gap: what is put between prompt and answer: nothing, or a space that the task forgot.
    """

    fact: Fact
    prompt: tuple[int, ...]
    answer: int
    gap: str = ""

    @property
    def spaced(self) -> bool:
        """Whether a space is put or written before the answer: the token begins with it."""
        return bool(self.gap) or self.fact.answer[:1].isspace()


def read(facts: Sequence[Fact], subject: Subject) -> tuple[list[Reading], list[str]]:
    """The facts that can be scored, and a sentence on those that cannot or that read oddly.

    Left out are those whose answer is not one token after its prompt, those with words that the
    tokenizer does not know, and prompts longer than the model's context.

    Raises:
        BadInputError: a token that the model has no embedding for.
    """
    found, lines = [], defaultdict(list)
    for fact in facts:
        reading = _read(fact, fact.prompt, fact.answer, subject)
        if isinstance(reading, str):
            lines[reading].append(fact.row)
            continue
        found.append(reading)
        for oddity in _oddities(reading, subject):
            lines[oddity].append(fact.row)
    return found, [f"{_rows(rows)} {sentence}" for sentence, rows in lines.items()]


_NOT_ONE = "left out: the answer is not one token after its prompt for this model."
_UNKNOWN = "left out: the model's tokenizer does not know a word of the prompt or the answer."
_GAP = "read with a space between prompt and answer, which would else be one word: write it."
_MOVED = "read with the space at the prompt's end as the answer's, which the model says with it."
_DOUBLE = "with two spaces between prompt and answer, which the model would hardly say: write one."
_BLANK = (
    "with white space both before the answer and at the prompt's end, such as a line break, which "
    "the model would hardly say: write the answer without its own."
)
_BLANK_KEPT = (
    "with white space both before the answer and at the prompt's end, such as a line break, which "
    "the model would hardly say; without its own the answer is not one token."
)
_GLUED = "read as given, with prompt and answer as one word: a space before it is no token with it."


def _read(
    fact: Fact, prompt: str, answer: str, subject: Subject, gaps: Sequence[str] | None = None
) -> Reading | str:
    """A prompt of the fact and an answer to it, or why they cannot be scored."""
    if gaps is None:
        gaps = (" ", "") if _glued(prompt, answer) else ("", " ")
    why = ""
    for gap in gaps:
        if gap and (prompt[-1].isspace() or answer[:1].isspace()):
            continue
        head, tail = subject.continuation(prompt, gap + answer)
        own = [subject.encode(text, start=True) for text in (prompt, prompt.rstrip())]
        if not subject.fits(len(own[1])):
            context = subject.context
            return f"left out: the prompt has more tokens than the model's context of {context}."
        if subject.tokenizer.unk_token_id in (*own[0][len(subject.prefix) :], *tail):
            why = why or _UNKNOWN
        elif len(tail) != 1 or head not in own:
            why = why or _NOT_ONE
        else:
            return Reading(fact, tuple(head), tail[0], gap)
    return why


def _oddities(reading: Reading, subject: Subject) -> Iterator[str]:
    """What of a row that can be scored the user may not have meant."""
    prompt, answer = reading.fact.prompt, reading.fact.answer
    if reading.gap:
        yield _GAP
    elif list(reading.prompt) != subject.encode(prompt, start=True):
        yield _MOVED
    elif prompt[-1].isspace() and answer[0].isspace():
        single = subject.encode(prompt.rstrip() + answer, start=True)
        if single != subject.encode(prompt + answer, start=True):
            if prompt[-1] == answer[0] == " ":
                yield _DOUBLE
            else:
                bare = _read(reading.fact, prompt, answer.lstrip(), subject)
                yield _BLANK_KEPT if isinstance(bare, str) else _BLANK
    elif _glued(prompt, answer):
        yield _GLUED


def _glued(prompt: str, answer: str) -> bool:
    """Whether two words meet without a space, in a script that has them (one with upper case)."""
    return all(letter.lower() != letter.upper() for letter in (prompt[-1], answer[:1]))


def examples(task: Task, subject: Subject, split: str, *, seed: int = 0) -> Examples:
    """Tokenise one split. Rows that cannot be scored (see ``read``) are left out and noted.

    Distractors, where a row gives none, are drawn (seeded) from the other answers of its group.
    What another row answers to the same prompt, or to the same named fact, is no wrong answer and
    is not drawn; what another row answers to the same prompt is not taken where it is given either.
    Noted, too, are rows that are there twice, in this split or in one before it in ``SPLITS``.

    Raises:
        MansuError: no row of the forget or retain set can be used.
    """
    usable, notes = read(task.split(split), subject)
    answers, right = _alike(usable), _right(usable)
    rng = random.Random(seed)
    kept: list[Reading] = []
    distractors, few, replaced, several, surplus = [], [], [], [], []
    for r in usable:
        own = _distractors(r, subject)
        # Of a named fact they stay: a letter is right in one order of the choices alone.
        given = [d for d in own if d not in right[r.prompt]]
        others = answers[_join(r)] - {r.answer} - set(given)
        pool = sorted(others - right[r.prompt] - right[r.fact.fact])
        missing = N_DISTRACTORS - len(given)
        if len(own) < len(r.fact.distractors):
            replaced.append(r.fact.row)
        if len(given) < len(own) or (missing > 0 and len(pool) < len(others)):
            several.append(r.fact.row)
        if missing > len(pool):
            few.append(r.fact.row)
            continue
        if missing < 0:
            surplus.append(r.fact.row)
        distractors.append(given[:N_DISTRACTORS] + rng.sample(pool, max(missing, 0)))
        kept.append(r)
    if replaced:
        notes.append(
            f"{_rows(replaced)} of {split} with distractors that were dropped: not one token that "
            "the tokenizer knows, there twice, or the answer itself; where fewer than "
            f"{N_DISTRACTORS} are left, others of the group's answers are taken."
        )
    if several:
        notes.append(
            f"{_rows(several)} of {split} with a prompt or a fact that other lines answer "
            "otherwise: those answers are right, too, and are not taken as distractors."
        )
    if surplus:
        notes.append(
            f"{_rows(surplus)} of {split} with more than {N_DISTRACTORS} distractors: the first "
            f"{N_DISTRACTORS} are taken."
        )
    if few:
        notes.append(
            f"{_rows(few)} left out of {split}: fewer than {N_DISTRACTORS} one-token wrong "
            "answers; give distractors."
        )
    if not kept and split in NEEDED:
        raise BadInputError(f"The task {task.name!r} has no usable {split} row. {' '.join(notes)}")
    notes += _repeats(task, subject, split, kept)
    padded, length = pad([r.prompt for r in kept])
    vocabulary = sorted({r.answer for r in kept})
    candidates = torch.tensor(
        [[v in answers[_join(r)] for v in vocabulary] for r in kept], dtype=torch.bool
    ).reshape(len(kept), len(vocabulary))
    return Examples(
        tokens=padded,
        length=length,
        answer=torch.tensor([r.answer for r in kept], dtype=torch.long),
        distractors=torch.tensor(distractors, dtype=torch.long).reshape(-1, N_DISTRACTORS),
        candidates=candidates,
        vocabulary=torch.tensor(vocabulary, dtype=torch.long),
        rows=tuple(r.fact.row for r in kept),
        groups=tuple(r.fact.group for r in kept),
        notes=tuple(notes),
        facts=_facts(kept, usable),
    )


def _facts(readings: Sequence[Reading], usable: Sequence[Reading]) -> tuple[str, ...]:
    """The fact that each asks for; empty where the answers say it.

    Args:
        usable: all of the split, which say whether answers are few, and whether any is named.
    """
    few = len({r.answer for r in usable}) < FEW_ANSWERS
    if not few and not any(r.fact.fact for r in usable):
        return ()
    line: dict[tuple[int, ...], str] = {}  # a prompt that is there twice asks for one fact
    for r in usable:
        line.setdefault(r.prompt, f"line {r.fact.row}")
    return tuple(r.fact.fact or (line[r.prompt] if few else r.fact.answer) for r in readings)


def _join(reading: Reading) -> tuple[str, str, bool]:
    """Its group, and how its answer is joined to its prompt."""
    return reading.fact.group, reading.gap, reading.spaced


def _alike(readings: Sequence[Reading]) -> dict[tuple[str, str, bool], set[int]]:
    """By ``_join``, the group's answers that are joined alike: with the same gap, or with a space
    before them, whether the task wrote it or forgot it."""
    by_gap: dict[tuple[str, str], set[int]] = defaultdict(set)
    spaced: dict[str, set[int]] = defaultdict(set)
    for r in readings:
        by_gap[r.fact.group, r.gap].add(r.answer)
        if r.spaced:
            spaced[r.fact.group].add(r.answer)
    return {
        (group, gap, has): by_gap[group, gap] | (spaced[group] if has else set())
        for group, gap, has in map(_join, readings)
    }


def _right(readings: Sequence[Reading]) -> dict[tuple[int, ...] | str | None, set[int]]:
    """By prompt, and by named fact, every answer that some row gives; none to no name (None)."""
    found: dict[tuple[int, ...] | str | None, set[int]] = defaultdict(set)
    for r in readings:
        found[r.prompt].add(r.answer)
        if r.fact.fact is not None:
            found[r.fact.fact].add(r.answer)
    return found


def _distractors(reading: Reading, subject: Subject) -> list[int]:
    """The row's own wrong answers: different tokens, joined to the prompt as its answer is."""
    fact = reading.fact
    read = [_read(fact, fact.prompt, d, subject, (reading.gap,)) for d in fact.distractors]
    tokens = [r.answer for r in read if isinstance(r, Reading) and r.prompt == reading.prompt]
    return [t for t in dict.fromkeys(tokens) if t != reading.answer]


def _repeats(task: Task, subject: Subject, split: str, rows: Sequence[Reading]) -> Iterator[str]:
    """Sentences on rows whose prompt and answer are those of an earlier row."""
    for other in SPLITS[: SPLITS.index(split)]:
        theirs = {(r.prompt, r.answer): r.fact.row for r in read(task.split(other), subject)[0]}
        same = [(r.fact.row, theirs[k]) for r in rows if (k := (r.prompt, r.answer)) in theirs]
        if same:
            mine, others = zip(*same, strict=True)
            yield f"{_rows(mine)} of {split} also in {other} ({_rows(others).lower()})."
    seen: set[tuple[tuple[int, ...], int]] = set()
    twice = []
    for r in rows:
        if (r.prompt, r.answer) in seen:
            twice.append(r.fact.row)
        seen.add((r.prompt, r.answer))
    if twice:
        yield f"{_rows(twice)} of {split} as an earlier line of it: counted twice."


def text(task: Task, subject: Subject, *, positions: int = 32) -> tuple[Tensor, Tensor]:
    """The task's plain text as (tokens ``[N, T]``, length ``[N]``), cut at ``positions``."""
    positions = min(positions, subject.context or positions)
    return pad([subject.encode(f.prompt, start=True)[:positions] for f in task.split("text")])


def pairs(
    task: Task, subject: Subject, *, n: int | None = None, seed: int = 0, split: str = "forget"
) -> Pairs:
    """Clean–corrupt pairs of equal token length.

    A row's own ``corrupt_prompt`` is used where it has the same length; else (and noted) the
    subject is swapped: the corrupt prompt is another row of the group with the same length, the
    most tokens in common, and an answer that no row gives to the clean prompt or to its named fact.
    Rows that cannot be aligned are noted by line number.

    Args:
        n: keep this many, drawn with ``seed``, in file order.

    Raises:
        MansuError: no row can be paired.
    """
    usable, notes = read(task.split(split), subject)
    right = _right(usable)
    buckets: dict[tuple[str, int], list[Reading]] = defaultdict(list)
    for r in usable:
        buckets[r.fact.group, len(r.prompt)].append(r)
    rng = random.Random(seed)
    found: list[tuple[Reading, Reading]] = []
    unaligned, swapped = [], []
    for r in usable:
        partner = own = _own_corrupt(r, subject)
        if own is None:
            bucket = buckets[r.fact.group, len(r.prompt)]
            known = right[r.prompt] | right[r.fact.fact]
            others = [o for o in bucket if o.answer not in known]
            rng.shuffle(others)
            partner = max(
                others,
                key=lambda o: sum(a == b for a, b in zip(o.prompt, r.prompt, strict=True)),
                default=None,
            )
        if partner is None:
            unaligned.append(r.fact.row)
        else:
            found.append((r, partner))
            if own is None and r.fact.corrupt_prompt is not None:
                swapped.append(r.fact.row)
    if swapped:
        notes.append(
            f"{_rows(swapped)} paired with another row of the task instead of the corrupt_prompt "
            "given, which is not of the prompt's token length, is the prompt itself, or has no "
            "one-token foil."
        )
    if unaligned:
        notes.append(
            f"{_rows(unaligned)} left out of attribution: no prompt of equal token length with "
            "another answer; give corrupt_prompt."
        )
    if not found:
        raise BadInputError(
            f"The task {task.name!r} has no clean–corrupt pair of equal token length. "
            f"{' '.join(notes)}"
        )
    if n is not None and n < len(found):
        found = [found[i] for i in sorted(rng.sample(range(len(found)), n))]
    clean, length = pad([r.prompt for r, _ in found])
    corrupt, _ = pad([partner.prompt for _, partner in found])
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        length=length,
        answer=torch.tensor([r.answer for r, _ in found]),
        foil=torch.tensor([partner.answer for _, partner in found]),
        rows=tuple(r.fact.row for r, _ in found),
        notes=tuple(notes),
        facts=_facts([r for r, _ in found], usable),
    )


def forms(rows: Examples) -> Tensor:
    """Rows that begin and end alike ask in one form, whatever they ask for: int64 ``[N]``.

    What begins like no other, with the very thing it asks about, is one form with what ends alike.
    """
    last = rows.tokens.gather(1, rows.length[:, None] - 1)
    ends = torch.cat([rows.tokens[:, :2], last], 1)
    _, form, count = ends.unique(dim=0, return_inverse=True, return_counts=True)
    ends[count[form] == 1, :-1] = -1
    return ends.unique(dim=0, return_inverse=True)[1]


def entities(rows: Examples) -> list[list[int]]:
    """What the rows ask about, token ids, each once: where rows of one form differ.

    ``[[" gold"], [" silver"], …]`` of "The chemical symbol for gold is", and so on.
    """
    found: dict[tuple[int, ...], None] = {}
    numbers = forms(rows)
    for form in numbers.unique().tolist():
        same = (numbers == form).nonzero()[:, 0].tolist()
        prompts = [rows.tokens[i, : rows.length[i]].tolist() for i in same]
        shortest = min(map(len, prompts))
        alike = [len({p[k] for p in prompts}) == 1 for k in range(shortest)]
        start = alike.index(False) if False in alike else shortest
        ends = [len({p[-k] for p in prompts}) == 1 for k in range(1, shortest - start + 1)]
        end = ends.index(False) if False in ends else len(ends)
        found |= {tuple(p[start : len(p) - end]): None for p in prompts}
    return [list(entity) for entity in found if entity]


def _own_corrupt(reading: Reading, subject: Subject) -> Reading | None:
    """The row's own corrupt prompt with its foil, where they can be used."""
    fact = reading.fact
    if fact.corrupt_prompt is None:
        return None
    for foil in [fact.foil] if fact.foil else fact.distractors:
        r = _read(fact, fact.corrupt_prompt, foil, subject)
        if isinstance(r, str) or r.answer == reading.answer or r.prompt == reading.prompt:
            continue
        if len(r.prompt) == len(reading.prompt):
            return r
    return None


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return f"{'Line' if len(rows) == 1 else 'Lines'} {shown}"


def evenly(n: int, most: int) -> list[int]:
    """At most ``most`` of ``range(n)``, evenly spaced."""
    most = min(n, most)
    return [i * n // most for i in range(most)]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-pad token rows with 0 to (tokens ``[N, T]``, length ``[N]``)."""
    length = torch.tensor([len(r) for r in rows], dtype=torch.long)
    tokens = torch.zeros(len(rows), int(length.max()) if len(rows) else 0, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, length
