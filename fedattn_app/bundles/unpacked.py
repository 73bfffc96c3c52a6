"""A folder of its own in which one node unpacks the code that it runs."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from fedattn_app.errors import UserError
from fedattn_app.files import (
    acquire_lock,
    check_only_owner_writes,
    check_private_folder,
    make_private_folder,
)

LOCK_SECONDS = 10
_PREFIX = "node-"


@contextmanager
def folder_for_one_node(parent: Path) -> Iterator[Path]:
    """Make an empty folder in `parent` that only this user can enter, and delete it at the end.

    What killed nodes left in `parent` is deleted, too. Raises `UserError` if the folder cannot be
    made, or others can write to `parent`.
    """
    try:
        make_private_folder(parent)
        check_only_owner_writes(parent, parent.lstat())
        check_private_folder("FLWR_HOME", parent.parent)
        starting = acquire_lock(parent / ".lock", LOCK_SECONDS)
        try:
            for left in parent.glob(f"{_PREFIX}*"):
                _remove_if_unused(left)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            in_use = acquire_lock(folder / ".lock", LOCK_SECONDS)
        finally:
            starting.release()
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error.strerror or error})") from None
    try:
        yield folder
    finally:
        in_use.release()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_unused(folder: Path) -> None:
    """Delete the folder of a node that has ended."""
    try:
        lock = acquire_lock(folder / ".lock", timeout=0)
    except Timeout:
        return
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)
