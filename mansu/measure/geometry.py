"""Retain geometry: what an edit must not touch.

For each weight of the circuit, the null-space of the retain inputs (AlphaEdit, Fang et al. 2025)
restricted to the inputs that the circuit reads, and the diagonal Fisher information of the retain
log-likelihood (elastic weight consolidation, Kirkpatrick et al. 2017), whose bound
½ Σ F_i δ_i² on the retain loss is Theorem 1 of MANSU (arXiv 2605.15138).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mansu.measure.scores import pack_losses
from mansu.subjects.flows import watched
from mansu.subjects.offload import placed
from mansu.subjects.own_text import Answered
from mansu.subjects.packing import Pack
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of, layer_of, transposed_names
from mansu.tasks.tokens import Examples

ENERGY = 0.9


Mask = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape: the weights that may move."""

Products = Callable[[], AbstractContextManager[Any]]
"""Inside whose block matrix products are made as a method has them (``training.products``)."""


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

    def __call__(self, name: str, update: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The part of an update ``[outputs, inputs]`` that the retain inputs do not see.

        W + update acts on the retain span as W does. A weight without a span is left alone.

        Args:
            inputs: int64, of which inputs, some that the mask reads, the update has columns; it is
                0 at others, and what the projection puts there is left out.
        """
        if name not in self.spans:
            return update
        columns, basis = self.spans[name]
        basis = basis.to(update)
        if inputs is not None:
            basis = basis[torch.searchsorted(columns, inputs.to(columns.device))]
            return update - (update @ basis) @ basis.T
        part, result = update[:, columns], update.clone()
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
            positions retain inputs span every direction a little. Of 0 none is taken, and an update
            stays as it is.
    """
    columns = {name: _columns(chosen, name, subject) for name, chosen in mask.items()}
    first = _alike(subject, columns)
    moments = {
        name: placed(torch.zeros(len(c), len(c), dtype=torch.float64), subject.offload)
        for name, c in columns.items()
        if first[name] == name
    }
    with torch.no_grad():
        for tokens, length in ((retain.tokens, retain.length), text):
            for pack in subject.packs(tokens, length) if len(tokens) else ():
                # A token that rows share counts once for each.
                times = pack.at[pack.real].bincount(minlength=len(pack)).double()

                def add(name: str, inputs: Tensor, times: Tensor = times) -> None:
                    rows = inputs[0][:, columns[name].to(inputs.device)].double().cpu()
                    moments[name] += (rows * times[:, None]).T @ rows

                with watched(subject, moments, add):
                    subject.hidden(pack)
    spans = {}
    for name in list(moments):
        values, vectors = torch.linalg.eigh(moments.pop(name))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        held = values.cumsum(0) / values.sum().clamp_min(1e-30)
        k = int((held < energy).sum()) + 1 if energy > 0 and values.sum() > 0 else 0
        spans[name] = (columns[name], vectors[:, :k].to(subject.dtype))
    return Projectors({name: spans[first[name]] for name in columns}, energy)


def fisher(
    subject: Subject,
    retain: Examples | Answered,
    text: tuple[Tensor, Tensor],
    mask: Mask,
    products: Products = nullcontext,
) -> dict[str, Tensor]:
    """The diagonal (empirical) Fisher of the retain log-likelihood, on the mask.

    F_i = mean over examples of (∂ log p(example) / ∂ w_i)², an example being a retain fact's
    answer or a text's tokens; of ``own_answers`` it is not the empirical one. Per-example gradients
    are never stored whole: for a linear map they are Σ_positions g xᵀ, squared and summed a few at
    a time.

    Args:
        products: of the forward passes, and so of the gradients.

    Returns:
        name → ``[n]`` at the mask's entries, in the order of ``mask[name].flatten().nonzero()``.
    """
    total = {name: torch.zeros(int(chosen.sum())) for name, chosen in mask.items()}
    transposed = transposed_names(subject)
    places: dict[str, _Places] = {}
    for name, chosen in mask.items():
        rows, columns = chosen.nonzero(as_tuple=True)
        if name in transposed:
            rows, columns = columns, rows
        # Only the rows and columns that the mask touches: it is a fraction of a percent.
        places[name] = rows.unique(return_inverse=True), columns.unique(return_inverse=True)

    def add(name: str, inputs: Tensor, gradients: Tensor) -> None:
        (r, row_of), (c, column_of) = places[name]
        squares = summed_squares(gradients[..., r].float(), inputs[..., c].float())
        total[name] += squares[row_of, column_of].cpu()

    examples = 0
    for _, count in differentiated(subject, retain, text, mask, add, products):
        examples += count
    return {name: value / max(examples, 1) for name, value in total.items()}


_Places = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(lines, which of them each entry is in) of the outputs and of the inputs."""

AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Entries of per-example gradients that are held at once, by kind of device: in a processor's cache
their squares are summed four times as fast."""


def summed_squares(gradients: Tensor, inputs: Tensor) -> Tensor:
    """Σ_examples (Σ_positions g xᵀ)², ``[outputs, inputs]``.

    Args:
        gradients: ``[B, P, outputs]``. inputs: ``[B, P, inputs]``.
    """
    shape = gradients.shape[2], inputs.shape[2]
    total = inputs.new_zeros(shape)
    most = AT_ONCE.get(inputs.device.type, min(AT_ONCE.values()))
    some = max(1, most // max(1, shape[0] * shape[1]))
    for g, x in zip(gradients.split(some), inputs.split(some), strict=True):
        total += (g.mT @ x).square_().sum(0)
    return total


def differentiated(
    subject: Subject,
    retain: Examples | Answered,
    text: tuple[Tensor, Tensor],
    names: Iterable[str],
    see: Callable[[str, Tensor, Tensor], None],
    products: Products = nullcontext,
) -> Iterator[tuple[float, int]]:
    """Packs of retain facts, then of texts, each differentiated.

    Args:
        see: called for each weight's map with its name, its inputs ``[B, positions, in]`` and the
            gradients of the log-likelihood for its outputs ``[B, positions, out]``, 0 at padding.
        products: as ``fisher`` takes them.

    Yields:
        The summed log-likelihood, nats; B.
    """
    names = tuple(names)

    def likelihood(pack: Pack, answers: Tensor | None) -> Tensor:
        hidden = subject.hidden(pack)
        if answers is None:
            return -pack_losses(subject, pack, hidden).sum()
        logits = subject.head(hidden[pack.last.to(hidden.device)]).float()
        return -cross_entropy(logits, answers[pack.rows].to(logits.device), reduction="sum")

    for tokens, length, answers in ((retain.tokens, retain.length, retain.answer), (*text, None)):
        if not len(tokens):
            continue
        # Side by side, each token an example's own: what two share would have one gradient.
        alone = torch.ones_like(tokens, dtype=torch.bool)
        for pack in subject.packs(tokens, length, alone=alone):

            def told(name: str, inputs: Tensor, gradients: Tensor, pack: Pack = pack) -> None:
                at = pack.at.to(inputs.device)
                real = pack.real.to(inputs.device)[..., None]
                see(name, inputs[0][at] * real, gradients[0][at] * real)

            with watched(subject, names, see_gradient=told):
                with products():
                    value = likelihood(pack, answers)
                value.backward()
            yield value.item(), len(pack.rows)


def _alike(subject: Subject, columns: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each weight the first that reads the same of the same inputs; itself, mostly.

    A decomposition grows with the cube of the width: q, k and v need one, and so do gate and up.
    """
    found, readers = {}, {}
    for name, read in columns.items():
        kind = kind_of(subject, name)
        reader = layer_of(subject, name), next((k for k in _SAME_INPUTS if kind in k), kind)
        others = readers.setdefault(reader, [])
        found[name] = next((n for n in others if torch.equal(columns[n], read)), name)
        others.append(name)
    return found


_SAME_INPUTS = (("q", "k", "v"), ("gate", "up"))


def _columns(chosen: Tensor, name: str, subject: Subject) -> Tensor:
    """The inputs that the mask reads, in the order of the module's input."""
    chosen = chosen.T if name in transposed_names(subject) else chosen
    return chosen.any(0).nonzero().flatten()
