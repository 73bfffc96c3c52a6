"""A node's privacy ledger: all privacy cost on its data so far, written before it is incurred.

The ledger is a JSON file in the node's `state-dir`. Each change replaces the whole file, under a
lock. A copy in Flower's `context.state` lasts as long as the run; a simulated node has only this
copy. Entries are added and never removed, and a hidden file beside the ledger counts them. A node
stops if its ledger cannot be read or has lost entries.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import RLock
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedattn_app.errors import UserError
from fedattn_app.files import (
    acquire_lock,
    check_private_folder,
    open_state_folder,
    write_atomically,
)
from fedattn_app.privacy.accounting import Steps

FORMAT = "fedattn privacy ledger 1"
KINDS = ("train", "evaluate")
COPY_RECORD = "privacy-ledger"
FOLDER_KEY = "state-dir"  # in the node-config: the folder of the ledger
LOCK_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Entry:
    """The privacy cost of one message of the server.

    Raises `ValueError` if a value has the wrong type or is out of range. Types must match exactly:
    neither True nor 1.0 is accepted for an int.

    Attributes:
        kind: "train" for the training examples, "evaluate" for those held out.
        noise_multiplier: the noise's standard deviation in units of the sensitivity, at least 0.
        sample_rate: the probability that a step uses an example, above 0 and at most 1.
        steps: the number of steps, at least 1.
        run: Flower's id of the run.
        server_round: the number of the round.
        epsilon: ε at `delta` of all entries up to and including this one, as reported.
        delta: the δ of `epsilon`, above 0 and below 1.
    """

    kind: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    run: int
    server_round: int
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if type(value) is not entry.type:
                raise ValueError(f"{entry.name} = {value!r} is not {entry.type}")
        valid = (
            self.kind in KINDS
            and 0 <= self.noise_multiplier < math.inf
            and 0 < self.sample_rate <= 1
            and self.steps > 0
            and self.epsilon >= 0
            and 0 < self.delta < 1
        )
        if not valid:
            raise ValueError(f"{asdict(self)} is out of range")

    @property
    def mechanism(self) -> Steps:
        """The steps of this entry, in the form that the accountant takes."""
        return Steps(self.noise_multiplier, self.sample_rate, self.steps)


class Ledger:
    """A list of entries, oldest first, in a file and in a copy.

    Raises `UserError` if the file is not a ledger, cannot be read, or lacks entries that `copy`
    has or that were counted, and if other users may change what is in its folder.

    Args:
        copy: Flower's `context.state`, or any `RecordDict`.
        path: the file. None: the entries are kept in `copy` only, as on a simulated node.
    """

    def __init__(self, copy: RecordDict, path: Path | None = None) -> None:
        self.copy = copy
        self.path = path
        self._exclusive = False
        self._thread_lock = RLock()
        self.entries = self._read()

    @property
    def mechanisms(self) -> list[Steps]:
        """The steps of all entries, oldest first, in the form that the accountant takes."""
        return [entry.mechanism for entry in self.entries]

    def entries_of(self, kind: str, run: int | None = None) -> list[Entry]:
        """Return the entries of one kind, oldest first; the list is empty if there are none.

        Args:
            kind: "train" or "evaluate".
            run: Flower's id of the run. None: entries of all runs.
        """
        return [entry for entry in self.entries if entry.kind == kind and run in (None, entry.run)]

    def add(self, entry: Entry) -> None:
        """Add an entry. If the ledger has a file, the entry is on disk when this returns.

        Raises `UserError` if the file cannot be read, written or locked.
        """
        with self.exclusive():
            text = _to_json([*self.entries, entry])
            if self.path is not None:
                try:
                    write_atomically(self.path, text.encode())
                    write_atomically(_count_path(self.path), str(len(self.entries) + 1).encode())
                except OSError as error:
                    raise _unwritable(self.path, error) from None
            self.entries = [*self.entries, entry]
            self.copy[COPY_RECORD] = ConfigRecord({"ledger": text})

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context manager that locks the ledger on this machine and reads its newest entries.

        The lock is reentrant: `add` takes it too. Raises `UserError` if the folder cannot be
        written, the file cannot be read, or another process holds the lock for more than
        `LOCK_TIMEOUT_SECONDS`.
        """
        with self._thread_lock:
            if self._exclusive:  # entered before by this thread
                yield
                return
            with _locked(self.path) if self.path else nullcontext():
                self._exclusive = True
                try:
                    self.entries = self._read()
                    yield
                finally:
                    self._exclusive = False

    def _read(self) -> list[Entry]:
        record = self.copy.config_records.get(COPY_RECORD)
        copied = _from_json(str(record["ledger"])) if record else []
        if self.path is None:
            return copied
        check_private_folder(FOLDER_KEY, self.path.parent)
        count = self._count()  # first: another process may add an entry meanwhile
        try:
            kept = _from_json(self.path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            kept = []
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _unreadable(self.path, str(reason)) from None
        if kept[: len(copied)] != copied or len(kept) < count:
            raise UserError(
                f"{self.path}: lacks entries that this node has written; restore the newest "
                "version, or, for other data, set another name with the node-config key ledger"
            )
        return kept

    def _count(self) -> int:
        """Return the number of entries that were ever written, or 0 if no count file exists.

        Raises `UserError` if the count cannot be read.
        """
        assert self.path
        try:
            return int(_count_path(self.path).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except (OSError, ValueError) as error:
            raise _unreadable(_count_path(self.path), str(error)) from None


def _to_json(entries: Sequence[Entry]) -> str:
    rows = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    return f'{{"format": "{FORMAT}", "entries": [\n{rows}\n]}}\n'


def _from_json(text: str) -> list[Entry]:
    content: Any = json.loads(text, object_pairs_hook=_unique_names)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if not isinstance(content["entries"], list):
        raise ValueError("its entries are not a list")
    return [Entry(**row) for row in content["entries"]]


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: is not a readable privacy ledger ({reason}); restore the newest version, or, for "
        "other data, set another name with the node-config key ledger"
    )


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror})")


def _count_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.count")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Context manager that locks the file `path` on this machine, by a lock file next to it.

    Raises `UserError` if another process holds it for more than `LOCK_TIMEOUT_SECONDS`, if the lock
    file cannot be written, or if other users may change what is in its folder.
    """
    try:
        open_state_folder(FOLDER_KEY, path.parent)
        lock = acquire_lock(path.with_name(f".{path.name}.lock"), LOCK_TIMEOUT_SECONDS)
    except TimeoutError:
        raise UserError(
            f"{path}: has been locked by another process for {LOCK_TIMEOUT_SECONDS} s"
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()
