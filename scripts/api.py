"""Write the API reference, ``docs/api.md``, from the docstrings.

::

    python scripts/api.py

It holds the front door (``mansu.__all__``) and every room's ``__all__``; a name that a room takes
from a room below it is described there, once. ``tests/test_package.py`` checks that it is what the
docstrings say.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import mansu
from mansu.files import replacing

PATH = Path(__file__).parent.parent / "docs" / "api.md"
HEAD = """# API reference

Written by `python scripts/api.py` from the docstrings: do not edit it here. First the front door,
`import mansu`; then the rooms, in the order of the data.
"""
ROOMS = ("subjects", "tasks", "quant", "circuits", "measure", "methods", "evidence", "sets", "job")
ROOMS += ("show", "report", "exports", "errors", "interrupts", "progress", "settings", "files")
ROOMS += ("launch",)


def reference() -> str:
    """The whole page, Markdown."""
    rooms = [importlib.import_module(f"mansu.{name}") for name in ROOMS]
    functions_first = sorted(mansu.__all__, key=lambda name: name[0].isupper())
    sections = [_section(mansu, functions_first), *(_section(room, _names(room)) for room in rooms)]
    return "\n".join([HEAD, *sections]).rstrip() + "\n"


def _names(room: ModuleType) -> list[str]:
    """The curated names of a room; of a plain module, what it defines for others."""
    if hasattr(room, "__all__"):
        return list(room.__all__)
    own = (
        n for n, value in vars(room).items() if getattr(value, "__module__", "") == room.__name__
    )
    return [name for name in own if not name.startswith("_")]


def _section(room: ModuleType, names: list[str]) -> str:
    values = {name: getattr(room, name) for name in names}
    described = {n: v for n, v in values.items() if callable(v) and v.__module__ != "typing"}
    plain = ", ".join(f"`{name}`" for name in values if name not in described)
    parts = [f"## {room.__name__}\n", _prose(room)]
    if hasattr(room, "__path__") and room is not mansu:
        modules = (f"`{module.name}`" for module in pkgutil.iter_modules(room.__path__))
        parts.append(f"Modules: {', '.join(modules)}.\n")
    parts += [_entry(room, name, value) for name, value in described.items()]
    parts += [f"Constants: {plain}.\n"] if plain else []
    return "\n".join(parts)


def _entry(room: ModuleType, name: str, value: Any) -> str:
    shown = f"{room.__name__}.{name}"
    if room is not mansu and name in mansu.__all__ and getattr(mansu, name) is value:
        return f"### {shown}\n\nThe front door's: [`mansu.{name}`](#mansu{name.lower()}).\n"
    parts = [f"### {shown}\n", _signature(shown, value), _prose(value)]
    parts += [_method(name, *found) for found in _methods(value)] if inspect.isclass(value) else []
    return "\n".join(parts)


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines and documents."""
    if issubclass(cls, BaseException):
        return
    for name, raw in vars(cls).items():
        value = getattr(raw, "__func__", getattr(raw, "fget", getattr(raw, "func", raw)))
        if not name.startswith("_") and inspect.isfunction(value) and inspect.getdoc(value):
            yield name, value


def _method(owner: str, name: str, value: Any) -> str:
    head = f"**`{owner}.{name}`** "
    first = (inspect.getdoc(value) or "").split("\n\n")[0]
    return head + first.replace("\n", " ").replace("``", "`") + "\n"


def _signature(shown: str, value: Any) -> str:
    try:
        found = inspect.signature(value)
    except ValueError:  # an exception's, which takes anything
        return ""
    parameters = [p.replace(annotation=_Plain(p)) for p in found.parameters.values()]
    result = inspect.Signature.empty if inspect.isclass(value) else _Plain(found)
    text = str(found.replace(parameters=parameters, return_annotation=result))
    # A default that is a function would show its address.
    text = re.sub(r"<function (\w+)[^>]*>", r"\1", text).replace("<factory>", "…")
    return f"```python\n{shown}{_wrapped(text, len(shown))}\n```\n"


class _Plain:
    """An annotation shown as it is written, without quotes."""

    def __init__(self, owner: inspect.Parameter | inspect.Signature) -> None:
        is_signature = isinstance(owner, inspect.Signature)
        self.text = owner.return_annotation if is_signature else owner.annotation

    def __repr__(self) -> str:
        return self.text if isinstance(self.text, str) else inspect.formatannotation(self.text)


def _wrapped(signature: str, indent: int) -> str:
    """One argument a line where the whole does not fit."""
    if indent + len(signature) <= 100:
        return signature
    depth, lines, current = 0, [], ""
    body, _, result = signature[1:].rpartition(")")
    for character in body:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            lines.append(f"    {current.strip()},\n")
            current = ""
        else:
            current += character
    return "(\n" + "".join(lines) + f"    {current.strip()},\n){result}"


def _prose(value: Any) -> str:
    """A docstring as Markdown: its sections as lists, its code as code."""
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and text.startswith(f"{value.__name__}("):
        return ""  # what dataclass writes where nobody did
    parts: list[str] = []
    for block in text.replace("``", "`").split("\n\n"):
        title, _, body = block.partition("\n")
        if re.fullmatch(r"(Attributes|Args|Returns|Raises|Yields):", title):
            parts.append(f"*{title[:-1]}*\n{_items(dedent(body), title)}")
        elif not block.startswith("    "):
            parts.append(re.sub(r"(\w)?\s*::$", r"\1:" if block[-3:-2].isalnum() else "", block))
        elif parts and parts[-1].endswith("\n```"):  # the same piece of code goes on
            code = parts[-1][:-4]
            gap = "\n\n\n" if code.splitlines()[-1].startswith(" ") else "\n\n"  # as ruff formats
            parts[-1] = f"{code}{gap}{dedent(block)}\n```"
        else:
            parts.append(f"```python\n{dedent(block)}\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def _items(body: str, title: str) -> str:
    """``name: text`` entries, each going on in indented lines, as a list.

    What is returned or yielded may also be one entry without a name, which is not indented.
    """
    one = title in ("Returns:", "Yields:") and not re.match(r"[\w`, ]+: ", body)
    entries: list[str] = []
    for line in body.split("\n"):
        if entries and (one or line.startswith(" ")):
            entries[-1] += " " + line.strip()
        else:
            entries.append(line)
    return "\n".join(f"- {entry}" for entry in entries)


def main() -> None:
    with replacing(PATH) as temporary:
        temporary.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
