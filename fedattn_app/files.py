"""Files that hold arrays, and paths that a user gives.

Arrays are kept as safetensors, never pickled, and every file is replaced whole or not at all.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from fedattn_app.errors import UserError
from fedattn_app.types import NDArray


def user_path(key: str, text: str) -> Path:
    """Return the absolute path that the user gave for `key`.

    Raises `UserError` for a text that is no path, or one that this user may not look at.
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
    """Return the existing folder that `text` names, if it names one."""
    try:
        path = Path(text).expanduser().absolute()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray], about: Mapping[str, str] | None = None
) -> None:
    """Write `arrays` and the metadata `about` to a safetensors file; raises `OSError`."""
    # safetensors writes the buffer as it lies, so it must lie in C order.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(ordered, dict(about or {})))


def read_arrays(path: Path) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Read the arrays and the metadata of a safetensors file; raises `UserError` if it cannot."""
    try:
        with safe_open(path, framework="numpy") as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # safetensors raises its own class, which it does not export
        raise UserError(f"{path}: cannot be read ({error})") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds the old or the new bytes, never a part of them."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut might bring the old file back
    finally:
        os.close(folder)
