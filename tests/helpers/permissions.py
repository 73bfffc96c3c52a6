"""The umask of this process, and the modes of what a folder holds."""

import os
import stat
from contextlib import contextmanager


@contextmanager
def umask(mask):
    """Make new files and folders under `mask`."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def modes_in(folder):
    """The modes of `folder` itself ("") and of everything below it, by relative path."""
    below = {str(path.relative_to(folder)): mode_of(path) for path in folder.rglob("*")}
    return {"": mode_of(folder), **below}
