"""Which edges and parameters carry a behaviour: attribution, patching, circuits, masks."""

from mansu.circuits.attribution import Attribution, attribute, needs
from mansu.circuits.circuit import Circuit
from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.mask import Mask
from mansu.circuits.metric import MEMORY, Metric, metric_values
from mansu.circuits.parameters import parameter_mask, random_mask
from mansu.circuits.patching import Patched, activation_patching
from mansu.circuits.search import find_circuit, minimal_circuit
from mansu.circuits.trust import ablate, criteria, stability

__all__ = [
    "MEMORY",
    "Attribution",
    "Circuit",
    "Graph",
    "Mask",
    "Metric",
    "Patched",
    "ablate",
    "activation_patching",
    "attribute",
    "criteria",
    "find_circuit",
    "graph_of",
    "metric_values",
    "minimal_circuit",
    "needs",
    "parameter_mask",
    "random_mask",
    "stability",
]
