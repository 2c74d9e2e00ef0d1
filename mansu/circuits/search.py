"""The fewest edges that carry a behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit, as_mask, pruned
from mansu.circuits.graph import graph_of
from mansu.circuits.metric import MEMORY
from mansu.circuits.parameters import mask_of
from mansu.circuits.patching import BATCH, Patched
from mansu.errors import BadInputError
from mansu.progress import OnStep, Step, silent
from mansu.subjects.subject import Subject, locked
from mansu.tasks.tokens import Pairs

CURVE_POINTS = 12
PRUNE_BLOCKS = 12


@locked
def find_circuit(
    subject: Subject,
    pairs: Pairs,
    attribution: Attribution,
    *,
    max_fraction: float,
    tau: float = 0.85,
    memory: int = MEMORY,
    on_step: OnStep = silent,
) -> Circuit:
    """``minimal_circuit`` with the parameters behind it (``mask_of``) as its ``mask``.

    Args:
        max_fraction: the mask's largest share of all parameters; the others as there.

    Raises:
        MansuError: as ``minimal_circuit`` and ``mask_of``.
    """
    circuit = minimal_circuit(subject, pairs, attribution, tau=tau, memory=memory, on_step=on_step)
    return replace(circuit, mask=mask_of(subject, circuit, attribution, max_fraction=max_fraction))


def minimal_circuit(
    subject: Subject,
    pairs: Pairs,
    attribution: Attribution,
    *,
    tau: float = 0.85,
    prune: int = 1,
    memory: int = MEMORY,
    on_step: OnStep = silent,
) -> Circuit:
    """The fewest edges whose faithfulness reaches ``tau``.

    The best n edges by |score| are tried at sizes spread evenly in log n (the curve), then the
    first crossing of ``tau`` is narrowed to 1 % of n. Orphans never count. Then, ``prune`` times,
    the circuit is cut into blocks of neighbouring |score| and as many blocks are dropped, the least
    needed first, as keep it at ``tau``.

    So the circuit is minimal in blocks: to drop the next block in that order would take it below
    ``tau``. It is not minimal edge by edge, since some edges of a needed block may be spare.
    (SmolLM2, capitals: a further pass over 24 blocks took 398 edges to 381 with 29 more runs.)

    Args:
        attribution: scores of this subject; the metric is taken from it.
        tau: faithfulness to reach, in (0, 1].
        memory: bytes to hold beside the weights.

    Raises:
        MansuError: ``tau`` is out of range, the scores are of other weights or other pairs, or
            clean and corrupt prompts have the same metric.
    """
    if not 0 < tau <= 1:
        raise BadInputError(f"Faithfulness tau must lie in (0, 1], not {tau}.")
    graph = graph_of(subject)
    attribution.refuse_other(subject, pairs)
    codes = graph.edges.flatten().nonzero()[:, 0]
    scores = attribution.scores.flatten()[codes]
    ranking = scores.abs().argsort(descending=True, stable=True)
    order, order_scores = codes[ranking], scores[ranking]
    patched = Patched(subject, pairs, attribution.metric, memory)
    expected = CURVE_POINTS + 8 + prune * (PRUNE_BLOCKS + 5)
    search = _Search(patched, order, tau, expected, on_step)
    size = search.crossing()
    kept, values = pruned(graph, order[:size]), search.measured[size]
    for _ in range(prune):
        kept, values = search.without_spare_blocks(kept, values)
    bounds = patched.intervals(values[None])[0].tolist()
    on_step(Step("circuit", expected, expected))
    return Circuit(
        graph,
        order,
        order_scores,
        kept,
        faithfulness=search.faithfulness(values),
        interval=tuple(bounds) or None,
        curve=search.curve(),
        tau=tau,
        clean=float(patched.clean.mean()),
        corrupt=float(patched.corrupt.mean()),
        metric=attribution.metric,
        subject=subject.name,
        fingerprint=subject.fingerprint,
        n_pairs=len(pairs),
        pairs=pairs.digest,
        facts=patched.facts,
    )


class _Search:
    """The best n edges for every n asked for, and what was measured of them.

    Attributes:
        order: int64 ``[n_edges]``, coded edges by falling |score|.
        measured: n → the metric of every pair ``[N]`` with the best n edges.
    """

    def __init__(
        self, patched: Patched, order: Tensor, tau: float, expected: int, on_step: OnStep
    ) -> None:
        self.patched, self.graph, self.order, self.tau = patched, patched.graph, order, tau
        self.expected, self.on_step, self.done = expected, on_step, 0
        self.measured: dict[int, Tensor] = {}

    def faithfulness(self, values: Tensor) -> float:
        """Of the metrics ``[N]`` of one candidate."""
        return float(self.patched.faithfulness(values[None])[0])

    def measure(self, candidates: Sequence[Tensor]) -> Tensor:
        """The metric of every pair with each candidate's edges, ``[candidates, N]``."""
        masks = [as_mask(self.graph, kept) for kept in candidates]
        values = self.patched.values(torch.stack(masks))
        self.done += len(candidates)
        self.on_step(Step("circuit", min(self.done, self.expected), self.expected))
        return values

    def measure_sizes(self, wanted: Sequence[int]) -> None:
        fresh = [size for size in dict.fromkeys(wanted) if size not in self.measured]
        for start in range(0, len(fresh), BATCH):
            some = fresh[start : start + BATCH]
            rows = self.measure([self.order[:size] for size in some])
            self.measured.update(zip(some, rows, strict=True))

    def faithful(self, size: int) -> bool:
        return self.faithfulness(self.measured[size]) >= self.tau

    def crossing(self) -> int:
        """The smallest n found whose best edges are faithful, to 1 %; all where none is."""
        n = len(self.order)
        sizes = torch.logspace(0, torch.log10(torch.tensor(n)).item(), CURVE_POINTS)
        self.measure_sizes([min(n, max(1, round(s))) for s in sizes.tolist()])
        high = next((size for size in sorted(self.measured) if self.faithful(size)), n)
        low = max((size for size in self.measured if size < high), default=0)
        while high - low > (close := max(1, high // 100)):
            guess = self._between(low, high)
            inner = {guess, min(guess + close, high - 1), (low + high) // 2}
            self.measure_sizes(sorted(inner))
            tried = sorted(size for size in self.measured if low < size <= high)
            high = next((size for size in tried if self.faithful(size)), high)
            low = max((size for size in self.measured if size < high), default=0)
        return high

    def _between(self, low: int, high: int) -> int:
        """Where a straight line from ``low`` to ``high`` crosses ``tau``, strictly inside."""
        start = self.faithfulness(self.measured[low]) if low in self.measured else 0.0
        rise = self.faithfulness(self.measured[high]) - start if high in self.measured else 1.0
        share = (self.tau - start) / rise if rise > 0 else 0.5
        return min(max(low + round(share * (high - low)), low + 1), high - 1)

    def without_spare_blocks(self, kept: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Drop as many blocks of edges as keep the circuit at ``tau``, the least needed first."""
        blocks = [block for block in kept.chunk(PRUNE_BLOCKS) if len(block) < len(kept)]
        if not blocks:
            return kept, values

        def without(some: Sequence[int]) -> Tensor:
            gone = torch.cat([blocks[i] for i in some])
            return pruned(self.graph, kept[~torch.isin(kept, gone)])

        alone = self.measure([without([i]) for i in range(len(blocks))])
        by_need = self.patched.faithfulness(alone).argsort(descending=True).tolist()
        best, best_values, low, high = kept, values, 0, len(blocks)
        while high - low > 1:  # drop ``low`` blocks: faithful; ``high``: not, or all
            middle = (low + high) // 2
            candidate = without(by_need[:middle])
            result = self.measure([candidate])[0] if len(candidate) else self.patched.corrupt
            if self.faithfulness(result) >= self.tau:
                best, best_values, low = candidate, result, middle
            else:
                high = middle
        return best, best_values

    def curve(self) -> Tensor:
        """float32 ``[points, 4]`` or ``[points, 2]``, see ``Circuit``."""
        sizes = sorted(self.measured)
        stacked = torch.stack([self.measured[size] for size in sizes])
        shares = self.patched.faithfulness(stacked)[:, None]
        first = torch.tensor(sizes, dtype=torch.float32)[:, None]
        return torch.cat([first, shares, self.patched.intervals(stacked)], 1)
