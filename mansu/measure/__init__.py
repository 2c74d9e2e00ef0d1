"""What a subject, as it now is, scores; intervals; what its retain inputs look like."""

from mansu.measure.scores import (
    EVALUATED,
    Measurement,
    Scores,
    measure,
    measure_task,
    text_loss,
    text_losses,
)
from mansu.measure.statistics import CONFIDENCE, Interval, McNemar, bootstrap, mcnemar

__all__ = [
    "CONFIDENCE",
    "EVALUATED",
    "Interval",
    "McNemar",
    "Measurement",
    "Scores",
    "bootstrap",
    "mcnemar",
    "measure",
    "measure_task",
    "text_loss",
    "text_losses",
]
