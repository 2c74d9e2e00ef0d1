"""The one error that users see: a sentence that says what is wrong, where, and what to do."""


class MansuError(ValueError):
    """Bad input. The message is one clear sentence; the CLI prints it and exits with 2."""
