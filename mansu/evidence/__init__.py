"""What speaks for and against an edit: CAD, bounds, attacks, and the verdict."""

from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds, bounds
from mansu.evidence.verdict import NAMES, Property, Verdict, judge

__all__ = [
    "NAMES",
    "Attacks",
    "Bounds",
    "Property",
    "Verdict",
    "bounds",
    "judge",
]
