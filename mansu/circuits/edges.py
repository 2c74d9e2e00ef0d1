"""Edges of a circuit as files that others read: GraphML, CSV, and JSON that reads back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
import torch

from mansu.circuits.circuit import Circuit
from mansu.circuits.graph import Graph
from mansu.errors import BadInputError, MismatchError
from mansu.files import parsed_json, typed

VERSION = 1


@dataclass(frozen=True)
class Edges:
    """Some edges of a subject, with their scores, and what they were measured on.

    Attributes:
        subject, fingerprint: whose. pairs: digest of the clean–corrupt pairs. metric: that the
            scores are of. run: the run they were taken from; empty without one.
        layout: what the codes mean. codes: source · n_destinations + destination, by falling
            |score|. scores: as many.
        faithfulness: of these edges alone, where it was measured.
    """

    subject: str
    fingerprint: str
    pairs: str
    metric: str
    run: str
    layout: Graph
    codes: tuple[int, ...]
    scores: tuple[float, ...]
    faithfulness: float | None

    @classmethod
    def of(cls, circuit: Circuit, run: str = "") -> Edges:
        """A circuit's own."""
        return cls(
            subject=circuit.subject,
            fingerprint=circuit.fingerprint,
            pairs=circuit.pairs,
            metric=circuit.metric,
            run=run,
            layout=circuit.layout,
            codes=tuple(circuit.kept.tolist()),
            scores=tuple(circuit.scores.tolist()),
            faithfulness=circuit.faithfulness,
        )

    def on(self, circuit: Circuit) -> Circuit:
        """These edges as a circuit of the subject that another is of, with that one's scores.

        Raises:
            MismatchError: they are of another subject.
        """
        if (self.layout, self.fingerprint) != (circuit.layout, circuit.fingerprint):
            raise MismatchError(
                f"These edges are of {self.subject!r} with other weights than {circuit.subject!r} "
                "has here: take a file of this run's subject."
            )
        return circuit.only(torch.tensor(self.codes, dtype=torch.long))

    def named(self) -> list[tuple[str, str, float]]:
        """Source, destination (``a3.h2<q>``, …) and score of each edge."""
        ends = (divmod(code, self.layout.n_destinations) for code in self.codes)
        return [
            (self.layout.source_name(source), self.layout.destination_name(destination), score)
            for (source, destination), score in zip(ends, self.scores, strict=True)
        ]

    def to_json(self) -> str:
        """Text that ``from_json`` reads; edges also by name, for people."""
        value = {"format": "mansu.edges", "version": VERSION, **asdict(self)}
        value["layout"] = self.layout.meta()
        value["edges"] = [dict(zip(("from", "to", "score"), e, strict=True)) for e in self.named()]
        return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Edges:
        """What ``to_json`` wrote.

        Raises:
            BadInputError: it is not that, is of another version, or an edge is none of the layout.
        """
        try:
            value: dict[str, Any] = parsed_json(text)
            if value["format"] != "mansu.edges" or value["version"] != VERSION:
                raise ValueError(f"it is not version {VERSION} of mansu.edges")
            layout = typed(Graph(**value["layout"]))
            fields = {name: value[name] for name in cls.__dataclass_fields__}
            fields |= {name: tuple(value[name]) for name in ("codes", "scores")}
            found = typed(cls(**{**fields, "layout": layout}))
            places = layout.edges.flatten()
            inside = all(0 <= code < len(places) and bool(places[code]) for code in found.codes)
            if len(found.codes) != len(found.scores) or not inside:
                raise ValueError("its edges are not those of its layout")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise BadInputError(
                f"This is no file of edges that MANSU wrote ({error!s:.100}): export it again."
            ) from error
        return found

    def to_csv(self) -> str:
        """A line an edge: from, to, score."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("from", "to", "score"))
        writer.writerows(self.named())
        return text.getvalue()

    def to_graphml(self) -> str:
        """For Gephi, Cytoscape, networkx: nodes by name, parallel edges with what they enter."""
        graph = nx.MultiDiGraph(subject=self.subject, metric=self.metric, run=self.run)
        for code, (begin, into, score) in zip(self.codes, self.named(), strict=True):
            destination = code % self.layout.n_destinations
            fed = self.layout.feeds[destination].nonzero()[:, 0].tolist()
            for end in map(self.layout.source_name, fed) if fed else ("logits",):
                graph.add_edge(begin, end, into=into, score=score, weight=abs(score))
        return "\n".join(nx.generate_graphml(graph))
