"""Attribution, MANSU and NF4 on a random model that its memory does not hold: the same numbers.

    python -m experiments.benchmarks.capped --width 1024 --inner 4096 --layers 4

The checkpoint is in bfloat16, and worked on in float32, as mapped pages of a file. The private
memory of the process (``RLIMIT_DATA``, in which the mapped weights count) is then capped at
``ROOM`` of the weights more than it has. There the work in memory fails, and that with
``subjects.load(…, offload=…)`` does not; without the cap both find the same bytes. JSON is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.benchmarks.attribution import resident
from experiments.benchmarks.speed import random_pairs, random_problem
from experiments.benchmarks.watch import watched
from mansu import methods, quant, subjects
from mansu.circuits.attribution import attribute
from mansu.job.pipeline import reset_peak_memory
from mansu.measure.scores import measure
from mansu.subjects.shipped import located
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of

ROOM = 0.9
"""Memory that the work may take beside the mapped weights, in sizes of them."""
PAIRS, TOKENS, FACTS, SHARE, WORDS = 2, 8, 4, 0.001, 512


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        weights: bytes of them. cap: bytes of private memory beside them.
        failed: how the work in memory ends under the cap; "" if it does not.
        offloaded, in_memory: growth of private memory in bytes, and CPU seconds, of the work on the
            disk under the cap and of that in memory without it.
        same: whether both have the same bytes: scores of edges, the edit, its answers in NF4.
    """

    weights: int
    cap: int
    failed: str
    offloaded: tuple[int, float]
    in_memory: tuple[int, float]
    same: bool


def work(subject: Subject) -> str:
    """The work, as sha256 of all that it finds."""
    digest = hashlib.sha256()
    pairs, problem = random_pairs(PAIRS, TOKENS), random_problem(subject, FACTS, TOKENS, 0.0)
    # As few tokens, and of as few words, as can be: of a large model the weights are more than all
    # that runs on them.
    clean, corrupt, answer, foil = (
        some % WORDS for some in (pairs.clean, pairs.corrupt, pairs.answer, pairs.foil)
    )
    pairs = replace(pairs, clean=clean, corrupt=corrupt, answer=answer, foil=foil)
    problem = replace(
        problem,
        forget=replace(problem.forget, tokens=problem.forget.tokens % WORDS),
        retain=replace(problem.retain, tokens=problem.retain.tokens % WORDS),
        text=(clean[:1], pairs.length[:1]),
        mask=heads_and_neurons(subject, SHARE),
    )
    scores = attribute(subject, pairs, steps=1, memory=1 << 27, allow_equal=True).scores
    digest.update(np.ascontiguousarray(scores).tobytes())
    edit = methods.named("mansu")(problem, steps=1, target=-1.0).edit
    for name, (where, values) in sorted(edit.changes.items()):
        digest.update(name.encode() + where.numpy().tobytes() + values.numpy().tobytes())
    base = quant.Dequantized.of(subject)
    with edit.applied(subject), quant.quantized(subject, base):
        digest.update(measure(subject, problem.forget).log_probability.tobytes())
    return digest.hexdigest()


def heads_and_neurons(subject: Subject, share: float) -> dict[str, Tensor]:
    """A mask as circuits have it: of what writes to the residual stream a few inputs, of the other
    weights a few outputs."""
    mask = {}
    for name in subject.quantized_names:
        chosen = torch.zeros_like(subject.parameters[name], dtype=torch.bool)
        some = chosen.T if kind_of(subject, name) in ("o", "down") else chosen
        some[: max(1, round(share * len(some)))] = True
        mask[name] = chosen
    return mask


def capped(width: int, inner: int, layers: int, folder: Path) -> Found:
    """Both, on a model of so many layers, made in ``folder``."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    made: Any = LlamaForCausalLM(config)
    made.to(torch.bfloat16).save_pretrained(folder / "model")
    for file in located("tiny").glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    disk = subjects.load(str(folder / "model"), offload=folder / "offload")
    memory = subjects.load(str(folder / "model"))
    in_memory, here = _timed(memory)  # the first time: what is made once a process is there then
    weights = 4 * disk.n_parameters
    cap = int(ROOM * weights)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    reset_peak_memory()
    resource.setrlimit(resource.RLIMIT_DATA, (resident("VmData") + cap, limits[1]))
    failed = ""
    try:
        offloaded, there = _timed(disk)
        try:
            work(memory)
        except (RuntimeError, MemoryError) as error:
            failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    return Found(weights, cap, failed, offloaded, in_memory, there == here)


def _timed(subject: Subject) -> tuple[tuple[int, float], str]:
    before = resident("RssAnon")
    peak: list[float] = [before]
    with watched(peak):
        start = time.process_time()
        found = work(subject)
        seconds = time.process_time() - start
    return (int(max(peak) - before), seconds), found


def give_back_what_is_free() -> None:
    """Large tensors are mappings of their own (glibc), which end with them; no heap keeps them."""
    libc = ctypes.CDLL(None)
    threshold, arenas = -3, -8  # M_MMAP_THRESHOLD, M_ARENA_MAX
    libc.mallopt(threshold, 1 << 17)
    libc.mallopt(arenas, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.capped")
    for name, value in (("width", 1024), ("inner", 4096), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    give_back_what_is_free()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(capped(**vars(options), folder=Path(folder)))))


if __name__ == "__main__":
    main()
