"""The two exceptions that end a run early, each with one line that says why."""


class UserError(ValueError):
    """A user's mistake: the text says what to change."""


class RunFailedError(RuntimeError):
    """A run that cannot continue: the text says why."""
