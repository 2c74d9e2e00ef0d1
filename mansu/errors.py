"""The errors that users see: a sentence each, that says what is wrong, where, and what to do."""

from __future__ import annotations


class MansuError(ValueError):
    """What a user can mend. The message is one clear sentence; the CLI prints it and exits with 2.

    Raise one of the subclasses, so that a page or a script can tell them apart. A line break in it,
    of a name that somebody gave, is shown as one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\n", "\\n").replace("\r", "\\r"))


class BadInputError(MansuError):
    """What the user gave: a model, a task, a setting, a name."""


class TakenError(BadInputError):
    """The place of a new file or folder is taken: something is there, or a job is at work on it."""


class StorageError(MansuError):
    """The machine said no: a full disk, a folder that may not be written, a name too long."""


class NotMeasuredError(MansuError):
    """A result that nobody has made yet: the message says which step makes it."""


class DamagedError(MansuError):
    """A file of ours that is damaged, or of another version."""


class MismatchError(MansuError):
    """A result of other weights, another task or other settings than those at hand."""
