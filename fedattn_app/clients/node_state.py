"""Storage for arrays between messages: the node's `state-dir`, or else Flower's context.

Flower keeps `context.state` in memory only, so a real node needs a `state-dir` in its node-config
for arrays that must survive a restart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from flwr.app import RecordDict

from fedattn_app.errors import UserError
from fedattn_app.files import (
    check_private_folder,
    open_state_folder,
    read_arrays,
    write_arrays,
)
from fedattn_app.transport.lazy_array import lazy_record
from fedattn_app.types import NDArray


class NodeState(Protocol):
    """Stores named sets of arrays."""

    def load(self, name: str) -> dict[str, NDArray] | None:
        """Return the arrays saved under `name`, or None if there are none."""

    def save(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Save `arrays` under `name`, replacing what was there."""


class FolderState:
    """Keeps each set of arrays as a safetensors file in one folder, replaced atomically.

    Every method raises `UserError` if other users may change what is in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str) -> dict[str, NDArray] | None:
        """Read the file; raises `UserError` if it cannot be read."""
        check_private_folder("state-dir", self.folder)
        path = self._path(name)
        return read_arrays(path)[0] if path.exists() else None

    def save(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Write the file; raises `UserError` if it cannot be written."""
        try:
            open_state_folder("state-dir", self.folder)
            write_arrays(self._path(name), arrays)
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
        """Write the record."""
        self.records[name] = lazy_record(arrays)
