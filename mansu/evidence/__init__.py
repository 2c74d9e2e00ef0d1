"""What speaks for and against an edit: CAD, bounds, attacks, and the verdict."""

from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds, bounds
from mansu.evidence.verdict import ABOUT, Property, Thresholds, Verdict, judge

__all__ = [
    "ABOUT",
    "Attacks",
    "Bounds",
    "Property",
    "Thresholds",
    "Verdict",
    "bounds",
    "judge",
]
