"""Edits: they apply, nest, compose and travel through a file, and never leave a trace."""

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from devices import moved, needs_cuda
from families import FAMILIES, family
from safetensors.torch import save_file
from torch import Tensor

from mansu.errors import DamagedError, MansuError, MismatchError, NotMeasuredError
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def subject() -> Subject:
    return family("llama")


def bits(subject: Subject) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.parameters.items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Equal bit by bit: also −0.0 against 0.0 and NaN against NaN."""
    return left.keys() == right.keys() and all(
        torch.equal(left[n].view(torch.int32), right[n].view(torch.int32)) for n in left
    )


def random_edit(subject: Subject, seed: int, share: float, label: str = "random") -> Edit:
    torch.manual_seed(seed)
    after = {}
    for name, p in subject.parameters.items():
        moved = torch.rand(p.shape) < share
        after[name] = torch.where(moved, p + torch.randn(p.shape), p)
    return Edit.between(subject.parameters, after, label, {"seed": seed})


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_apply_gives_the_new_values_and_revert_the_old_bits(subject: Subject, share: float) -> None:
    before, edit = bits(subject), random_edit(subject, 1, share)
    tokens = torch.tensor([[1, 2, 3]])
    logits = subject.model(tokens).logits
    with edit.applied(subject):
        for name, (where, values) in edit.changes.items():
            expected = before[name].flatten().clone()
            expected[where] = values
            assert torch.equal(subject.parameters[name].flatten(), expected)
        assert not torch.equal(subject.model(tokens).logits, logits)
    assert same(bits(subject), before)
    assert torch.equal(subject.model(tokens).logits, logits)


def test_revert_is_exact_after_an_exception_and_for_odd_bit_patterns(subject: Subject) -> None:
    odd = torch.tensor([-0.0, float("nan"), 1e-45, float("-inf")])
    parameter = subject.parameters[Q]
    kept = parameter.data.clone()
    try:
        parameter.data.view(-1)[:4] = odd
        before = bits(subject)
        edit = Edit({Q: (torch.arange(4), torch.ones(4))})
        with pytest.raises(KeyError), edit.applied(subject):
            raise KeyError
        assert same(bits(subject), before)
    finally:
        parameter.data.copy_(kept)


def test_an_edit_that_fails_half_way_is_undone(subject: Subject) -> None:
    before = bits(subject)
    edit = Edit({Q: (torch.arange(3), torch.ones(3)), UP: (torch.arange(3), torch.ones(3))})
    object.__setattr__(edit, "changes", {**edit.changes, UP: (torch.arange(3), torch.ones(2))})
    with pytest.raises((RuntimeError, IndexError)), edit.applied(subject):
        raise AssertionError("must not get here")
    assert same(bits(subject), before)


@pytest.mark.parametrize("shares", [(0.01, 0.02), (0.01, 0.9), (0.9, 0.01), (0.8, 0.9)])
def test_then_is_the_same_as_nesting(subject: Subject, shares: tuple[float, float]) -> None:
    before = bits(subject)
    first, second = (random_edit(subject, i, s, f"e{i}") for i, s in enumerate(shares))
    with first.applied(subject), second.applied(subject):
        nested = bits(subject)
    both = first.then(second)
    with both.applied(subject):
        assert same(bits(subject), nested)
    assert both.label == "e0 + e1"
    assert same(bits(subject), before)


def test_edits_of_two_models_do_not_make_one(subject: Subject) -> None:
    made = [random_edit(subject, i, 0.01, f"e{i}") for i in range(2)]
    first, second = (replace(e, meta={"fingerprint": str(i)}) for i, e in enumerate(made))
    assert first.then(first).meta["fingerprint"] == "0" == first.then(made[1]).meta["fingerprint"]
    with pytest.raises(MismatchError, match="'e0' and 'e1' are edits of models with other weights"):
        first.then(second)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_between_and_delta_and_counts(subject: Subject, share: float) -> None:
    edit = random_edit(subject, 3, share)
    with edit.applied(subject):
        after = bits(subject)
    moved = sum(int((after[n] != p).sum()) for n, p in subject.parameters.items())
    assert edit.n_moved == moved > 0
    assert edit.fraction(subject) == moved / sum(p.numel() for p in subject.parameters.values())
    for name, (where, delta) in edit.delta(subject).items():
        expected = (after[name] - subject.parameters[name]).flatten()
        assert torch.equal(delta, expected[where])
    again = Edit.between(subject.parameters, after)
    with again.applied(subject):
        assert same(bits(subject), after)


def test_indices_may_come_in_any_order(subject: Subject) -> None:
    edit = Edit({Q: (torch.tensor([7, 2, 5]), torch.tensor([70.0, 20.0, 50.0]))})
    with edit.applied(subject):
        assert subject.parameters[Q].flatten()[[2, 5, 7]].tolist() == [20, 50, 70]


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_scaled_goes_part_of_the_way(subject: Subject, share: float) -> None:
    edit = random_edit(subject, 1, share)
    half, whole = edit.delta(subject), edit.scaled(subject, 1.0)
    for name, (where, delta) in edit.scaled(subject, 0.5).delta(subject).items():
        assert torch.equal(where, half[name][0])
        torch.testing.assert_close(delta, half[name][1] / 2, atol=1e-6, rtol=1e-5)
        assert torch.equal(whole.changes[name][1], edit.changes[name][1])


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_thinned_keeps_a_nested_share_of_the_moves_as_they_are(
    subject: Subject, share: float
) -> None:
    edit = random_edit(subject, 1, share)
    assert edit.thinned(1.0).n_moved == edit.n_moved and edit.thinned(0.0).n_moved == 0
    some, more = edit.thinned(0.3), edit.thinned(0.6)
    assert some.n_moved / edit.n_moved == pytest.approx(0.3, abs=0.1)
    before = {name: p.detach().flatten() for name, p in subject.parameters.items()}

    def dense(an: Edit) -> dict[str, Tensor]:
        with an.applied(subject):
            return bits(subject)

    small, large, whole = dense(some), dense(more), dense(edit)
    for name, old in before.items():
        for part, of in ((small, large), (large, whole)):
            moved = part[name].flatten() != old
            assert torch.equal(part[name].flatten()[moved], of[name].flatten()[moved])


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_save_and_load(subject: Subject, tmp_path, share: float) -> None:
    edit = random_edit(subject, 4, share, "a label — with a dash")
    edit.save(tmp_path / "deep" / "edit.safetensors")
    back = Edit.load(tmp_path / "deep" / "edit.safetensors")
    assert (back.label, back.meta, back.n_moved) == (edit.label, edit.meta, edit.n_moved)
    with edit.applied(subject):
        after = bits(subject)
    with back.applied(subject):
        assert same(bits(subject), after)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["edit.safetensors"]


def test_a_mask_takes_less_room_than_indices(subject: Subject, tmp_path) -> None:
    random_edit(subject, 4, 0.9).save(tmp_path / "dense")
    room = (tmp_path / "dense").stat().st_size
    assert room < 5 * subject.n_parameters + 20_000


def test_an_index_takes_as_much_room_as_a_value(subject: Subject, tmp_path) -> None:
    edit = random_edit(subject, 4, 0.01)
    edit.save(tmp_path / "sparse")
    assert (tmp_path / "sparse").stat().st_size < 8 * edit.n_moved + 20_000
    for name, (where, values) in Edit.load(tmp_path / "sparse").changes.items():
        assert where.dtype == torch.int64
        assert torch.equal(where, edit.changes[name][0])
        assert torch.equal(values, edit.changes[name][1])


def test_the_lock_keeps_others_out(subject: Subject) -> None:
    edit = Edit({Q: (torch.tensor([0]), torch.tensor([1e3]))})
    seen, waiting = [], threading.Event()

    def look() -> None:
        waiting.set()
        with subject.lock:
            seen.append(float(subject.parameters[Q].flatten()[0]))

    with edit.applied(subject):
        thread = threading.Thread(target=look)
        thread.start()
        assert waiting.wait(5)
        thread.join(0.1)
        assert thread.is_alive()
        assert not seen
    thread.join(5)
    assert seen == [float(subject.parameters[Q].flatten()[0])] != [1e3]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_that_an_edit_moves_is_one_that_the_model_runs(name: str) -> None:
    subject = family(name)
    tokens, before = torch.tensor([[1, 2, 3]]), bits(subject)
    logits = subject.bridge(tokens)
    for quantized in subject.quantized_names:
        size = subject.parameters[quantized].numel()
        edit = Edit({quantized: (torch.arange(size // 2), torch.zeros(size // 2))})
        with edit.applied(subject):
            assert not torch.equal(subject.bridge(tokens), logits), quantized
    assert same(bits(subject), before)
    assert torch.equal(subject.bridge(tokens), logits)


def test_bad_edits_are_refused_in_a_sentence(subject: Subject, tmp_path) -> None:
    one = torch.ones(1)
    size = subject.parameters[Q].numel()
    for changes, words in [
        ({"model.nowhere": (torch.tensor([0]), one)}, "does not have"),
        ({Q: (torch.tensor([size]), one)}, "does not fit"),
        ({Q: (torch.tensor([-1]), one)}, "does not fit"),
        ({Q: (torch.tensor([True, False]), one)}, "does not fit"),
    ]:
        edit = Edit(changes, "bad")
        with pytest.raises(MansuError, match=words), edit.applied(subject):
            pass
    with pytest.raises(MansuError, match="twice"):
        Edit({Q: (torch.tensor([1, 1]), torch.ones(2))})
    with pytest.raises(MansuError, match="one value a place"):
        Edit({Q: (torch.tensor([1, 2]), one)})
    with pytest.raises(MansuError, match="shape"):
        Edit.between(subject.parameters, {Q: torch.ones(2, 2)})
    with pytest.raises(MansuError, match="does not exist"):
        Edit.between(subject.parameters, {"nowhere": one})
    with pytest.raises(NotMeasuredError, match="There is no none"):
        Edit.load(tmp_path / "none")
    (tmp_path / "text").write_text("not safetensors")
    with pytest.raises(DamagedError, match="text is damaged or was not written by MANSU"):
        Edit.load(tmp_path / "text")
    save_file({"a": one}, tmp_path / "other")
    with pytest.raises(MansuError, match="no MANSU edit"):
        Edit.load(tmp_path / "other")
    save_file({"a": one}, tmp_path / "old", {"mansu.edit": '{"version": 0}'})
    with pytest.raises(MansuError, match="version 0"):
        Edit.load(tmp_path / "old")
    for i, header in enumerate(("[]", '"x"', '{"version": 1}', '{"version": 1, "label": 3}')):
        save_file({"a": one}, tmp_path / f"{i}", {"mansu.edit": header})
        with pytest.raises(DamagedError):
            Edit.load(tmp_path / f"{i}")


def test_an_edit_made_on_other_weights_is_refused(tiny: Subject) -> None:
    name = next(iter(tiny.parameters))
    change = {name: (torch.tensor([0]), torch.zeros(1))}
    mine = Edit(change, "mine", {"fingerprint": tiny.fingerprint})
    with mine.applied(tiny):
        assert float(tiny.parameters[name].flatten()[0]) == 0
    with (
        pytest.raises(MismatchError, match="made on other weights"),
        Edit(change, "other", {"fingerprint": "0" * 16}).applied(tiny),
    ):
        raise AssertionError("it was applied")


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MansuError, match="not finite"):
        Edit({"w": (torch.tensor([1]), torch.tensor([float("nan")]))})


def test_values_that_the_weights_would_hold_as_infinite_are_refused(subject: Subject) -> None:
    values = torch.tensor([1e300], dtype=torch.float64)
    before = bits(subject)
    edit = Edit({Q: (torch.tensor([1]), values)}, "wide")
    with pytest.raises(MismatchError, match=r"infinite as torch\.float32"), edit.applied(subject):
        pass
    assert same(bits(subject), before)
    with Edit({Q: (torch.tensor([1]), values / 1e300)}).applied(subject):
        assert float(subject.parameters[Q].flatten()[1]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16])
def test_a_file_whose_places_are_no_indices_is_damaged(dtype: torch.dtype, tmp_path) -> None:
    header = {"mansu.edit": '{"version": 3, "label": "a", "meta": {}, "sizes": {}}'}
    tensors = {f"{Q}/where": torch.tensor([1, 2]).to(dtype), f"{Q}/values": torch.ones(2)}
    save_file(tensors, tmp_path / "edit.safetensors", header)
    with pytest.raises(DamagedError, match=f"gives its places as {dtype}"):
        Edit.load(tmp_path / "edit.safetensors")


@needs_cuda
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_an_edit_made_on_a_gpu_is_that_of_a_file_and_joins_it(tmp_path, share: float) -> None:
    subject = moved(family("llama"), "cuda")
    start = bits(subject)
    after = {name: p + (torch.rand_like(p) < share) for name, p in subject.parameters.items()}
    made = Edit.between(subject.parameters, after)
    made.save(tmp_path / "edit")
    read = Edit.load(tmp_path / "edit")
    both = [e.then(random_edit(family("llama"), 1, 0.3)) for e in (made, read)]
    found = []
    for edit in (made, read, *both):
        with edit.applied(subject), read.scaled(subject, 0.5).applied(subject):
            found.append(bits(subject))
        assert same(bits(subject), start)
    assert same(found[0], found[1]) and same(found[2], found[3])
