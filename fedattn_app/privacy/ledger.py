"""A node's privacy ledger: everything spent on its data so far, written before it is spent.

The ledger is a JSON file in the node's `state-dir`, replaced as a whole under a lock. A copy in
Flower's `context.state` lasts as long as the run; a simulated node has only the copy. Entries are
added and never removed; a hidden file beside the ledger counts them. A ledger that cannot be read,
or that has lost entries, stops the node.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from flwr.app import ConfigRecord, RecordDict

from fedattn_app.errors import UserError
from fedattn_app.files import write_atomically
from fedattn_app.privacy.accounting import Steps

FORMAT = "fedattn privacy ledger 1"
KINDS = ("train", "evaluate")
COPY = "privacy-ledger"
LOCK_POLL_SECONDS = 0.01
LOCK_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Entry:
    """What one message of the server has cost.

    Attributes:
        kind: "train" or "evaluate": which examples the mechanism was applied to.
        noise_multiplier: the standard deviation of the noise per sensitivity, at least 0.
        sample_rate: the probability of each example to be in a step, above 0, at most 1.
        steps: the number of steps, at least 1.
        run: Flower's id of the run.
        server_round: the round.
        epsilon: ε at `delta` of all entries up to this one, as it was reported.
        delta: the δ of `epsilon`, between 0 and 1.
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
            raise ValueError(f"{asdict(self)} is not a possible entry")

    @property
    def mechanism(self) -> Steps:
        """The entry as the accountant takes it."""
        return Steps(self.noise_multiplier, self.sample_rate, self.steps)


class Ledger:
    """The entries so far, oldest first, and where they are kept.

    Raises `UserError` for a file that is not a ledger, cannot be read, or lacks entries that `copy`
    has.

    Args:
        copy: Flower's `context.state`, or any `RecordDict`.
        path: the file, or None for a node that exists no longer than `copy`.
    """

    def __init__(self, copy: RecordDict, path: Path | None = None) -> None:
        self.copy = copy
        self.path = path
        self._exclusive = False
        self.entries = self._read()

    @property
    def mechanisms(self) -> list[Steps]:
        """Every entry as the accountant takes it."""
        return [entry.mechanism for entry in self.entries]

    def of(self, kind: str, run: int | None = None) -> list[Entry]:
        """Return the entries of one kind, of all runs or of one."""
        return [entry for entry in self.entries if entry.kind == kind and run in (None, entry.run)]

    def add(self, entry: Entry) -> None:
        """Add an entry. It is on disk when this returns; otherwise `UserError` is raised."""
        with self.exclusive():
            text = _to_json([*self.entries, entry])
            if self.path is not None:
                try:
                    write_atomically(self.path.resolve(), text.encode())
                    write_atomically(_counter(self.path), str(len(self.entries) + 1).encode())
                except OSError as error:
                    raise _not_written(self.path, error) from None
            self.entries = [*self.entries, entry]
            self.copy[COPY] = ConfigRecord({"ledger": text})

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Read the newest entries and keep every other process of this machine from adding any.

        Reentrant: `add` enters it too. Raises `UserError` where the folder cannot be written or
        the file cannot be read.
        """
        if self._exclusive:
            yield
            return
        with _locked(self.path.resolve()) if self.path else nullcontext():
            self._exclusive = True
            try:
                self.entries = self._read()
                yield
            finally:
                self._exclusive = False

    def _read(self) -> list[Entry]:
        record = self.copy.config_records.get(COPY)
        copied = _from_json(str(record["ledger"])) if record else []
        if self.path is None:
            return copied
        count = self._count()  # first: another process may add an entry meanwhile
        try:
            kept = _from_json(self.path.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.path.is_symlink():
                raise _not_read(self.path, "it is a link to nothing") from error
            kept = []
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _not_read(self.path, str(reason)) from None
        if kept[: len(copied)] != copied or len(kept) < count:
            raise UserError(
                f"{self.path}: lacks entries that this node has written; restore its newest "
                "version, or for other data name another with the node-config key ledger"
            )
        return kept

    def _count(self) -> int:
        """Return the number of entries ever written; 0 for a ledger without its count."""
        assert self.path
        try:
            return int(_counter(self.path).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except (OSError, ValueError) as error:
            raise _not_read(_counter(self.path), str(error)) from None


def _to_json(entries: Sequence[Entry]) -> str:
    rows = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    return f'{{"format": "{FORMAT}", "entries": [\n{rows}\n]}}\n'


def _from_json(text: str) -> list[Entry]:
    content: Any = json.loads(text, object_pairs_hook=_unique_names)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not marked {FORMAT!r}")
    if not isinstance(content["entries"], list):
        raise ValueError("its entries are not a list")
    return [Entry(**row) for row in content["entries"]]


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _not_read(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: is not a readable privacy ledger ({reason}); restore its newest version, or for "
        "other data name another with the node-config key ledger"
    )


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror})")


def _counter(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.count")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let no other thread or process on this machine change the ledger meanwhile.

    The operating system releases the lock when its holder ends, even if it is killed.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(LOCK_TIMEOUT_SECONDS, poll_interval=LOCK_POLL_SECONDS)
    except Timeout:
        raise UserError(
            f"{path}: has been locked by another process for {LOCK_TIMEOUT_SECONDS} s"
        ) from None
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        yield
    finally:
        lock.release()
