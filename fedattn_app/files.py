"""Safe reading, writing and locking of files, and paths that a user gives.

Arrays are stored as safetensors, never as pickles. A file is always replaced as a whole.
"""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from safetensors import safe_open
from safetensors.numpy import save

from fedattn_app.errors import UserError
from fedattn_app.types import NDArray

LOCK_POLL_SECONDS = 0.01
# The disk, the user's share of it, or the largest file that the process may write.
FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_START_BYTES = 256  # of a file, to see what it is


def user_path(key: str, text: str) -> Path:
    """Return the absolute path `text`, which the user gave for `key`. It need not exist.

    Raises `UserError` if `text` is not a valid path or the user may not access it.
    """
    try:
        path = Path(text).expanduser().absolute()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{key} = {text!r}: cannot be used as a path ({reason})") from None
    return path


def folder_of(text: str) -> Path | None:
    """Return the absolute path of the folder `text`, or None if there is no such folder."""
    try:
        path = Path(text).expanduser().absolute()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray], about: Mapping[str, str] | None = None
) -> None:
    """Write `arrays` and the metadata `about` to a safetensors file; raises `OSError`."""
    # safetensors writes the memory of an array as it is and reads it as C order.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(ordered, dict(about or {})))


def read_arrays(path: Path) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file.

    Raises `UserError` if the file cannot be read.
    """
    if damage := damage_of(path):
        raise UserError(f"{path}: cannot be read ({damage})")
    try:
        with safe_open(path, framework="numpy") as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # safetensors does not export the class of its exceptions
        raise UserError(f"{path}: cannot be read ({error})") from None


def damage_of(path: Path) -> str | None:
    """Return what is visibly wrong with a file that may have been downloaded, or None.

    The size of a safetensors file is compared with the one in its header. A file that cannot be
    opened is not damaged: whoever reads it reports the reason.
    """
    try:
        with path.open("rb") as file:
            start = file.read(MAX_START_BYTES)
            if not start.strip():
                return "it is empty"
            if start.startswith(b"version https://git-lfs"):
                return "it is a Git LFS pointer, not the file itself: run git lfs pull"
            if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
                return "it is a web page, not the file itself: download it again"
            if path.suffix == ".safetensors" and not _has_all_arrays(file):
                return "it is no safetensors file, or not all of one: download it again"
    except OSError:
        pass
    return None


def _has_all_arrays(file: BinaryIO) -> bool:
    """Return whether a safetensors file is as long as its header says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    header_size = int.from_bytes(file.read(8), "little")
    if header_size > size:
        return False
    try:
        header = json.loads(file.read(header_size))
        ends = [about["data_offsets"][1] for name, about in header.items() if name[:2] != "__"]
        return bool(8 + header_size + max(ends, default=0) <= size)
    except (ValueError, TypeError, AttributeError, LookupError):  # not such a header
        return False


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, which holds either its old or its new content at any time.

    When this returns, the content is on disk. Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what `write_atomically` left in `folder` when its process was killed.

    Nobody else may be writing there. Raises `OSError`.
    """
    for file in folder.glob(".*.*"):
        if file.suffix[1:].isdecimal() and file.is_file():
            file.unlink()


def append(path: Path, content: bytes) -> None:
    """Append `content` to `path`, or nothing if there is no room for all of it.

    When this returns, the content is on disk. Raises `OSError`.
    """
    with path.open("ab", buffering=0) as file:
        size, rest = file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def acquire_lock(path: Path, timeout: float) -> FileLock:
    """Lock the file `path` on this machine and return the lock, to be released by the caller.

    No other thread or process on this machine can hold the lock at the same time. The operating
    system releases the lock when the process ends, even if the process is killed.

    Raises `TimeoutError` if another holds it for more than `timeout` seconds, and `OSError` if the
    file cannot be written or the file system has no locks.
    """
    # Without locks it raises: a marker file in place of a lock could outlive its holder.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire(timeout, poll_interval=LOCK_POLL_SECONDS)
    return lock


def _sync_folder(folder: Path) -> None:
    """Write the folder's list of names to disk, so that a power cut cannot undo a renaming."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
