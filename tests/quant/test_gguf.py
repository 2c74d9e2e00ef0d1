"""GGUF's formats against the library's own values; HQQ against its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import family, wide
from gguf import GGMLQuantizationType, GGUFReader, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mansu import quant
from mansu.errors import BadInputError
from mansu.quant import fitted
from mansu.quant.formats import GGUF, HQQ, Format
from mansu.quant.ggml import HEAD, stored
from mansu.subjects import shipped
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject

IDS = torch.tensor([[1, 2, 3]])


def by_library(weight: Tensor, format: Format) -> Tensor:
    """A matrix after a trip through the library, as a file would bring it back."""
    kind = GGMLQuantizationType[format.kind]
    with np.errstate(over="ignore"):
        return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))


@settings(max_examples=80)
@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([32, 96, 128]),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-9, 0.02, 1.0, 1e4]),
    grid=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    format=st.sampled_from(GGUF),
)
def test_values_are_those_of_the_library(
    rows: int,
    columns: int,
    seed: int,
    scale: float,
    grid: bool,
    dtype: torch.dtype,
    format: Format,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if grid:  # many on the boundaries between two levels, blocks of one value, and of zeros
        weight = (weight * 2).round() / 2
        weight[0] = 0
    weight = (weight * scale).to(dtype)
    found = quant.quantize(weight, format)
    values = by_library(weight.float(), format)
    assert torch.equal(quant.dequantize(found), values)
    assert int(found.codes.max()) < len(format.levels)
    assert torch.equal(quant.dequantize(quant.quantize(weight.T.contiguous().T, format)), values)


def bits(subject: Subject) -> dict[str, Tensor]:
    return {n: p.detach().clone().view(torch.int32) for n, p in subject.parameters.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def edit_of(subject: Subject, share: float) -> Edit:
    torch.manual_seed(3)
    after = {
        name: torch.where(torch.rand(p.shape) < share, p + 0.2 * torch.randn(p.shape), p)
        for name, p in subject.parameters.items()
    }
    return Edit.between(subject.parameters, after, "random")


@pytest.mark.parametrize("format", GGUF, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_subject_runs_what_the_library_stores_and_is_put_back(
    name: str, format: Format
) -> None:
    """All matrices, also gpt2's transposed ones; from a cache the same as from nothing."""
    subject, edit = wide(name), edit_of(wide(name), 0.01)
    before, base = bits(subject), quant.Dequantized.of(subject, format)
    how = stored(subject, format)
    with edit.applied(subject):
        edited = {n: p.detach().clone() for n, p in subject.parameters.items()}
        with quant.quantized(subject, format=format):
            slow, logits = bits(subject), subject.bridge(IDS)
        with pytest.raises(KeyError), quant.quantized(subject, base):
            assert same(bits(subject), slow)
            assert torch.equal(subject.bridge(IDS), logits)
            raise KeyError
    assert same(bits(subject), before)
    for n, weight in edited.items():
        turned = name == "gpt2" and n in subject.quantized_names
        laid = (weight.T if turned else weight).contiguous()
        wanted = by_library(laid, how[n]) if n in how else laid
        assert torch.equal((wanted.T if turned else wanted).view(torch.int32), slow[n]), n


def test_llama_cpp_itself_stores_the_same_matrices_in_the_same_formats(tiny: Subject) -> None:
    """Its own Q4_1 file of a llama with tied embeddings of 576, no multiple of 256."""
    about = shipped.TABLE[shipped.DEFAULT]
    file = next(about.packages[0].folder.rglob(about.gguf))
    real = {t.name.split(".")[-2]: t.tensor_type.name for t in GGUFReader(file).tensors}
    linear, tied = ({real[n] for n in names} for names in (["attn_q", "ffn_down"], ["token_embd"]))
    format = Format("Q4_1", 32)
    how = stored(tiny, format)
    embeddings = "model.embed_tokens.weight"
    assert {str(how[n]) for n in tiny.quantized_names} == linear
    assert {str(how.pop(embeddings))} == tied == {str(HEAD)}
    assert set(how) == set(tiny.quantized_names)  # norms stay
    untied = stored(wide("llama"), format)
    assert untied["lm_head.weight"] == HEAD and untied[embeddings] == format
    assert set(stored(tiny, quant.NF4)) == set(tiny.quantized_names)


def test_rows_that_no_block_divides_are_refused() -> None:
    with (
        pytest.raises(BadInputError, match="whole blocks of 32, and this model has rows of 24"),
        quant.quantized(family("llama"), format=GGUF[0]),
    ):
        pass
    with pytest.raises(BadInputError, match="Q4_0 has blocks of 32, not 64"):
        Format("Q4_0")
    with pytest.raises(BadInputError, match="no widths"):
        quant.bin_width(torch.randn(2, 32), GGUF[0])


@pytest.mark.parametrize("format", GGUF, ids=str)
def test_what_a_format_keeps_of_an_edit_is_what_its_codes_say(format: Format) -> None:
    subject = wide("llama")
    edit = edit_of(subject, 0.02)
    found = quant.kept_by_format(subject, edit, [format])[format]
    sums = np.zeros(4, dtype=int)
    with edit.applied(subject):
        after = {n: p.detach().clone() for n, p in subject.parameters.items()}
    for name in subject.quantized_names:
        old, new = (x[name] for x in (subject.parameters, after))
        a, b = (quant.quantize(w, format) for w in (old, new))
        moved = (old != new).flatten()
        per = [torch.stack([q.absmax, q.absmax if q.offset is None else q.offset]) for q in (a, b)]
        scales = (per[0] != per[1]).any(0)
        values = (by_library(old, format) != by_library(new, format)).flatten()
        sums += [
            int(moved.sum()),
            int((moved & (a.codes != b.codes)).sum()),
            int((moved.view(-1, 32).any(1) & scales).sum()),
            int((values & ~moved).sum()),
        ]
    assert [found.moved, found.changed, found.rescaled, found.bystanders] == sums.tolist()
    assert 0 < found.changed < found.moved and found.rescaled


def test_hqq_is_that_of_its_library_and_fits_better_than_plain_rounding(tiny: Subject) -> None:
    library: Any = pytest.importorskip("hqq.core.quantize")
    weight = tiny.parameters["model.layers.0.mlp.up_proj.weight"].data
    options = {"nbits": 4, "group_size": 64, "axis": 1, "device": "cpu"}
    packed, about = library.Quantizer.quantize(weight, **options)
    with quant.quantized(tiny, format=HQQ):
        found = tiny.parameters["model.layers.0.mlp.up_proj.weight"].data.clone()
    assert torch.equal(found, library.Quantizer.dequantize(packed, about).to(found))
    plain = library.Quantizer.dequantize(
        *library.Quantizer.quantize(weight, optimize=False, **options)
    )
    assert (found - weight).abs().pow(0.7).mean() < (plain - weight).abs().pow(0.7).mean()


def test_without_the_library_hqq_says_what_to_install(
    tiny: Subject, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted, "installed", lambda: False)
    with (
        pytest.raises(BadInputError, match=r"pip install 'mansu\[hqq\]'"),
        quant.quantized(tiny, format=HQQ),
    ):
        pass
