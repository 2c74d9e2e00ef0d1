"""Packs hold every row as it is, share what begins alike, and run as rows that are run alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from alone import differentiable, logits_alone, rows_of, states_alone
from families import FAMILIES, VOCABULARY, family
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mansu.subjects import attention, packing
from mansu.subjects.packing import Pack, pack_size, packs
from mansu.subjects.subject import Subject

Row = list[tuple[int, ...]]
"""A row's tokens, each of one number or more."""


def padded(rows: list[Row], junk: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens ``[N, P]``, or ``[N, P, C]`` where they are of several numbers, and lengths."""
    channels, width = len(rows[0][0]), max(map(len, rows)) + junk % 3
    tokens = torch.full((len(rows), width, channels), junk)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens[..., 0] if channels == 1 else tokens, torch.tensor([len(row) for row in rows])


def paths(pack: Pack, window: int | None = None) -> list[list[int]]:
    """What each token of a pack attends to, from the first to itself."""
    order = [row.nonzero()[:, 0].tolist() for row in pack.sees(window)]
    return [sorted(seen, key=lambda t: int(pack.positions[t])) for seen in order]


def words(pack: Pack) -> Row:
    """A pack's tokens as tuples."""
    tokens = pack.tokens if pack.tokens.ndim == 2 else pack.tokens[:, None]
    return [tuple(token) for token in tokens.tolist()]


# Few distinct tokens, so that rows begin alike, are others' beginnings, or are equal.
row_lists = st.integers(1, 3).flatmap(
    lambda channels: st.lists(
        st.lists(st.tuples(*[st.integers(0, 2)] * channels), min_size=1, max_size=7),
        min_size=1,
        max_size=9,
    )
)


@settings(max_examples=200)
@given(row_lists, st.integers(1, 40), st.integers(0, 2))
@example([[(1,)]], 1, 0)
@example([[(1,), (2,)]] * 3, 2, 1)
def test_every_row_lies_in_one_pack_as_it_is(rows: list[Row], size: int, junk: int) -> None:
    tokens, length = padded(rows, junk)
    kept = tokens.clone(), length.clone()
    found = list(packs(tokens, length, size=size))
    assert sorted(torch.cat([pack.rows for pack in found]).tolist()) == list(range(len(rows)))
    for pack in found:
        assert len(pack) == len(pack.tokens) == len(pack.positions)
        assert len(pack) <= size or len(pack.rows) == 1  # a row that is longer by itself
        spelled, seen = words(pack), paths(pack)
        for i, row in enumerate(pack.rows.tolist()):
            here = pack.at[i][pack.real[i]].tolist()
            assert pack.length[i] == length[row] == len(here)
            assert [spelled[t] for t in here] == rows[row]
            assert pack.positions[here].tolist() == list(range(len(here)))
            assert pack.last[i] == here[-1]
            for place, t in enumerate(here):  # its own ancestors in their order, and no other
                assert seen[t] == here[: place + 1]
        used = {int(t) for t in pack.at[pack.real]}
        assert used == set(range(len(pack)))  # no token is in vain
        assert bool(((pack.at >= 0) & (pack.at < len(pack))).all())
    assert torch.equal(tokens, kept[0]) and torch.equal(length, kept[1])


@settings(max_examples=100)
@given(row_lists, st.integers(1, 8))
def test_a_window_is_of_the_nearest(rows: list[Row], window: int) -> None:
    for pack in packs(*padded(rows), size=20):
        everything, near = paths(pack), paths(pack, window)
        assert near == [seen[-window:] for seen in everything]


@settings(max_examples=100)
@given(row_lists, st.integers(0, 3), st.integers(0, 2))
def test_what_fits_is_one_pack_without_a_token_twice(rows: list[Row], more: int, junk: int) -> None:
    beginnings = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    (pack,) = packs(*padded(rows, junk), size=len(beginnings) + more)
    assert len(pack) == len(beginnings)
    spelled = words(pack)
    assert {tuple(spelled[t] for t in seen) for seen in paths(pack)} == beginnings


@settings(max_examples=100)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(6, 40))
def test_packs_are_few_and_of_about_equal_sizes(n: int, length: int, size: int) -> None:
    """Rows of one length that share nothing: no pack waits with a rest beside full ones."""
    tokens = torch.arange(n * length).view(n, length)
    found = [len(pack) for pack in packs(tokens, torch.full((n,), length), size=size)]
    assert len(found) == -(-n // (size // length))
    assert max(found[:-1], default=0) - min(found[:-1], default=0) <= length
    if len(found) == -(-n * length // size):
        assert max(found) - min(found) <= length


@settings(max_examples=100)
@given(row_lists, st.integers(1, 40), st.data())
def test_a_token_that_is_alone_is_of_one_row(
    rows: list[Row], size: int, data: st.DataObject
) -> None:
    """From there on; before, rows share what they shared. Rows that are alike part alike."""
    tokens, length = padded(rows)
    first = {}  # by beginning: a row that begins as another is alone from the same token on
    alone = torch.zeros(len(rows), tokens.shape[1], dtype=torch.bool)
    for i, row in enumerate(rows):
        for p in range(len(row)):
            key = tuple(row[: p + 1])
            if key not in first:
                first[key] = data.draw(st.booleans())
            alone[i, p] = first[key]
    parted = alone.cumsum(1).bool()
    for pack in packs(tokens, length, size=size, alone=alone):
        spelled, seen = words(pack), paths(pack)
        users: dict[int, set[int]] = {}
        for i, row in enumerate(pack.rows.tolist()):
            here = pack.at[i][pack.real[i]].tolist()
            assert [spelled[t] for t in here] == rows[row]
            for place, t in enumerate(here):
                assert seen[t] == here[: place + 1]
                users.setdefault(t, set()).add(row)
        for t, together in users.items():
            if len(together) > 1:
                assert not any(parted[row, int(pack.positions[t])] for row in together)
    everything = torch.ones_like(alone)
    (side,) = packs(tokens, length, size=10**6, alone=everything)
    assert len(side) == int(length.sum())
    beginnings = {
        (tuple(row[: p + 1]), i if parted[i, p] else None)
        for i, row in enumerate(rows)
        for p in range(len(row))
    }
    (whole,) = packs(tokens, length, size=10**6, alone=alone)
    assert len(whole) == len(beginnings)


def test_a_row_that_is_longer_than_a_pack_has_one_of_its_own() -> None:
    tokens = torch.tensor([[1, 0, 0, 0, 0], [2, 2, 2, 2, 2], [3, 3, 0, 0, 0]])
    found = list(packs(tokens, torch.tensor([1, 5, 2]), size=3))
    assert [len(pack) for pack in found] == [1, 5, 2]
    assert [pack.at.shape[1] for pack in found] == [1, 5, 2]  # no wider than its rows


def test_the_size_is_the_device_s() -> None:
    assert pack_size(torch.device("cpu")) == packing.SIZE["cpu"]
    assert pack_size(torch.device("cuda", 0)) == packing.SIZE["cuda"]
    assert pack_size(torch.device("mps")) == min(packing.SIZE.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer_types", [None, ["sliding_attention", "full_attention"]])
def test_the_mask_of_a_model_with_a_window(
    layer_types: list[str] | None, dtype: torch.dtype
) -> None:
    (pack,) = packs(torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([5]), size=9)

    def shown(mask: Tensor) -> Tensor:
        """What an additive mask ``[1, 1, T, T]`` lets be seen."""
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        assert mask.dtype == dtype and bool(((mask == 0) | (mask == hidden)).all())
        return mask[0, 0] == 0

    for window in (None, 3, 5):
        config = SimpleNamespace(sliding_window=window, layer_types=layer_types)
        inputs = pack.inputs(config, torch.device("cpu"), dtype)
        assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4]]
        mask = inputs["attention_mask"]
        if window != 3:  # no row is longer
            assert torch.equal(shown(mask), pack.sees())
        elif layer_types:
            assert torch.equal(shown(mask["full_attention"]), pack.sees())
            assert torch.equal(shown(mask["sliding_attention"]), pack.sees(3))
        else:
            assert torch.equal(shown(mask), pack.sees(3))


def test_parts_see_what_a_pack_sees_and_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PART", 5)
    subject, (tokens, length) = family("mistral"), rows_like()
    (pack,) = subject.packs(tokens, length)
    masks = pack.inputs(subject.config, subject.device, subject.dtype)["attention_mask"]
    together = torch.zeros(len(pack), len(pack), dtype=torch.bool)
    for rows, keys, mask in masks.parts:
        assert rows.stop - rows.start <= 5 and len(keys) < len(pack)
        together[rows, keys] = mask[0, 0] == 0
    assert torch.equal(together, pack.sees(4))  # the window
    asked: list[int] = []
    whole = attention.sdpa_attention_forward

    def counted(module: Any, query: Tensor, *others: Any, **options: Any) -> Any:
        asked.append(query.shape[2])
        return whole(module, query, *others, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    with torch.no_grad():
        subject.hidden(pack)
    layers = int(subject.config.num_hidden_layers)
    assert len(asked) == layers * len(masks.parts) and sum(asked) == layers * len(pack)


def rows_like(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of a family: longer than its window, another's beginning, equal ones, one token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (8, 14), generator=generator)
    tokens[1, :6] = tokens[0, :6]  # begin alike and part
    tokens[2] = tokens[0]  # another's beginning, by its length
    tokens[4] = tokens[3]  # equal
    tokens[6, 0] = tokens[5, 0]  # one token, where another begins
    length = torch.tensor([14, 11, 9, 5, 5, 3, 1, 1])
    tokens[torch.arange(14) >= length[:, None]] = 7
    return tokens, length


def windowed(subject: Subject) -> bool:
    return getattr(subject.config, "sliding_window", None) == 4


def test_some_families_have_a_window_that_rows_are_longer_than() -> None:
    assert sum(windowed(family(name)) for name in FAMILIES) >= 4


@pytest.mark.parametrize(("size", "part"), [(384, 64), (384, 5), (17, 4), (1, 64)])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_give_what_each_gives_alone(
    name: str, size: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    monkeypatch.setattr(attention, "PART", part)
    subject, (tokens, length) = family(name), rows_like()
    assert len(list(subject.packs(tokens, length))) > 1 or size == 384
    wanted = torch.tensor([3, 0, 44, 3])
    with torch.no_grad():
        rows = rows_of(tokens, length)
        logits = torch.stack([logits_alone(subject, row)[-1] for row in rows])
        states = torch.cat([states_alone(subject, row) for row in rows])
        for hooked in (False, True):
            found = subject.next_token_logits(tokens, length, hooked=hooked)
            torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
        found = subject.next_token_logits(tokens, length, wanted)
        torch.testing.assert_close(found, logits[:, wanted], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(subject.states(tokens, length), states, atol=1e-4, rtol=1e-4)
        # After a layer, by a plain hook.
        layers: list[Tensor] = []
        module = dict(subject.model.named_modules())[layer_path(subject)]
        handle = module.register_forward_hook(
            lambda _, args, out: layers.append((out[0] if isinstance(out, tuple) else out)[0])
        )
        try:
            for row in rows:
                states_alone(subject, row)
        finally:
            handle.remove()
        found = subject.states(tokens, length, layer=0)
        torch.testing.assert_close(found, torch.cat(layers), atol=1e-4, rtol=1e-4)
        # Sets of unlike widths that run together.
        sets = [
            (tokens[:3], length[:3]),
            (tokens[3:6, :5], length[3:6]),
            (tokens[6:, :1], length[6:]),
        ]
        together = subject.states_of(*sets)
        assert [len(part) for part in together] == [int(n.sum()) for _, n in sets]
        torch.testing.assert_close(torch.cat(together), states, atol=1e-4, rtol=1e-4)


def layer_path(subject: Subject) -> str:
    """Where the first layer lies in the model."""
    names = [name for name, _ in subject.model.named_modules()]
    return next(n for n in names if n.endswith((".layers.0", ".h.0")))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradients_of_packed_rows_are_those_of_rows_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every parameter, for a loss of last tokens' logits and one of every token's state."""
    subject, (tokens, length) = family(name), rows_like(1)
    generator = torch.Generator().manual_seed(2)
    by_logit = torch.randn(len(tokens), VOCABULARY, generator=generator)
    by_state = torch.randn(int(length.sum()), subject.config.hidden_size, generator=generator)
    weights = list(subject.parameters.values())

    def gradients(value: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(value, weights, allow_unused=True)  # states ask no head
        return tuple(
            torch.zeros_like(p) if g is None else g for g, p in zip(found, weights, strict=True)
        )

    with differentiable(*weights):
        rows = rows_of(tokens, length)
        logits = torch.stack([logits_alone(subject, row)[-1] for row in rows])
        states = torch.cat([states_alone(subject, row) for row in rows])
        expected = [gradients((logits * by_logit).sum()), gradients((states * by_state).sum())]
        for size, part in ((384, 64), (384, 5), (17, 64)):
            monkeypatch.setitem(packing.SIZE, "cpu", size)
            monkeypatch.setattr(attention, "PART", part)
            logits = subject.next_token_logits(tokens, length)
            states = subject.states(tokens, length)
            found = [gradients((logits * by_logit).sum()), gradients((states * by_state).sum())]
            for got, want in zip(found, expected, strict=True):
                for key, g, w in zip(subject.parameters, got, want, strict=True):
                    least = 1e-4 * float(w.abs().max()) + 1e-6
                    torch.testing.assert_close(g, w, atol=least, rtol=2e-3, msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_runs_side_by_side_are_those_of_each(name: str) -> None:
    """Other tokens at the places of a pack, several runs at a time."""
    subject, (tokens, length) = family(name), rows_like()
    other = (tokens + 5) % VOCABULARY
    both = torch.stack([tokens, other], -1)
    (pack,) = subject.packs(both, length)
    with torch.no_grad():
        runs = subject.run(pack, pack.tokens.T)
        bridged = subject.run(pack, pack.tokens.T, hooked=True)
        torch.testing.assert_close(bridged, runs, atol=1e-4, rtol=1e-4)
        one = subject.hidden(dataclasses.replace(pack, tokens=pack.tokens[:, 0]))
        two = subject.hidden(pack, tokens=pack.tokens[:, 1])
        torch.testing.assert_close(runs, torch.stack([one, two]), atol=1e-5, rtol=1e-5)
        for hidden, given_tokens in zip(runs, (tokens, other), strict=True):
            for i, row in enumerate(pack.rows.tolist()):
                alone = states_alone(subject, given_tokens[row, : length[row]])
                here = hidden[pack.at[i][pack.real[i]]]
                torch.testing.assert_close(here, alone, atol=1e-4, rtol=1e-4)


def test_a_head_s_bias_and_cap_are_those_of_the_words_asked_for() -> None:
    subject = family("gemma2")
    head = subject.plain.get_output_embeddings()
    hidden, some = torch.randn(4, 24) * 3, torch.tensor([9, 1, 9])
    whole = subject.head(hidden)
    torch.testing.assert_close(subject.head(hidden, some), whole[:, some])
    assert float(whole.abs().max()) <= 3.0  # its soft cap
    head.bias = torch.nn.Parameter(torch.randn(VOCABULARY), requires_grad=False)
    try:
        biased = subject.head(hidden)
        assert not torch.allclose(biased, whole)
        torch.testing.assert_close(subject.head(hidden, some), biased[:, some])
    finally:
        head.bias = None
