"""The state of a run: ``status.json`` in its folder, and a lock that the run holds."""

import errno
import json
import os
from pathlib import Path

from filelock import FileLock

from fedattn_app.errors import UserError
from fedattn_app.files import acquire_lock, private_opener, write_atomically
from fedattn_app.types import Row

STATUS = "status.json"
LOCK = ".lock"
STATUS_BYTES = 511  # spaces fill up the file, so that a full disk has room for a reason
READER_TIMEOUT_SECONDS = 0.2  # longer than other readers hold the lock
LOCK_TIMEOUT_SECONDS = 2  # longer than another run takes to read a folder that it resumes
RUNNING, ENDED, FAILED, INTERRUPTED, DIED = "running", "ended", "failed", "interrupted", "died"
STATES = (RUNNING, ENDED, FAILED, INTERRUPTED)  # in the file
FINAL_FILES = ("summary.json", "model.safetensors", "best.safetensors")


def has_final_files(run: Path) -> bool:
    """Return whether the folder `run` has its summary and its final model."""
    return (run / "summary.json").exists() and (run / "model.safetensors").exists()


def is_complete(run: Path) -> bool:
    """Return whether the run in the folder `run` has ended, and its final files are there.

    Runs of earlier versions have no status; they wrote the summary last.
    """
    ended = not (run / STATUS).exists() or _read(run)["state"] == ENDED
    return ended and has_final_files(run)


def remove_final_files(run: Path) -> None:
    """Delete the summary, first, and the final models in the folder `run`; raises `OSError`."""
    for name in FINAL_FILES:
        (run / name).unlink(missing_ok=True)


def write_status(run: Path, state: str, server_round: int, reason: str = "") -> None:
    """Replace ``status.json`` in the folder `run`; raises `OSError`."""
    path = run / STATUS
    try:
        write_atomically(path, _encode(state, server_round, reason))
    except OSError as error:
        try:  # a full disk has room for a change of a file, although not for another one
            _overwrite(path, state, server_round, reason)
        except OSError:
            raise error from None


def read_status(run: Path) -> Row:
    """Return the content of ``status.json`` in the folder `run`.

    Its state is "died" if the file says "running" and no process holds the folder's lock. Raises
    `UserError` if the file cannot be read.
    """
    status = _read(run)
    if status["state"] == RUNNING and not _is_locked(run):
        status = _read(run)  # it may have ended in between
        if status["state"] == RUNNING:
            return {**status, "state": DIED, "reason": "its process ended without saying why"}
    return status


def lock_run(key: str, run: Path) -> FileLock:
    """Lock the folder `run`, which the user gave for `key`, and return the lock.

    Raises `UserError` if another run holds it, and `OSError` if the folder cannot be written or its
    file system has no locks.
    """
    try:
        return acquire_lock(run / LOCK, LOCK_TIMEOUT_SECONDS)
    except TimeoutError:
        raise UserError(f"{key} = {run}: another run is writing there") from None


def _encode(state: str, server_round: int, reason: str) -> bytes:
    status = {"state": state, "round": server_round, "reason": reason or None}
    return json.dumps(status).encode().ljust(STATUS_BYTES) + b"\n"


def _overwrite(path: Path, state: str, server_round: int, reason: str) -> None:
    """Replace the content of the file `path` in place, or leave it; raises `OSError`.

    The file does not grow: what is too long of a reason is left out.
    """
    size = path.stat().st_size
    content = _encode(state, server_round, reason)
    if len(content) > size:
        content = _encode(state, server_round, reason[: STATUS_BYTES // 8])
    if len(content) > size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(path, "r+b", buffering=0, opener=private_opener) as file:
        file.write(content.ljust(size))


def _read(run: Path) -> Row:
    path = run / STATUS
    try:
        status: Row = json.loads(path.read_bytes())
        state, server_round, reason = (status[name] for name in ("state", "round", "reason"))
        if state not in STATES or type(server_round) is not int:
            raise ValueError(state)
        if not (reason is None or isinstance(reason, str)):
            raise TypeError(reason)
        return {"state": state, "round": server_round, "reason": reason}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f"{path}: is not the status of a run") from None


def _is_locked(run: Path) -> bool:
    """Return whether a process holds the folder's lock, as far as this user may know."""
    if not (run / LOCK).exists():
        return False
    try:
        acquire_lock(run / LOCK, READER_TIMEOUT_SECONDS).release()
    except OSError:  # held, or of another user
        return True
    return False
