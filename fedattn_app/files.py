"""Safe reading, writing and locking of files, and paths that a user gives.

Arrays are stored as safetensors, never as pickles. A file is always replaced as a whole. Only the
user of this process may read what is written, whatever the umask, and nothing is written through a
link: another user of the machine may have put it where a file was expected.
"""

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from safetensors import safe_open
from safetensors.numpy import save

from fedattn_app.errors import UserError
from fedattn_app.types import NDArray

LOCK_POLL_SECONDS = 0.01
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
OTHERS_WRITE = 0 if os.name == "nt" else stat.S_IWGRP | stat.S_IWOTH
STATE_SUFFIXES = {".json", ".safetensors", ".lock", ".count"}  # of the files in a state-dir
# Of a temporary file, whose name is that of the file, eight random characters and this.
LEFTOVER_SUFFIX = ".fedattn"
LEFTOVER = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(LEFTOVER_SUFFIX)}")
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

    When this returns, the content is on disk. If `path` is a link, the link is replaced. Raises
    `OSError`.
    """
    # A new file with a name that nobody can guess: nobody can have put a link there.
    descriptor, name = tempfile.mkstemp(LEFTOVER_SUFFIX, f".{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what `write_atomically` left in `folder` when its process was killed.

    Nobody else may be writing there. Raises `OSError`.
    """
    for file in folder.glob(f".*{LEFTOVER_SUFFIX}"):
        if LEFTOVER.fullmatch(file.name) and file.is_file():
            file.unlink()


def append(path: Path, content: bytes) -> None:
    """Append `content` to `path`, or nothing if there is no room for all of it.

    When this returns, the content is on disk. Raises `OSError`, also for a link.
    """
    with open(path, "ab", buffering=0, opener=private_opener) as file:
        size, rest = file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def private_opener(name: str, flags: int) -> int:
    """Open a file as `open` does, but no link; only this user may read a file that it makes.

    Raises `OSError`.
    """
    try:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), PRIVATE_FILE)
    except OSError as error:
        raise _about_link(error, name) from None


def make_private_folder(folder: Path) -> None:
    """Make `folder`, and what is missing above it, so that only this user may enter.

    A folder that is there stays as it is. Raises `OSError`.
    """
    if not folder.parent.exists():
        make_private_folder(folder.parent)
    folder.mkdir(PRIVATE_FOLDER, exist_ok=True)


def open_state_folder(key: str, folder: Path) -> None:
    """Make the folder `folder`, which the user gave for `key`, or close one of ours to others.

    A folder that has folders in it is not closed: it may serve others too. Raises `OSError`, and
    `UserError` as `check_private_folder` does.
    """
    check_private_folder(key, folder)
    make_private_folder(folder)
    if os.name == "nt" or folder.stat().st_uid != os.geteuid():
        return
    if stat.S_IMODE(folder.stat().st_mode) != PRIVATE_FOLDER:
        with os.scandir(folder) as entries:
            if not any(entry.is_dir() for entry in entries):
                folder.chmod(PRIVATE_FOLDER)


def check_private_folder(key: str, folder: Path) -> None:
    """Raise `UserError` if other users may change what is in the folder `folder`.

    They may if they own it, or can write to it or to one of the files that a node keeps there, or
    can replace it because a folder above it is open to everyone. Neither may such a file be a link,
    or belong to another user than root. The folder itself may be a link, or be missing. Windows has
    no such modes: there only the links are refused.

    Args:
        key: the key for which the user gave the folder.
        folder: the folder, absolute.
    """
    try:
        for fault in _open_to_others(folder) if folder.exists() else ():
            raise UserError(f"{key} = {folder}: {fault}")
    except OSError as error:
        raise UserError(f"{key} = {folder}: cannot be used ({error.strerror})") from None


def _open_to_others(folder: Path) -> Iterator[str]:
    """Yield every way in which other users may change what is in the folder `folder`."""
    target = folder.resolve()
    for parent in {*folder.parents, *target.parents}:
        above = parent.stat()
        if not _is_ours(above):
            yield f"the owner of {parent} can replace it; move it to a folder of yours or root's"
        if above.st_mode & OTHERS_WRITE & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            yield f"anyone can replace it in {parent}; chmod o-w that folder"
    status = target.stat()
    if not (_is_ours(folder.lstat()) and _is_ours(status)):
        yield "it belongs to another user; name a folder of your own"
    if status.st_mode & OTHERS_WRITE:
        yield "others can write to it; chmod 700 it"
    with os.scandir(target) as entries:
        files = [entry for entry in entries if Path(entry.name).suffix in STATE_SUFFIXES]
    for file in files:
        if fault := _fault_of(file.stat(follow_symlinks=False)):
            yield f"{file.name} in it: {fault}"


def check_only_owner_writes(path: Path, status: os.stat_result) -> None:
    """Raise `UserError` if another user than this one and root can change `path`.

    Args:
        path: a file or folder.
        status: its own status, not that of what it links to.
    """
    if fault := _fault_of(status):
        raise UserError(f"{path}: {fault}")


def _fault_of(status: os.stat_result) -> str:
    """Return how another user could change what has this status; empty if none can."""
    if stat.S_ISLNK(status.st_mode):
        return "is a link; put the file or folder itself there"
    if not _is_ours(status):
        return "belongs to another user, who could change it"
    if status.st_mode & OTHERS_WRITE:
        return "others can write to it; chmod go-w it"
    return ""


def _is_ours(status: os.stat_result) -> bool:
    return os.name == "nt" or status.st_uid in (0, os.geteuid())


def acquire_lock(path: Path, timeout: float) -> FileLock:
    """Lock the file `path` on this machine and return the lock, to be released by the caller.

    No other thread or process on this machine can hold the lock at the same time. The operating
    system releases the lock when the process ends, even if the process is killed.

    Raises `TimeoutError` if another holds it for more than `timeout` seconds, and `OSError` if the
    file cannot be written or is a link, or the file system has no locks.
    """
    # Without locks it raises: a marker file in place of a lock could outlive its holder.
    lock = FileLock(path, mode=PRIVATE_FILE, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout, poll_interval=LOCK_POLL_SECONDS)
    except OSError as error:
        raise _about_link(error, path) from None
    return lock


def _about_link(error: OSError, path: str | Path) -> OSError:
    """Return an error that says so if `path` is a link, and `error` if it is none."""
    return OSError(errno.ELOOP, "it is a link", path) if os.path.islink(path) else error


def _sync_folder(folder: Path) -> None:
    """Write the folder's list of names to disk, so that a power cut cannot undo a renaming."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
