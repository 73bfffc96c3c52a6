"""What a node keeps between messages: in its `state-dir`, or else in Flower's context.

Flower holds `context.state` in memory only, so on a real node what must outlive a restart needs a
`state-dir` in node-config.
"""

import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

from fedattn_app.errors import UserError
from fedattn_app.parameters import NDArray

log = logging.getLogger("fedattn")


class NodeState(Protocol):
    """Named sets of arrays that a node keeps."""

    def load(self, name: str) -> dict[str, NDArray] | None:
        """Return the arrays saved under `name`, or None when there are none."""

    def save(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Keep `arrays` under `name` in place of what was there."""


class FolderState:
    """Keeps each set as a safetensors file in one folder, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str) -> dict[str, NDArray] | None:
        """Read the file; raises `UserError` for one that cannot be read."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return dict(load_file(path))
        except Exception as error:  # safetensors raises its own class, which it does not export
            raise UserError(f"{path}: cannot be read ({error})") from None

    def save(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Write the file; raises `UserError` where that is not possible."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(name), serialise(arrays))
        except OSError as error:
            raise UserError(f"state-dir = {self.folder}: {error.strerror}") from None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class ContextState:
    """Keeps each set as an `ArrayRecord` of Flower's `context.state`."""

    def __init__(self, records: RecordDict) -> None:
        self.records = records

    def load(self, name: str) -> dict[str, NDArray] | None:
        """Read the record."""
        record = self.records.array_records.get(name)
        if record is None:
            return None
        return {key: array.numpy() for key, array in record.items()}

    def save(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Write the record, and say once that it will not last."""
        _warn_in_memory(name)
        self.records[name] = ArrayRecord(
            {key: Array(np.asarray(array)) for key, array in arrays.items()}
        )


def node_state(state_dir: object, records: RecordDict) -> NodeState:
    """Choose the state of a node: its `state-dir` when node-config names one."""
    return FolderState(Path(str(state_dir)).expanduser()) if state_dir else ContextState(records)


@lru_cache
def _warn_in_memory(name: str) -> None:
    log.warning(
        "no state-dir in node-config: a node's %s arrays are kept in memory and end with the run",
        name,
    )


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


def serialise(arrays: Mapping[str, NDArray], about: Mapping[str, str] | None = None) -> bytes:
    """Return `arrays` and the metadata `about` as the bytes of a safetensors file."""
    # safetensors writes the buffer as it lies, so it must lie in C order.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return to_safetensors(ordered, dict(about or {}))
