"""One weight followed, against the whole matrix quantised and against moving the weight itself."""

from __future__ import annotations

import pytest
import torch
from families import family

from mansu.errors import MansuError
from mansu.quant import FORMATS, NF4, Format, follow, moves, quantize
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names


def moved(subject: Subject, name: str, row: int, column: int, value: float) -> Edit:
    shape = subject.parameters[name].shape
    where = torch.tensor([row * shape[1] + column])
    return Edit({name: (where, torch.tensor([value]))})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_weight_is_where_the_kernel_puts_it(kind: str, format: Format) -> None:
    subject = family(kind)
    name = subject.quantized_names[0]
    weight = subject.parameters[name].data
    row, column = 3, 7
    edit = moved(subject, name, row, column, float(weight[row, column]) + 0.03)
    found = follow(subject, edit, name, row, column, format)
    assert torch.equal(subject.parameters[name].data, weight)
    turned = name in transposed_names(subject)
    for coded, applied in ((found.before, weight), (found.after, weight.clone())):
        if coded is found.after:
            applied[row, column] += 0.03
        stored = quantize(applied.T.contiguous() if turned else applied, format)
        codes = stored.codes.view(stored.shape)
        assert coded.code == int(codes.T[row, column] if turned else codes[row, column])
        assert coded.value == pytest.approx(float(applied[row, column]))
        assert coded.absmax == float(stored.absmax[found.block])
        assert coded.stored == pytest.approx(float(format.levels[coded.code]) * coded.absmax)
    assert found.update == pytest.approx(0.03, abs=1e-6)


def test_the_bin_is_where_the_code_changes() -> None:
    subject = family("llama")
    name = subject.quantized_names[0]
    weight = subject.parameters[name].data
    some = 0
    for column in range(24):
        none = Edit({})
        before = follow(subject, none, name, 2, column).before
        if abs(before.scaled) == 1 or before.code in (0, 15):
            continue  # moving an absmax moves its whole block
        for end, outside in ((before.low, -1), (before.high, 1)):
            nudge = 1e-3 * before.width
            for value, same in ((end - outside * nudge, True), (end + outside * nudge, False)):
                code = follow(subject, moved(subject, name, 2, column, value), name, 2, column)
                assert (code.after.code == before.code) == same
                some += 1
        half = follow(
            subject,
            moved(subject, name, 2, column, float(weight[2, column]) + before.width / 2),
            name,
            2,
            column,
        )
        assert half.ratio == pytest.approx(0.5, rel=1e-3)
    assert some > 20


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_moves_are_those_of_the_edit_by_how_far_they_go(kind: str) -> None:
    subject = family(kind)
    name = subject.quantized_names[0]
    weight = subject.parameters[name].data
    generator = torch.Generator().manual_seed(1)
    where = torch.randperm(weight.numel(), generator=generator)[:9].sort().values
    values = weight.reshape(-1)[where] + torch.linspace(0.001, 0.05, 9)
    edit = Edit({name: (where, values)})
    found = moves(subject, edit, name)
    places = (found.rows * weight.shape[1] + found.columns).tolist()
    assert sorted(places) == where.tolist()
    ratios = [
        follow(subject, edit, name, int(r), int(c)).ratio
        for r, c in zip(found.rows, found.columns, strict=True)
    ]
    assert ratios == pytest.approx(found.ratio.tolist(), rel=1e-3) and ratios == sorted(ratios)
    inside = torch.zeros(weight.shape, dtype=torch.bool)
    inside.view(-1)[where[:4]] = True
    assert len(moves(subject, edit, name, inside)) == 4
    assert len(moves(subject, Edit({}), name)) == 0


def test_what_is_not_there_is_named() -> None:
    subject = family("llama")
    name, none = subject.quantized_names[0], Edit({})
    with pytest.raises(MansuError, match="counted from 0"):
        follow(subject, none, name, 10_000, 0)
    embedding = next(n for n in subject.parameters if n not in subject.quantized_names)
    with pytest.raises(MansuError, match=f"no matrix that {NF4} quantises"):
        follow(subject, none, embedding, 0, 0)
