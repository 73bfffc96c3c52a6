"""Imports of packages that only the extra ``pretrained`` installs."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedattn_app.errors import UserError


@contextmanager
def needing_extra(subject: str) -> Iterator[None]:
    """Turn a `ModuleNotFoundError` into a `UserError` with the command that installs the package.

    `subject` is the setting that needs the package, as the error should name it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{subject} needs the package {error.name}; install it with "
            "pip install -e '.[pretrained]'"
        ) from None
