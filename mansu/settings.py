"""Settings described once: a frozen dataclass whose fields carry help, bounds and source.

Command line, app, model card and search render the same fields::

    @dataclass(frozen=True)
    class GradDiffSettings:
        steps: int = setting(12, "Steps of the optimiser.", low=1, high=1000)

    configure(GradDiffSettings, {"steps": 3}, "graddiff")
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

from mansu.errors import BadInputError

T = TypeVar("T")
LARGEST = 2.0**53  # whole numbers are exact below it


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        name, help: for people; help may hold LaTeX between dollar signs.
        kind: ``bool``, ``int``, ``float`` or ``str``. optional: None is allowed, and means that
            the work chooses.
        default: where nothing is given.
        low, high: least and greatest value, None where there is none; above: ``low`` itself is
            not allowed.
        choices: the values of a ``str``, where they are few.
        source: the paper and equation that it comes from.
        empty: what a number that is left empty becomes: in a model, and in a toy one.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    source: str = ""
    empty: tuple[float, float] | None = None

    @property
    def range(self) -> str:
        """What it may be, for people."""
        if self.kind is bool:
            return "true or false" + (", or null" if self.optional else "")
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        what = {int: "a whole number", float: "a number", str: "text"}[self.kind]
        if self.low is not None:
            what += f" above {self.low:g}" if self.above else f" of at least {self.low:g}"
        if self.high is not None:
            what += f"{' and' if self.low is not None else ' of'} at most {self.high:g}"
        return what + (", or null" if self.optional else "")

    def check(self, value: Any, of: str) -> Any:
        """The value in its type.

        Raises:
            BadInputError: it is of another type or out of range.
        """
        right = value is None and self.optional
        if self.kind is bool:
            right = right or isinstance(value, bool)
        elif self.kind is str:
            right = right or (
                isinstance(value, str) and (not self.choices or value in self.choices)
            )
        elif not right and isinstance(value, (int, float)) and not isinstance(value, bool):
            finite = abs(value) < LARGEST  # also false for NaN
            whole = self.kind is not int or (finite and float(value).is_integer())
            right = finite and whole and self._inside(value)
            value = self.kind(value) if right else value
        if not right:
            limit = ""
            if self.kind in (int, float) and isinstance(value, (int, float)):
                limit = f", smaller than {LARGEST:.0e}" if abs(value) >= LARGEST else ""
            raise BadInputError(
                f"The setting {self.name} of {of} is {_short(value)}: give {self.range}{limit}."
            )
        return value

    def _inside(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        return self.high is None or value <= self.high


def _short(value: Any) -> str:
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"too long {'a number' if isinstance(value, int) else 'a value'}"


def typed_in(text: str) -> Any:
    """A value that somebody typed: JSON, else the text itself, which a setting's check refuses."""
    try:  # a float takes any number of digits, and a check refuses what is so large
        return json.loads(text, parse_int=lambda n: float(n) if len(n) > 20 else int(n))
    except (ValueError, RecursionError):
        return text


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
    choices: tuple[str, ...] = (),
    source: str = "",
    empty: tuple[float, float] | None = None,
) -> Any:
    """A field of a settings dataclass; see ``Setting`` for the arguments."""
    if empty:
        help += " Empty: {:g}, or {:g} in a toy model.".format(*empty)
    about = {"help": help, "low": low, "high": high, "above": above}
    about |= {"choices": choices, "source": source, "empty": empty}
    return dataclasses.field(default=default, metadata=about)


@cache  # a page asks for a run's dozens of times
def settings_of(cls: type) -> Mapping[str, Setting]:
    """The settings that a dataclass has, by name, in order."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        (kind,) = [part for part in parts if part is not type(None)]
        optional = len(parts) > 1
        found[field.name] = Setting(field.name, kind, optional, field.default, **field.metadata)
    return types.MappingProxyType(found)


def configure(cls: type[T], values: Mapping[str, Any], of: str) -> T:
    """An instance with these values, each checked; the others are the defaults.

    Args:
        of: whose settings they are, for the message.

    Raises:
        BadInputError: an unknown name, or a value of another type or out of range.
    """
    known = settings_of(cls)
    for name in values:
        if name not in known:
            raise BadInputError(
                f"{name!r} is no setting of {of}: it has {', '.join(known) or 'none'}."
            )
    return cls(**{name: known[name].check(value, of) for name, value in values.items()})


def filled(settings: T, toy: bool) -> T:
    """The settings with what their empty numbers stand for (``Setting.empty``).

    Args:
        toy: in a toy model.
    """
    known = settings_of(type(settings)).values()
    empty = {s.name: s.empty[toy] for s in known if s.empty and getattr(settings, s.name) is None}
    return dataclasses.replace(settings, **empty)  # pyright: ignore[reportArgumentType, reportCallIssue]
