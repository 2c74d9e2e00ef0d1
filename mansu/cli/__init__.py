"""The command line."""

from mansu.cli.commands import BAD_INPUT, CANCELLED, main, script

__all__ = [
    "BAD_INPUT",
    "CANCELLED",
    "main",
    "script",
]
