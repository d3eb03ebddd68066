"""The one error that a user can cause: what is wrong, where, and what to do about it."""


class TrainError(Exception):
    """Ends a command with its text and exit status 1."""


class UsageError(TrainError):
    """Ends a command with its text and exit status 2: the command was called wrongly."""
