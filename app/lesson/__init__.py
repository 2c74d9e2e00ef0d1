"""The lesson *Why forgetting comes back*: ten steps, measured while they are shown."""

from app.lesson.edits import DEPLOY, FLIP, REACH
from app.lesson.lasting import FLOOR, HIDDEN, SIGN
from app.lesson.step import Step
from app.lesson.weights import BLOCK, LINE
from app.lesson.where import GRID, NODES

STEPS: tuple[Step, ...] = (LINE, BLOCK, REACH, FLIP, DEPLOY, GRID, NODES, FLOOR, HIDDEN, SIGN)

__all__ = ["STEPS", "Step"]
