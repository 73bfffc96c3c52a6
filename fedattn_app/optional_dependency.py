"""The extra ``pretrained``: what it installs is imported only where it is used."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedattn_app.errors import UserError


@contextmanager
def needing_extra(subject: str) -> Iterator[None]:
    """Turn a failed import of what `subject` needs into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{subject} needs the package {error.name}; install it with "
            "pip install -e '.[pretrained]'"
        ) from None
