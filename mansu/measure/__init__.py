"""What a subject, as it now is, scores; intervals; what its retain inputs look like."""

from mansu.measure.scores import (
    EVALUATED,
    Measurement,
    Scores,
    finite,
    measure,
    measure_task,
    share_right,
    text_loss,
    text_losses,
)
from mansu.statistics import CONFIDENCE, Interval, McNemar, bootstrap, mcnemar

__all__ = [
    "CONFIDENCE",
    "EVALUATED",
    "Interval",
    "McNemar",
    "Measurement",
    "Scores",
    "bootstrap",
    "finite",
    "mcnemar",
    "measure",
    "measure_task",
    "share_right",
    "text_loss",
    "text_losses",
]
