"""Gradient ascent in the null space of the retain inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Module

from mansu.errors import MansuError
from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, train
from mansu.subjects import WRAPPER

PUBLISHED_RATE = 1e-5
CHUNK = 64


@torch.no_grad()
def retain_spans(problem: Problem, energy: float) -> dict[str, Tensor]:
    """For each linear weight, an orthonormal basis of what its inputs span on the retain set.

    Inputs are those at every real position of the retain prompts and of the plain text, each
    scaled to norm 1 so that no position dominates (a few have norms of thousands). Of the
    eigenvectors of K Kᵀ those are left out that together hold no more than ``energy`` of its
    trace: with 0 the span is exact.

    Returns:
        name → ``[inputs, rank]``, float32.
    """
    subject = problem.subject
    sums: dict[str, Tensor] = {}
    real: list[Tensor] = []  # of the chunk that is running

    def record(name: str) -> Callable[[Module, tuple[Tensor, ...]], None]:
        def hook(module: Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0][real[-1]].double()
            inputs = inputs / inputs.norm(dim=1, keepdim=True).clamp_min(1e-12)
            outer = inputs.T @ inputs
            sums[name] = sums[name] + outer if name in sums else outer

        return hook

    handles = [
        module.register_forward_pre_hook(record(f"{name}.weight".replace(WRAPPER, "")))
        for name, module in subject.model.named_modules()
        if f"{name}.weight".replace(WRAPPER, "") in subject.quantized_names
        and not any(True for _ in module.children())
    ]
    decoder = subject.model.get_decoder()  # type: ignore[operator]
    try:
        for tokens, length in ((problem.retain.tokens, problem.retain.length), problem.text):
            for start in range(0, len(tokens), CHUNK):
                rows, n = tokens[start : start + CHUNK], length[start : start + CHUNK]
                real.append((torch.arange(rows.shape[1])[None] < n[:, None]).to(subject.device))
                decoder(input_ids=rows.to(subject.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _span(outer, energy) for name, outer in sums.items()}


def _span(outer: Tensor, energy: float) -> Tensor:
    values, vectors = torch.linalg.eigh(outer)  # ascending
    values = values.clamp_min(0)
    rounding = len(values) * torch.finfo(torch.float32).eps  # the inputs are float32
    left_out = values.cumsum(0) <= max(energy, rounding) * values.sum()
    return vectors[:, ~left_out].float()


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 1e-5,
    steps: int = 12,
    batch: int = 20,
    energy: float = 0.01,
) -> Outcome:
    """Ascend the forget loss with every weight's change orthogonal to its retain inputs.

    ΔW ← ΔW (I − U Uᵀ) after each step, where U spans the inputs of W on the retain set, so that
    W's outputs there stay the same (the projection of Fang et al. 2025, "AlphaEdit: null-space
    constrained knowledge editing", ICLR, arXiv:2410.02355, equation 7, with their share 1e-2 of
    small eigenvalues counted as null, here a share of the trace because our inputs have another
    scale; AdamW's step rather than the gradient is projected, as in Wang et al. 2021, Adam-NSCL,
    arXiv:2103.07113, since AdamW rescales each entry). Only linear weights are trained. There is
    no retain loss: the projection takes its place.

    Args:
        batch: forget rows a step.
        energy: share of the retain inputs' energy that may change, 0 to 1.

    Raises:
        MansuError: a setting is not positive, or energy is not between 0 and 1.
    """
    if not 0 <= energy < 1:
        raise MansuError(f"energy of null space is {energy}: give a number from 0 to under 1.")
    subject = problem.subject
    transposed = {
        f"{name}.weight".replace(WRAPPER, "")
        for name, module in subject.model.named_modules()
        if type(module).__name__ == "Conv1D"  # GPT-2 keeps [inputs, outputs]
    }
    with subject.lock:
        spans = retain_spans(problem, energy)

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            yield "forget", answer_log_probability(subject, rows.forget).mean()

        def constrain(name: str, change: Tensor) -> Tensor:
            span = spans[name].to(change)
            if name in transposed:
                return change - span @ (span.T @ change)
            return change - (change @ span) @ span.T

        return train(
            problem,
            "null space",
            loss,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            names=spans,
            constrain=constrain,
            settings={"energy": energy},
        )
