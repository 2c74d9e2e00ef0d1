"""NF4: our codes, bins and floor against the bitsandbytes kernel; the simulation against it too."""

import copy
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from devices import moved, needs_cuda
from families import BUILDERS, FAMILIES, family, wide
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
)

from mansu import quant, subjects
from mansu.errors import BadInputError, MansuError
from mansu.quant import codes
from mansu.quant.codes import Quantized, double_quantized
from mansu.quant.floor import blocks_at
from mansu.quant.formats import (
    BLOCKSIZES,
    BOUNDARIES,
    CODES,
    FORMATS,
    GGUF,
    HALVES,
    Format,
    Kind,
    boundaries_of,
)
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def kernel_codes(weight: Tensor, kind: str = "nf4", blocksize: int = 64) -> list[int]:
    packed, _ = bnb.quantize_4bit(weight, blocksize=blocksize, quant_type=kind)
    codes = [nibble for byte in packed.flatten().tolist() for nibble in (byte >> 4, byte & 15)]
    return codes[: weight.numel()]


def written_rule(weight: Tensor, blocksize: int = 64) -> list[int]:
    """The kernel's rule as ``mansu.quant.codes`` has it, a number at a time, in numpy float32."""
    values, codes = weight.float().numpy().ravel(), []
    for start in range(0, len(values), blocksize):
        block = values[start : start + blocksize]
        top = np.maximum(np.abs(block).max(), np.float32(1e-38))
        whole = len(block) == blocksize
        scaled = block * (np.float32(1) / top) if whole else block / top
        codes += [int(sum(v > b for b in BOUNDARIES.numpy())) for v in scaled.clip(-1, 1)]
    return codes


def kernel_values(packed: Tensor, state: Any) -> Tensor:
    """The kernel's dequantised values, read as one long row (it misreads some shapes)."""
    flat = copy.copy(state)
    flat.shape = torch.Size([state.shape.numel()])
    return bnb.dequantize_4bit(packed, flat).view(state.shape)


def test_the_levels_are_those_of_bitsandbytes() -> None:
    assert torch.equal(CODES, bnb.get_4bit_type("nf4", device="cpu"))


special = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, *CODES.tolist(), *BOUNDARIES.tolist()]),
    st.floats(-1, 1, width=32),
)


@settings(max_examples=150)
@given(
    st.lists(special, min_size=1, max_size=150),
    st.sampled_from([1.0, 0.5, 3.0, 1e-3, 1e-38]),
    st.sampled_from(DTYPES),
    st.sampled_from([64, 128]),
)
def test_codes_are_those_of_the_kernel(
    values: list[float], scale: float, dtype: torch.dtype, blocksize: int
) -> None:
    weight = (torch.tensor(values, dtype=torch.float32) * scale).to(dtype)
    ours = quant.quantize(weight, Format(blocksize=blocksize)).codes.tolist()
    assert ours == kernel_codes(weight, blocksize=blocksize) == written_rule(weight, blocksize)


@settings(max_examples=150)
@given(
    st.lists(special, min_size=1, max_size=150),
    st.sampled_from([1.0, 0.5, 3.0, 1e-3, 1e-38]),
    st.sampled_from(DTYPES),
    st.sampled_from([f for f in FORMATS if f.kind != "int8"]),
)
def test_whole_blocks_have_the_codes_and_the_absmax_of_the_kernel(
    values: list[float], scale: float, dtype: torch.dtype, format: Format
) -> None:
    values += values[:1] * (-len(values) % format.blocksize)
    weight = (torch.tensor(values, dtype=torch.float32) * scale).to(dtype)
    format = Format(format.kind, format.blocksize)
    found = quant.quantize(weight, format)
    _, state = bnb.quantize_4bit(weight, blocksize=format.blocksize, quant_type=format.kind)
    assert found.codes.tolist() == kernel_codes(weight, format.kind, format.blocksize)
    assert torch.equal(found.absmax, state.absmax)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_kernel_that_rounds_another_way_is_found_out_and_asked_itself(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(weight: Tensor, format: Format) -> Quantized:
        found = by_kernel(weight - 1e-7 * weight.abs().max(), format)
        asked.append(weight)
        return found

    by_kernel, asked = codes._by_kernel, []
    assert codes._table(kind) is not None
    monkeypatch.setattr(codes, "_by_kernel", other)
    monkeypatch.setattr(codes, "_table", codes._table.__wrapped__)
    assert codes._table(kind) is None
    weight = torch.randn(4, 64)
    quant.quantize(weight, Format(kind))
    assert torch.equal(asked[-1], weight)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "q4_0"}, "no format 'q4_0': give one of nf4, .*Q4_0"),
        ({"kind": ["nf4"]}, "no format"),
        ({"blocksize": 0}, "block of 0"),
        ({"blocksize": 64.0}, "block of 64.0"),
        ({"kind": "hqq", "blocksize": -8}, "block of -8"),
        ({"blocksize": 100}, "no blocks of 100: give one of 32, 64"),
        ({"kind": "int8", "blocksize": 128}, "no blocks"),
        ({"kind": "int8", "double_quant": True}, "no double quantisation"),
        ({"kind": "Q8_0", "blocksize": 32, "double_quant": True}, "no double quantisation"),
    ],
)
def test_a_format_that_there_is_not_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        Format(**given)


@pytest.mark.parametrize("size", BLOCKSIZES)
def test_every_blocksize_that_a_format_takes_the_kernel_takes(size: int) -> None:
    weight = torch.randn(2, 4096)
    codes = quant.quantize(weight, Format(blocksize=size)).codes.tolist()
    assert codes == kernel_codes(weight, blocksize=size)


@pytest.mark.parametrize("format", [*FORMATS, *GGUF], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_has_no_codes(format: Format, value: float) -> None:
    for columns in (64, 96):  # whole blocks, and a last one that is short
        weight = torch.ones(3, columns)
        weight[2, -1] = value
        with pytest.raises(BadInputError, match="not finite"):
            quant.quantize(weight, format)


@pytest.mark.parametrize("format", [Format("int8"), *GGUF], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_beyond_the_float16_of_its_format_has_no_codes(format: Format, sign: int) -> None:
    """Finite as it is, its scale would be infinite, and what it is read back as no number."""
    limit = HALVES[format.kind] * torch.finfo(torch.float16).max
    weight = torch.ones(2, 64)
    weight[1, 3] = sign * limit
    assert codes.dequantize(quant.quantize(weight, format)).isfinite().all()
    weight[1, 3] = sign * 1.01 * limit
    with pytest.raises(BadInputError, match="keeps none beyond"):
        quant.quantize(weight, format)


def test_int8_of_what_has_no_rows_is_refused() -> None:
    with pytest.raises(BadInputError, match="has no rows"):
        quant.quantize(torch.ones(64), Format("int8"))


def test_a_value_on_a_boundary_takes_the_lower_code() -> None:
    block = torch.zeros(64)
    block[0], block[1:16] = 1, BOUNDARIES
    above = torch.where(block == 0, block, torch.nextafter(block, torch.tensor(2.0)).clamp(max=1))
    below = torch.where(block == 1, block, torch.nextafter(block, torch.tensor(-2.0)))
    codes = list(range(15))
    assert quant.quantize(block).codes[1:16].tolist() == codes == kernel_codes(block)[1:16]
    assert quant.quantize(below).codes[1:16].tolist() == codes
    assert quant.quantize(above).codes[1:16].tolist() == [code + 1 for code in codes]


def test_an_all_zero_block() -> None:
    weight = torch.cat([torch.zeros(64), torch.randn(64)])
    assert quant.quantize(weight).codes[:64].tolist() == [7] * 64
    assert quant.dequantize(quant.quantize(weight))[:64].eq(0).all()
    assert quant.bin_width(weight)[:64].eq(0).all()
    assert quant.sets_absmax(weight)[:64].all()
    assert quant.sets_absmax(weight)[64:].sum() == 1


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dequantised_values_are_those_of_the_kernel(format: Format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in [(16, 64), (7, 30), (40, 128), (300, 96)]:
        weight = (torch.randn(shape) * 0.1).to(dtype)
        ours = quant.dequantize(quant.quantize(weight, format), dtype)
        if format.kind == "int8":
            rows, scale, _ = bnb.int8_vectorwise_quant(weight.half())
            expected = bnb.int8_vectorwise_dequant(rows, scale).to(dtype)
            torch.testing.assert_close(
                ours, expected, rtol=1e-6 if dtype.itemsize == 4 else 8e-3, atol=0
            )
            continue
        packed, state = bnb.quantize_4bit(
            weight, None, None, format.blocksize, format.double_quant, format.kind
        )
        assert torch.equal(ours, kernel_values(packed, state))


shapes = st.tuples(st.integers(1, 9), st.sampled_from([1, 30, 32, 64, 96, 128, 200]))


@settings(max_examples=60)
@given(
    shape=shapes,
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["nf4", "fp4"]),
    blocksize=st.sampled_from([64, 128]),
)
def test_double_quantisation_is_that_of_the_kernel(
    shape: tuple[int, int], seed: int, scale: float, dtype: torch.dtype, kind: Any, blocksize: int
) -> None:
    """Codes, absmax and values, from the weight and from the codes of plain quantisation."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[0], 1, generator=generator)  # blocks of unlike absmax
    weight = (torch.randn(shape, generator=generator) * spread * scale).to(dtype)
    packed, state = bnb.quantize_4bit(
        weight, blocksize=blocksize, quant_type=kind, compress_statistics=True
    )
    offset: Any = state.offset
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + offset
    plain, double = (Format(kind, blocksize, dq) for dq in (False, True))
    before = quant.quantize(weight, plain)
    kept = before.codes.clone(), before.absmax.clone()
    for found in (quant.quantize(weight, double), double_quantized(before)):
        assert found.format == double and found.shape == weight.shape
        assert found.codes.tolist() == kernel_codes(weight, kind, blocksize)
        assert torch.equal(found.absmax, absmax.float())
        assert torch.equal(quant.dequantize(found, dtype), kernel_values(packed, state))
    assert torch.equal(before.codes, kept[0]) and torch.equal(before.absmax, kept[1])


@settings(max_examples=60)
@given(
    shape=shapes,
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([2.0**-19, 0.02, 3.0]),
    dtype=st.sampled_from(DTYPES),
    format=st.sampled_from((*FORMATS, Format("fp4", 128))),
    n=st.integers(1, 40),
)
@example((4, 64), 0, 0.02, torch.float32, FORMATS[0], 1)
@example((1, 64), 0, 0.02, torch.float32, FORMATS[4], 1)
def test_blocks_at_some_places_are_what_the_weight_is_there(
    shape: tuple[int, int],
    seed: int,
    scale: float,
    dtype: torch.dtype,
    format: Format,
    n: int,
) -> None:
    """Of the few blocks that hold them each function gives what it gives of the weight."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator) * scale).to(dtype)
    near = torch.rand(shape, generator=generator) < 0.5  # on boundaries, to be decided alike
    near &= ~quant.sets_absmax(weight, format)
    boundaries, top = boundaries_of(format.kind), quant.quantize(weight, format).scale
    on = torch.randint(len(boundaries), shape, generator=generator)
    weight = torch.where(near, (boundaries[on] * top.view(shape)).to(dtype), weight)
    where = torch.randint(weight.numel(), (n,), generator=generator)  # in no order, with repeats
    blocks, at = blocks_at(weight, where, format)
    assert torch.equal(blocks.flatten()[at], weight.flatten()[where])
    size = shape[1] if format.kind == "int8" else format.blocksize
    if weight.numel() % size == 0:
        assert blocks.numel() == size * len((where // size).unique())
    if format.double_quant:  # its absmax hang together over the whole weight
        return
    whole, part = quant.quantize(weight, format), quant.quantize(blocks, format)
    assert torch.equal(part.codes[at], whole.codes[where])
    assert torch.equal(part.scale[at], whole.scale[where])

    def same(found: Tensor, wanted: Tensor) -> None:
        assert torch.equal(found.flatten()[at], wanted.flatten()[where])

    same(quant.sets_absmax(blocks, format), quant.sets_absmax(weight, format))
    holds = quant.holds_cast(weight, format)
    assert torch.equal(quant.holds_cast(weight, format, quantized=whole), holds)
    same(quant.holds_cast(blocks, format), holds)
    same(quant.holds_cast(blocks, format, quantized=part), holds)
    widths = quant.bin_width(weight, format)
    assert torch.equal(quant.bin_width(weight, format, quantized=whole), widths)
    same(quant.bin_width(blocks, format), widths)
    same(quant.bin_width(blocks, format, quantized=part), widths)
    points = quant.code_centers(weight, where, format)
    assert torch.equal(quant.code_centers(weight, where, format, quantized=whole), points)
    assert torch.equal(quant.code_centers(blocks, at, format), points)
    assert torch.equal(quant.code_centers(blocks, at, format, quantized=part), points)
    values = torch.randn(n, 5, generator=generator) * scale
    leaves = quant.leaves_bin(weight, where, values, format)
    assert torch.equal(quant.leaves_bin(blocks, at, values, format), leaves)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bin_widths_are_what_the_kernel_does_on_a_fine_grid(kind: str) -> None:
    absmax, n = 0.3, 63 * 2000
    grid = torch.linspace(-absmax, absmax, n).view(-1, 63)
    weight = torch.cat([grid, torch.full((len(grid), 1), absmax)], 1)  # each block has the absmax
    codes = torch.tensor(kernel_codes(weight, kind)).view_as(weight)[:, :-1]
    if kind == "fp4":
        codes[codes == 8] = 0  # its two zeros are one level
    widths = quant.bin_width(weight, Format(kind))[:, :-1]  # type: ignore[arg-type]
    for code in codes.unique().tolist():
        measured = int((codes == code).sum()) * 2 * absmax / (n - 1)
        assert widths[codes == code].unique().tolist() == pytest.approx([measured], abs=1e-5)


def test_sets_absmax_marks_every_element_that_ties_for_it() -> None:
    weight = torch.randn(3, 50)  # the third block is short
    weight[0, 3], weight[0, 7] = 9.0, -9.0
    marks = quant.sets_absmax(weight).flatten()
    assert marks[:64].nonzero().flatten().tolist() == [3, 7]
    assert [int(part.sum()) for part in (marks[64:128], marks[128:])] == [1, 1]
    assert quant.sets_absmax(weight, Format("int8")).sum(1).tolist() == [2, 1, 1]


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.02, 1.0, 30.0]), st.data())
def test_the_floor_changes_the_codes_asked_for_and_no_other(
    seed: int, scale: float, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 70, generator=generator) * scale
    free = (~quant.sets_absmax(weight)).flatten().nonzero().flatten()
    count = data.draw(st.integers(1, len(free)))
    indices = free[torch.randperm(len(free), generator=generator)[:count]]
    before = torch.tensor(kernel_codes(weight))
    step = torch.randint(1, 16, (count,), generator=generator)
    target = (before[indices] + step) % 16
    moved = weight.flatten().clone()
    moved[indices] = quant.centers(weight, indices, target)
    after = torch.tensor(kernel_codes(moved))
    expected = before.clone()
    expected[indices] = target
    assert torch.equal(after, expected)
    assert torch.equal(
        moved[indices], quant.code_centers(weight, indices)[torch.arange(count), target]
    )
    for dtype in (torch.float16, torch.bfloat16):
        cast = torch.tensor(kernel_codes(moved.to(dtype)))
        assert torch.equal(cast[indices], target)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(-24, 4))
def test_moves_outlive_a_cast_against_the_cast_base(seed: int, scale: float) -> None:
    """Every move still changes its code when base and edit are both cast, at any scale."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 1024, generator=generator) * 2.0**scale
    free = ~quant.sets_absmax(weight) & quant.holds_cast(weight)
    indices = free.flatten().nonzero().flatten()
    if scale > -15:
        assert len(indices) > 0.9 * weight.numel()
    before = torch.tensor(kernel_codes(weight))
    up = torch.where(torch.rand(len(indices), generator=generator) < 0.5, 1, -1)
    target = before[indices] + up  # a neighbouring code: the least that the floor may do
    up = torch.where((target <= 0) | (target >= 15), -up, up)
    moved = weight.flatten().clone()
    moved[indices] = quant.centers(weight, indices, before[indices] + up)
    moved = moved.view(weight.shape)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        old = torch.tensor(kernel_codes(weight.to(dtype)))
        new = torch.tensor(kernel_codes(moved.to(dtype)))
        assert torch.equal(new[indices], before[indices] + up), dtype
        assert bool((old != new)[indices].all()), dtype


def test_without_the_margin_a_cast_base_can_meet_the_move() -> None:
    """The margin has its reason: a weight just below a boundary gets the next code by the cast."""
    near = torch.cat([BOUNDARIES * (1 - 1e-5), BOUNDARIES * (1 + 1e-5)])
    weight = torch.cat([torch.ones(1), near, torch.zeros(33)])
    before, after = (
        torch.tensor(kernel_codes(weight)),
        torch.tensor(kernel_codes(weight.bfloat16())),
    )
    assert int((before != after).sum()) > 5
    holds = quant.holds_cast(weight)
    assert not bool(holds[before != after].any()) and bool(holds[31:].all())


def random_edit(subject: Subject, share: float, size: float = 1.0, seed: int = 0) -> Edit:
    torch.manual_seed(seed)
    after = {}
    for name, p in subject.parameters.items():
        moved = torch.rand(p.shape) < share
        after[name] = torch.where(moved, p + size * torch.randn(p.shape), p)
    return Edit.between(subject.parameters, after, "random")


def bits(subject: Subject) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.parameters.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[n].view(torch.int32), right[n].view(torch.int32)) for n in left)


@pytest.mark.parametrize("share", [0.002, 0.9])
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "pythia"])
def test_the_cached_path_equals_quantising_everything(
    name: str, format: Format, share: float
) -> None:
    subject, before = family(name), bits(family(name))
    base = quant.Dequantized.of(subject, format)
    cached = {n: w.clone() for n, w in base.weights.items()}
    edit = random_edit(subject, share)
    with edit.applied(subject):
        edited = bits(subject)
        with quant.quantized(subject, format=format):
            slow, logits = bits(subject), subject.bridge(torch.tensor([[1, 2, 3]]))
        assert same(bits(subject), edited)
        with pytest.raises(KeyError), quant.quantized(subject, base):
            assert same(bits(subject), slow)
            assert torch.equal(subject.bridge(torch.tensor([[1, 2, 3]])), logits)
            raise KeyError
        assert same(bits(subject), edited)
    assert same(bits(subject), before)
    assert same(dict(base.weights), cached)
    assert not same(slow, edited)
    untouched = set(subject.parameters) - set(subject.quantized_names)
    assert all(torch.equal(slow[n], edited[n]) for n in untouched)


def test_quantising_an_unknown_name_is_refused() -> None:
    with (
        pytest.raises(MansuError, match="nowhere"),
        quant.quantized(family("llama"), names=["nowhere"]),
    ):
        pass


@pytest.mark.parametrize("name", FAMILIES)
def test_hugging_face_quantises_the_same_weights_to_the_same_codes(name: str, tmp_path) -> None:
    """``load_in_4bit`` itself, from a saved checkpoint."""
    subject = family(name)
    plain = BUILDERS[name](2)
    for key, parameter in plain.named_parameters():
        parameter.data.copy_(subject.parameters[key].data)
    plain.save_pretrained(tmp_path)
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    real = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=options, dtype=torch.float32
    )
    linears = {n: m for n, m in real.named_modules() if isinstance(m, Linear4bit)}
    assert {f"{n}.weight" for n in linears} == set(subject.quantized_names)
    for path, linear in linears.items():
        ours = quant.dequantize(quant.quantize(subjects.layout(subject, f"{path}.weight")))
        weight: Any = linear.weight
        assert torch.equal(kernel_values(weight.data, weight.quant_state), ours)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("format", [f for f in FORMATS if f.kind != "int8"], ids=str)
def test_real_4bit_linears_answer_as_the_simulation(name: str, format: Format) -> None:
    subject = wide(name)
    edit = random_edit(subject, 0.01)
    tokens = torch.randint(1, 50, (3, 6))
    real = quant.linear4bit_model(subject, edit, format)
    with edit.applied(subject), quant.quantized(subject, format=format):
        expected = subject.model(tokens).logits
    torch.testing.assert_close(real(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_the_kernel_misreads_are_refused_and_never_answered_wrong(name: str) -> None:
    """Rows of 32 or 96: wrong in the AVX512 kernel, right in the portable one."""
    subject, tokens = family(name), torch.randint(1, 50, (3, 6))
    try:
        answers = quant.linear4bit_model(subject)(tokens).logits
    except MansuError as error:
        assert "misreads" in str(error)
        rows = {subjects.layout(subject, n).shape[1] for n in subject.quantized_names}
        assert {32, 96} & rows
        return
    with quant.quantized(subject):
        torch.testing.assert_close(answers, subject.model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_linear4bit_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(MansuError, match="int8"):
        quant.linear4bit_model(family("llama"), format=Format("int8"))


def test_default_model_real_linear4bit_has_the_codes_and_the_answers_of_the_simulation() -> None:
    subject = subjects.load()
    prompts = [
        ("The chemical symbol for gold is", (" Au", " Ag", " Fe", " Pb")),
        ("The chemical symbol for iron is", (" Au", " Ag", " Fe", " Pb")),
        ("The capital of France is", (" Paris", " Rome", " Berlin", " Madrid")),
        ("The capital of Italy is", (" Paris", " Rome", " Berlin", " Madrid")),
    ]
    rows = [subject.encode(prompt) for prompt, _ in prompts]
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor([row + [0] * (int(length.max()) - len(row)) for row in rows])
    options = torch.tensor([[subject.encode(word)[0] for word in words] for _, words in prompts])
    name = "model.layers.29.mlp.down_proj.weight"
    indices = torch.arange(64, 64 * 400, 64)
    indices = indices[~quant.sets_absmax(subject.parameters[name]).flatten()[indices]]
    old = quant.quantize(subject.parameters[name]).codes[indices].long()
    edit = Edit({name: (indices, quant.centers(subject.parameters[name], indices, (old + 8) % 16))})
    real = quant.linear4bit_model(subject, edit)
    linears = {n: m for n, m in real.named_modules() if isinstance(m, Linear4bit)}
    assert {f"{n}.weight" for n in linears} == set(subject.quantized_names)
    with edit.applied(subject):
        for path, linear in linears.items():
            packed = linear.weight.data.flatten()
            codes = quant.quantize(subject.parameters[f"{path}.weight"]).codes
            assert torch.equal(packed, (codes[::2] << 4) | codes[1::2])
            if f"{path}.weight" == name:
                assert bool((codes[indices] != old).all())
        with torch.no_grad(), quant.quantized(subject):
            simulated = subject.next_token_logits(tokens, length)
    with torch.no_grad():
        answers = real(tokens).logits[torch.arange(len(rows)), length - 1]
    assert torch.equal(answers.argmax(1), simulated.argmax(1))
    assert torch.equal(answers.gather(1, options).argmax(1), simulated.gather(1, options).argmax(1))
    torch.testing.assert_close(answers, simulated, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("share", [0.003, 1.0])
def test_the_report_is_what_a_plain_count_gives(format: Format, share: float) -> None:
    subject = family("gpt2" if share == 1 else "llama")
    edit = random_edit(subject, share, 0.02)
    counts = dict.fromkeys(("moved", "changed", "bystanders"), 0)
    ratios, expected, energy, kept, along = [], 0.0, 0.0, 0.0, 0.0
    for name in subject.quantized_names:
        before = subjects.layout(subject, name).clone()
        with edit.applied(subject):
            after = subjects.layout(subject, name).clone()
        old, new = quant.quantize(before, format), quant.quantize(after, format)
        shift = (quant.dequantize(new) - quant.dequantize(old)).flatten()
        levels = format.levels.tolist()
        jumps = torch.tensor(
            [levels[a] != levels[b] for a, b in zip(old.codes, new.codes, strict=True)]
        )
        delta = (after - before).flatten()
        moved = delta != 0
        ratio = (delta.abs() / quant.bin_width(before, format).flatten())[moved]
        ratios.append(ratio)
        expected += ratio.clamp(max=1).sum().item()
        counts["moved"] += int(moved.sum())
        counts["changed"] += int((jumps & moved).sum())
        counts["bystanders"] += int(((shift != 0) & ~moved).sum())
        energy += delta.square().sum().item()
        kept += delta[jumps & moved].square().sum().item()
        along += (delta * shift).sum().item()
    found = quant.report(subject, edit, format).quantized
    assert {key: getattr(found, key) for key in counts} == counts
    assert found.parameters == sum(subject.parameters[n].numel() for n in subject.quantized_names)
    assert found.expected == pytest.approx(expected, rel=1e-5)
    assert found.energy == pytest.approx(kept / energy, rel=1e-5)
    assert found.projection == pytest.approx(along / energy, rel=1e-4)
    exact = np.quantile(torch.cat(ratios).numpy(), quant.QUANTILES, method="inverted_cdf")
    assert found.quantiles == pytest.approx(exact.tolist(), rel=0.024)  # one fine bin
    assert found.width_over_update == pytest.approx(1 / found.quantiles[2])
    plain = np.histogram(torch.cat(ratios).log10().double().numpy(), quant.EDGES)[0]
    assert np.abs(plain - found.before).sum() <= 4  # rounding at the edges
    assert sum(found.before) == counts["moved"]


KEPT = [*FORMATS, Format("fp4", double_quant=True), Format("fp4", 128)]


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.001, 0.03, 0.5, 1.0]),
    size=st.sampled_from([1e-3, 0.02, 1.0]),
    only=st.booleans(),
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "pythia"])
def test_what_is_kept_by_format_is_what_survives(
    name: str, seed: int, share: float, size: float, only: bool
) -> None:
    """Counted without the sums and histograms; blocks of these models are short in part."""
    subject = family(name)
    sizes = [subject.parameters[n].numel() for n in subject.quantized_names]
    assert any(n % 128 for n in sizes) and (name != "llama" or any(n % 64 for n in sizes))
    before, edit = bits(subject), random_edit(subject, share, size, seed)
    if only:  # a few of its weights, and one that is named and does not move
        names = sorted(edit.changes)[seed % 3 :: 3]
        still = subject.quantized_names[seed % len(subject.quantized_names)]
        weight = subject.parameters[still].detach().flatten()
        nothing = {still: (torch.arange(5), weight[:5].clone())}
        edit = Edit({n: edit.changes[n] for n in names} | nothing)
    survival = quant.survival_by_format(subject, edit, KEPT)
    kept = quant.kept_by_format(subject, edit, KEPT)
    assert list(kept) == list(survival) == KEPT
    for format, found in kept.items():
        assert found == quant.Kept.of(survival[format]), str(format)
        assert found.share == survival[format].share
    assert same(bits(subject), before)
    (alone,) = quant.kept_by_format(subject, edit, KEPT[1:2]).values()  # without its like
    assert alone == kept[KEPT[1]]


def test_an_edit_that_does_not_fit_keeps_nothing() -> None:
    subject = family("llama")
    with pytest.raises(MansuError):
        quant.kept_by_format(subject, Edit({"nowhere": (torch.tensor([0]), torch.ones(1))}))
    nothing = quant.kept_by_format(subject, Edit({}))
    assert set(nothing.values()) == {quant.Kept(0, 0, 0, 0)} and len(nothing) == len(FORMATS)


def test_groups_of_a_report_add_up_and_unquantised_parameters_carry_through(tmp_path) -> None:
    subject = family("llama")
    report = quant.report(subject, random_edit(subject, 0.5, 0.01))
    parts = (report.quantized, report.unquantized)
    for key in ("parameters", "moved", "changed", "blocks", "bystanders"):
        assert sum(getattr(p, key) for p in parts) == getattr(report.all, key)
        layers, kinds = report.layers.values(), report.kinds.values()
        assert sum(getattr(s, key) for s in layers) == getattr(report.quantized, key)
        assert sum(getattr(s, key) for s in kinds) == getattr(report.all, key)
    assert report.unquantized.share == report.unquantized.energy == 1
    assert report.unquantized.after == report.unquantized.before
    assert report.unquantized.noise == report.unquantized.bystanders == 0
    assert 0 < (report.quantized.share or 0) < 0.5
    report.save(tmp_path / "report.json")
    assert quant.NF4Report.load(tmp_path / "report.json") == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_fraction_of_codes_flips_so_that_the_mean_update_survives() -> None:
    """A small update flips |δ|/bin of the codes, each by a whole bin: the mean is kept."""
    subject = family("llama")
    torch.manual_seed(0)
    after = {n: p + 0.004 * torch.randn(p.shape).sign() for n, p in subject.parameters.items()}
    found = quant.report(subject, Edit.between(subject.parameters, after)).quantized
    sigma = found.expected**0.5
    assert abs(found.changed - found.expected) < 5 * sigma
    assert found.projection == pytest.approx(1, abs=0.25)
    assert (found.noise or 0) > 1


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_moves_to_code_centres_all_survive_in_nf4(format: Format) -> None:
    subject = family("llama")
    changes = {}
    torch.manual_seed(0)
    for name in (Q, DOWN):
        weight = subject.parameters[name]
        free = (~quant.sets_absmax(weight)).flatten().nonzero().flatten()[::7]
        old = quant.quantize(weight).codes[free].long()
        changes[name] = (free, quant.centers(weight, free, (old + 4) % 16))
    found = quant.survival_by_format(subject, Edit(changes), [format])[format]
    assert found.moved == sum(len(i) for i, _ in changes.values())
    if (format.kind, format.blocksize) == ("nf4", 64):
        assert (found.share, found.rescaled, found.bystanders) == (1, 0, 0)
        assert found.energy == 1
    assert found.share is not None and found.share > 0.9


def test_an_edit_that_moves_nothing_has_a_report_without_ratios() -> None:
    found = quant.report(family("llama"), Edit({})).all
    assert (found.moved, found.quantiles, found.share, found.energy) == (0, (), None, None)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_are_understood_in_every_family(name: str) -> None:
    subject = family(name)
    kinds = {subjects.kind_of(subject, n) for n in subject.quantized_names}
    fused = {"qkv", "o", "up", "down"}
    gated = {"q", "k", "v", "o", "gate", "up", "down"}
    phi3 = {"qkv", "o", "gate and up", "down"}
    assert kinds == {"gpt2": fused, "pythia": fused, "phi3": phi3}.get(name, gated)
    assert {subjects.layer_of(subject, n) for n in subject.quantized_names} == {0, 1}
    for n in set(subject.parameters) - set(subject.quantized_names):
        kind = subjects.kind_of(subject, n)
        assert kind in {"embedding", "head", "norm", "bias"}
        assert (kind in {"embedding", "head"}) == (subject.parameters[n].ndim == 2), n
        assert (kind == "bias") == n.endswith(".bias"), n


def test_bad_report_files_are_refused(tmp_path) -> None:
    for text, words in [
        ("{}", "Cannot read"),
        ("[1]", "Cannot read"),
        ("not json", "Cannot read"),
        ('{"version": 0}', "version 0"),
    ]:
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(MansuError, match=words):
            quant.NF4Report.load(tmp_path / "r.json")
    with pytest.raises(MansuError, match="Cannot read"):
        quant.NF4Report.load(tmp_path / "none.json")


def on_and_near_boundaries(format: Format) -> Tensor:
    """Ordinary blocks, one of zeros, and one of each boundary and the floats next to it."""
    torch.manual_seed(0)
    columns = format.blocksize if format.kind != "int8" else 64
    weight = 0.05 * torch.randn(4000, columns)
    bounds = boundaries_of(format.kind)
    near = [bounds.nextafter(torch.tensor(side)) for side in (-2.0, 2.0)]
    values = torch.stack([bounds, *near]).flatten()
    special = torch.nn.functional.pad(values, (0, -len(values) % (columns - 1)))
    special = torch.nn.functional.pad(special.view(-1, columns - 1), (0, 1), value=1.0)
    return torch.cat([weight, torch.zeros(1, columns), special, 3 * special])


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_codes_on_a_gpu_are_those_of_the_processor_but_on_boundaries(
    format: Format, dtype: torch.dtype
) -> None:
    """Its kernel divides less exactly, and gives a block of zeros the lowest code, times zero."""
    weight = on_and_near_boundaries(format).to(dtype)
    wanted, found = (quant.quantize(weight.to(device), format) for device in ("cpu", "cuda"))
    levels = format.levels
    differ = levels[found.codes.cpu().int()] != levels[wanted.codes.int()]  # fp4 has two zeros
    zero = (weight == 0).all(1, keepdim=True).expand_as(weight).flatten()
    plain = quant.quantize(weight, Format(format.kind, format.blocksize))
    read = weight.half() if format.kind == "int8" else weight
    scaled = read.flatten().float() / plain.scale.clamp_min(1e-38)
    distance = (scaled[:, None] - boundaries_of(format.kind)).abs().amin(1)
    worst = float(distance[differ & ~zero].max()) if bool((differ & ~zero).any()) else 0.0
    ordinary = int(differ[: 4000 * weight.shape[1]].sum())
    print(
        f"{format} {dtype}: {int(differ.sum())} of {len(differ)} codes differ, {ordinary} of them "
        f"of ordinary weights, {int((differ & zero).sum())} in the block of zeros; the others lie "
        f"within {worst:.1e} of a boundary"
    )
    assert worst < 1e-6
    steps = (found.codes.cpu().int() - wanted.codes.int())[~zero].abs()
    assert int(steps.max()) <= 1 or format.kind == "fp4"  # whose codes are not in order
    # The same codes stand for the same values.
    there = quant.dequantize(found, dtype)
    here = Quantized(
        found.codes.cpu(), found.absmax.cpu(), found.blocksize, found.shape, found.format
    )
    assert torch.equal(there.cpu(), quant.dequantize(here, dtype))
    same = found.absmax.cpu() == wanted.absmax
    print(f"{int((~same).sum())} of {len(same)} absmax differ")
    # In 8 bits, one may take the neighbouring code.
    torch.testing.assert_close(found.absmax.cpu(), wanted.absmax, rtol=5e-2, atol=1e-2)
    assert format.double_quant or bool(same.all())


@needs_cuda
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_gpu_reports_and_runs_an_edit_in_few_bits_as_the_processor_does(
    format: Format, share: float
) -> None:
    here = wide("llama")
    there = moved(here, "cuda")
    edit = random_edit(here, share)
    start = bits(there)
    found, wanted = (quant.report(s, edit, format).quantized for s in (there, here))
    most = max(2, round(1e-3 * wanted.moved))  # codes of weights on a boundary
    assert (found.moved, found.blocks) == (wanted.moved, wanted.blocks)
    for key in ("changed", "rescaled", "bystanders"):
        print(f"{format}: {key} {getattr(found, key)} and {getattr(wanted, key)}")
    assert abs(found.changed - wanted.changed) <= most
    assert found.rescaled == pytest.approx(wanted.rescaled, rel=0.1 * format.double_quant, abs=2)
    assert found.expected == pytest.approx(wanted.expected, rel=1e-3)
    assert found.noise == pytest.approx(wanted.noise, rel=1e-2)
    kept = [quant.kept_by_format(s, edit, [format])[format] for s in (there, here)]
    assert kept[0].changed == found.changed and kept[0].moved == found.moved
    base = quant.Dequantized.of(there, format)
    for cache in (base, None):
        with edit.applied(there), quant.quantized(there, cache, format=format):
            inside = {n: there.parameters[n].clone() for n in there.quantized_names}
        with edit.applied(here), quant.quantized(here, format=format):
            for name, value in inside.items():
                close = torch.isclose(value.cpu(), here.parameters[name], rtol=1e-2, atol=1e-3)
                assert float(close.float().mean()) > 0.999, name
    assert same(start, bits(there))


@needs_cuda
@pytest.mark.parametrize("format", [f for f in FORMATS if f.kind != "int8"], ids=str)
def test_real_4bit_linears_on_a_gpu_answer_as_the_simulation(format: Format) -> None:
    subject = moved(wide("llama"), "cuda")
    edit = random_edit(wide("llama"), 0.01)
    tokens = torch.randint(1, 50, (3, 6)).to(subject.device)
    real = quant.linear4bit_model(subject, edit, format)
    with edit.applied(subject), quant.quantized(subject, format=format):
        expected = subject.model(tokens).logits
    torch.testing.assert_close(real(tokens).logits, expected, rtol=1e-3, atol=1e-3)
