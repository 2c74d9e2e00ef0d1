"""The control of recovery in NF4: an edit that forgets in full precision and that NF4 undoes whole.

Gradient difference as the baseline has it, on the weights that NF4 stores, and after each step
every weight is put back into the bin that it came from. All codes stay what they were, so in NF4
the model is the unedited one. Egashira et al. 2024 (arXiv:2405.18137) hide a model's behaviour in
its bins the same way, on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from mansu.methods import Problem
from mansu.methods.training import Batch, TrainingSettings, forget_and_retain, train
from mansu.quant.block import room
from mansu.subjects.edit import Edit
from mansu.subjects.weights import layout, transposed_names


def concealed(problem: Problem, settings: TrainingSettings) -> Edit:
    """GradDiff on the quantised weights alone, with a wall at the ends of each bin.

    The subject's lock is held, and the subject is bit for bit as before when this ends.

    Raises:
        MansuError: as training does.
    """
    subject = problem.subject
    with subject.lock:
        transposed = transposed_names(subject)
        ends = {}
        for name in subject.quantized_names:
            pair = room(layout(subject, name))
            ends[name] = tuple(x.T for x in pair) if name in transposed else pair

        def within(name: str, change: Tensor) -> Tensor:
            low, high = ends[name]
            return change.clamp(low, high)

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            now, kept = forget_and_retain(subject, rows)
            yield from {"forget": now.mean(), **kept}.items()

        made = train(problem, settings, loss, names=subject.quantized_names, constrain=within)
    return replace(made.edit, label="concealed", meta={"fingerprint": subject.fingerprint})
