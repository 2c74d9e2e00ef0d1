"""A loaded checkpoint is pages of its file: shared by processes, let go where memory is short."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mansu import quant, subjects
from mansu.circuits.attribution import attribute
from mansu.subjects.edit import Edit
from mansu.subjects.shipped import located
from mansu.tasks.tokens import Pairs

MIB = 2**20


def own(file: Path) -> tuple[int, int]:
    """Bytes of a file that this process maps, and those of them that are its own."""
    size = dirty = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if " " in key:  # the head of a mapping: addresses, rights, …, path
            inside = line.endswith(str(file))
        elif inside and key == "Size":
            size += int(value.split()[0]) << 10
        elif inside and key == "Anonymous":  # a page that is not on the disk yet is dirty, too
            dirty += int(value.split()[0]) << 10
    return size, dirty


def test_weights_stay_pages_of_the_file_but_those_that_an_edit_moves(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for file in located("tiny").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    subject = subjects.load(str(tmp_path))
    file = tmp_path.resolve() / "model.safetensors"
    weights = sum(p.numel() * p.element_size() for p in subject.parameters.values())
    clean = torch.randint(0, 512, (2, 6), generator=torch.Generator().manual_seed(0))
    corrupt = (clean + 1) % 512
    one, two = torch.tensor([3, 4]), torch.tensor([5, 6])
    pairs = Pairs(clean, corrupt, torch.tensor([6, 6]), one, two, (0, 1))
    attribute(subject, pairs, steps=1)
    with quant.quantized(subject):
        pass
    size, dirty = own(file)
    assert size >= weights > 30 * MIB
    assert dirty < MIB / 4
    name = subject.quantized_names[0]
    with Edit({name: (torch.arange(4096), torch.ones(4096))}).applied(subject):
        assert subject.parameters[name].flatten()[0] != 0
        assert 0 < own(file)[1] < MIB
