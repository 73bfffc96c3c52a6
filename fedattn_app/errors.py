"""The two ways a run ends early, each with one line that says why."""


class UserError(ValueError):
    """A mistake of the user's: its text says what to change."""


class RunFailedError(RuntimeError):
    """A run that cannot go on."""
