"""Retain geometry: what an edit must not touch.

For each weight of the circuit, the null-space of the retain inputs (AlphaEdit, Fang et al. 2025)
restricted to the inputs that the circuit reads, and the diagonal Fisher information of the retain
log-likelihood (elastic weight consolidation, Kirkpatrick et al. 2017), whose bound
½ Σ F_i δ_i² on the retain loss is Theorem 1 of MANSU (arXiv 2605.15138).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from mansu.measure.scores import text_losses
from mansu.subjects.subject import Subject
from mansu.subjects.weights import parts, transposed_names
from mansu.tasks.tokens import Examples

ENERGY = 0.9


Mask = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape: the weights that may move."""


@dataclass(frozen=True)
class Projectors:
    """For each weight, an orthonormal basis of the retain inputs' span.

    Attributes:
        spans: name → (columns int64 ``[c]``, basis ``[c, k]``): ``columns`` are the inputs that the
            mask reads, ``basis`` the directions that hold ``energy`` of the retain inputs there.
        energy: share of the retain inputs' squared norm that the basis holds.
    """

    spans: Mapping[str, tuple[Tensor, Tensor]]
    energy: float

    def __call__(self, name: str, update: Tensor) -> Tensor:
        """The part of an update ``[outputs, inputs]`` that the retain inputs do not see.

        W + update acts on the retain span as W does. A weight without a span is left alone.
        """
        if name not in self.spans:
            return update
        columns, basis = self.spans[name]
        part, basis = update[:, columns], basis.to(update.dtype)
        result = update.clone()
        result[:, columns] = part - (part @ basis) @ basis.T
        return result


def projectors(
    subject: Subject,
    retain: Examples,
    text: tuple[Tensor, Tensor],
    mask: Mask,
    *,
    energy: float = ENERGY,
) -> Projectors:
    """Null-space projectors from the inputs of the retain prompts and the plain text.

    Args:
        energy: the leading eigenvectors of the inputs' second moment are taken until they hold
            this share of its trace. All of it (1.0) would leave nothing: in a few hundred
            positions retain inputs span every direction a little.
    """
    columns = {name: _columns(chosen, name, subject) for name, chosen in mask.items()}
    moments = {n: torch.zeros(len(c), len(c), dtype=torch.float64) for n, c in columns.items()}

    def add(name: str, inputs: Tensor, real: Tensor) -> None:
        rows = inputs[real][:, columns[name].to(inputs.device)].double().cpu()
        moments[name] += rows.T @ rows

    with torch.no_grad():
        for tokens, length in ((retain.tokens, retain.length), text):
            if not len(tokens):
                continue
            real = torch.arange(tokens.shape[1])[None] < length[:, None]
            with _inputs(subject, mask, lambda n, x, real=real: add(n, x, real.to(x.device))):
                subject.next_token_logits(tokens, length)
    dtype = next(iter(subject.parameters.values())).dtype
    spans = {}
    for name, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        held = values.cumsum(0) / values.sum().clamp_min(1e-30)
        k = int((held < energy).sum()) + 1 if values.sum() > 0 else 0
        spans[name] = (columns[name], vectors[:, :k].to(dtype))
    return Projectors(spans, energy)


def fisher(
    subject: Subject,
    retain: Examples,
    text: tuple[Tensor, Tensor],
    mask: Mask,
    *,
    batch: int = 32,
) -> dict[str, Tensor]:
    """The diagonal (empirical) Fisher of the retain log-likelihood, on the mask.

    F_i = mean over examples of (∂ log p(example) / ∂ w_i)², an example being a retain fact's
    answer or a text's tokens. Per-example gradients are never stored whole: for a linear map they
    are Σ_positions g xᵀ, squared and summed a batch at a time.

    Returns:
        name → ``[n]`` at the mask's entries, in the order of ``mask[name].flatten().nonzero()``.
    """
    total = {name: torch.zeros(int(chosen.sum())) for name, chosen in mask.items()}
    transposed = transposed_names(subject)
    where = {name: chosen.nonzero(as_tuple=True) for name, chosen in mask.items()}
    examples = 0
    for flows, _, count in differentiated(subject, retain, text, mask, batch):
        for name, (rows, columns) in where.items():
            inputs, outputs = flows[name]
            if name in transposed:
                rows, columns = columns, rows
            # Only the rows and columns that the mask touches: it is a fraction of a percent.
            r, row_of = rows.unique(return_inverse=True)
            c, column_of = columns.unique(return_inverse=True)
            each = torch.einsum("bpo,bpi->boi", outputs[..., r].float(), inputs[..., c].float())
            total[name] += each.square().sum(0)[row_of, column_of].cpu()
        examples += count
    return {name: value / max(examples, 1) for name, value in total.items()}


def differentiated(
    subject: Subject,
    retain: Examples,
    text: tuple[Tensor, Tensor],
    names: Iterable[str],
    batch: int,
) -> Iterator[tuple[dict[str, tuple[Tensor, Tensor]], float, int]]:
    """Batches of retain facts, then of texts, each differentiated.

    Yields:
        For each weight's map its inputs ``[B, positions, in]`` and the gradients of the
        log-likelihood for its outputs ``[B, positions, out]``; the summed log-likelihood, nats; B.
    """
    names = tuple(names)

    def losses() -> Iterator[tuple[Callable[[], Tensor], int]]:
        for start in range(0, len(retain), batch):
            some = retain.select(range(start, min(start + batch, len(retain))))
            yield (lambda some=some: answer_log_likelihood(subject, some).sum()), len(some)
        tokens, length = text
        for start in range(0, len(tokens), batch):
            part = tokens[start : start + batch], length[start : start + batch]
            yield (lambda part=part: -text_losses(subject, *part).sum()), len(part[0])

    for loss, count in losses():
        seen: dict[str, Tensor] = {}
        gradients: dict[str, list[_Rows]] = {n: [] for n in names}
        with _inputs(subject, names, seen.__setitem__, _kept_in(gradients)):
            value = loss()
            value.backward()
        yield {n: (seen[n].detach(), _joined(gradients[n])) for n in names}, value.item(), count


def answer_log_likelihood(subject: Subject, rows: Examples) -> Tensor:
    """log p(answer | prompt), nats ``[N]``."""
    logits = subject.next_token_logits(rows.tokens, rows.length).float()
    answer = rows.answer.to(logits.device)[:, None]
    return logits.log_softmax(-1).gather(1, answer)[:, 0]


def _columns(chosen: Tensor, name: str, subject: Subject) -> Tensor:
    """The inputs that the mask reads, in the order of the module's input."""
    chosen = chosen.T if name in transposed_names(subject) else chosen
    return chosen.any(0).nonzero().flatten()


_Rows = tuple[Tensor | None, Tensor]
"""Outputs of a linear map, int64 ``[n]`` or None for all, and their gradients ``[B, p, n]``."""


def _kept_in(gradients: Mapping[str, list[_Rows]]) -> Callable[[str, _Rows], None]:
    """A function that puts each name's gradients into its list."""
    return lambda name, part: gradients[name].append(part)


def _joined(parts: list[_Rows]) -> Tensor:
    """Gradients ``[B, p, outputs]`` of a map that is run in parts."""
    if len(parts) == 1:
        return parts[0][1]
    gradients = [gradient for _, gradient in parts]
    outputs = torch.cat([rows for rows, _ in parts if rows is not None])
    return torch.cat(gradients, -1)[..., outputs.argsort().to(gradients[0].device)]


@contextmanager
def _inputs(
    subject: Subject,
    names: Iterable[str],
    see: Callable[[str, Tensor], None],
    see_gradient: Callable[[str, _Rows], None] | None = None,
) -> Iterator[None]:
    """Watch what enters some linear maps, and the gradients at what leaves them.

    Args:
        see: called with a weight's name and its inputs, once a run.
        see_gradient: called with its name and some outputs' gradients; several times where it is
            run in parts.
    """
    handles = []

    def watch(name: str, module: Module, rows: Tensor | None, first: bool) -> None:
        def forward(_module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if first:  # all parts of a map have the same inputs
                see(name, inputs[0])
            report = see_gradient
            if report is None:
                return None
            if not output.requires_grad:  # the weights need no gradient: start a graph here
                output = output.detach().requires_grad_(True)
            output.register_hook(lambda gradient: report(name, (rows, gradient.detach())))
            return output

        handles.append(module.register_forward_hook(forward))

    for name in names:
        for i, (module, rows) in enumerate(parts(subject, name)):
            watch(name, module, rows, i == 0)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
