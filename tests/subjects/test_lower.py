"""The layers below the first that moves are run once, and nothing is other for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES, VOCABULARY, family
from torch import Tensor
from torch.nn import Module

from mansu.subjects import lower as lower_layers
from mansu.subjects import packing
from mansu.subjects.edit import Edit
from mansu.subjects.lower import LowerLayers, first_changed, quarters
from mansu.subjects.subject import Subject
from mansu.subjects.weights import family_of, weight_name


def rows_like() -> tuple[Tensor, Tensor]:
    """Rows with beginnings in common, padded to 9."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (6, 9), generator=generator)
    tokens[1, :5], tokens[3] = tokens[0, :5], tokens[2]
    return tokens, torch.tensor([9, 7, 6, 4, 5, 1])


def runs_of(subject: Subject) -> Callable[[], list[int]]:
    """Which layers have run since the last call: by their attention's output map."""
    seen: list[int] = []
    for layer in range(subject.config.num_hidden_layers):
        path = weight_name(subject, layer, "o").removesuffix(".weight")
        hook = subject.plain.get_submodule(path).register_forward_pre_hook
        hook(lambda *_, layer=layer: seen.append(layer))

    def since() -> list[int]:
        found, seen[:] = seen[:], []
        return found

    return since


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_begun_above_is_what_all_layers_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", 17)
    subject, (tokens, length) = family(name, 3), rows_like()
    packs = list(subject.packs(tokens, length))
    assert len(packs) > 1
    lower, since = LowerLayers(subject, length, [1, 2]), runs_of(subject)
    weight = weight_name(subject, 2, "o")
    edit = Edit.between(subject.parameters, {weight: subject.parameters[weight] + 0.1})
    assert first_changed(subject, edit.changes) == 2
    with torch.no_grad():
        plain = [subject.hidden(pack) for pack in packs]
        since()
        kept = [lower.hidden(pack) for pack in packs]
        assert since() == [0, 1, 2] * len(packs)
        again = [lower.hidden(pack) for pack in packs]
        assert since() == [2] * len(packs)
        with edit.applied(subject):
            above = [lower.hidden(pack, changed=2) for pack in packs]
            assert since() == [2] * len(packs)
            lower_down = [lower.hidden(pack, changed=1) for pack in packs]
            assert since() == [1, 2] * len(packs)
            everywhere = [lower.hidden(pack, changed=0) for pack in packs]
            edited = [subject.hidden(pack) for pack in packs]
            assert since() == [0, 1, 2] * 2 * len(packs)
    for found in (kept, again):
        assert all(map(torch.equal, found, plain))
    for found in (above, lower_down, everywhere):
        assert all(map(torch.equal, found, edited))
    assert not any(map(torch.equal, edited, plain))


def test_rows_in_other_packs_are_the_same_to_rounding(tiny: Subject) -> None:
    tokens, length = rows_like()
    rows = torch.tensor([4, 0, 3])
    with torch.no_grad():
        lower = LowerLayers(tiny, length, [1])
        for pack in tiny.packs(tokens, length):
            lower.hidden(pack)
        for pack in tiny.packs(tokens[rows], length[rows]):
            found = lower.hidden(pack, rows=rows[pack.rows])
            torch.testing.assert_close(found, tiny.hidden(pack), atol=1e-5, rtol=1e-5)


def test_the_gradients_above_are_those_of_all_layers(tiny: Subject) -> None:
    tokens, length = rows_like()
    (pack,) = tiny.packs(tokens, length)
    weight = tiny.parameters[weight_name(tiny, 1, "up")]
    lower, found = LowerLayers(tiny, length, [1]), []
    with tiny.lock:
        weight.requires_grad_(True)
        try:
            for _ in range(2):
                (gradient,) = torch.autograd.grad(lower.hidden(pack).square().sum(), [weight])
                found.append(gradient)
        finally:
            weight.requires_grad_(False)
    assert torch.equal(*found) and found[0].any()


@pytest.mark.usefixtures("untouched")
def test_nothing_is_kept_of_an_edited_layer(tiny: Subject) -> None:
    """A first run under an edit keeps nothing that would be another's."""
    tokens, length = rows_like()
    (pack,) = tiny.packs(tokens, length)
    lower = LowerLayers(tiny, length, [1])
    weight = weight_name(tiny, 0, "o")
    edit = Edit.between(tiny.parameters, {weight: tiny.parameters[weight] * 2})
    with torch.no_grad():
        with edit.applied(tiny):
            lower.hidden(pack, changed=0)
        assert torch.equal(lower.hidden(pack), tiny.hidden(pack))
        assert torch.equal(lower.hidden(pack), tiny.hidden(pack))


def test_an_exception_leaves_every_layer_as_it_was(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, length = rows_like()
    (pack,) = tiny.packs(tokens, length)
    lower = LowerLayers(tiny, length, [1])
    layers = tiny.plain.get_submodule(family_of(tiny).layers)
    assert isinstance(layers[0], Module)
    own = layers[0].forward  # as a device map puts one on a module that it offloads
    monkeypatch.setattr(layers[0], "forward", own, raising=False)
    with torch.no_grad():
        before = lower.hidden(pack)

        def stop(*_: object) -> None:
            raise RuntimeError("stop")

        handle = layers[1].register_forward_pre_hook(stop)
        try:
            with pytest.raises(RuntimeError, match="stop"):
                lower.hidden(pack)
        finally:
            handle.remove()
        assert layers[0].__dict__["forward"] == own and "forward" not in layers[1].__dict__
        assert torch.equal(tiny.hidden(pack), before)


def test_of_too_many_tokens_nothing_is_kept(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, length = rows_like()
    (pack,) = tiny.packs(tokens, length)
    monkeypatch.setattr(lower_layers, "LEAST", 0)
    long = torch.cat([length, torch.tensor([10_000])])
    assert LowerLayers(tiny, length, [1]).boundaries == (1,)
    lower = LowerLayers(tiny, long, [1])
    with torch.no_grad():
        assert lower.boundaries == ()
        assert torch.equal(lower.hidden(pack, changed=1), tiny.hidden(pack))


def test_boundaries_and_first_layers(tiny: Subject) -> None:
    assert quarters(tiny) == (1, 2)  # of three layers
    assert first_changed(tiny, [weight_name(tiny, 1, "q"), weight_name(tiny, 1, "o")]) == 1
    assert first_changed(tiny, [weight_name(tiny, 1, "q"), "model.embed_tokens.weight"]) == 0
    assert first_changed(tiny, []) == 0
