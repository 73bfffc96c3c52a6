"""Write a run's folder during the run: each round is on disk before the next one begins."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock

from fedattn_app.config import Config, ConfigValue
from fedattn_app.errors import RunFailedError, UserError
from fedattn_app.files import (
    FULL_ERRORS,
    PRIVATE_FOLDER,
    append,
    make_private_folder,
    remove_leftovers,
    user_path,
    write_arrays,
    write_atomically,
)
from fedattn_app.results.checkpoint import (
    ACCOUNTANT,
    BEST,
    BUDGETS,
    CHECKPOINT,
    BestModel,
    Checkpoint,
    write_best,
    write_spending,
)
from fedattn_app.results.confinement import DEFAULT_PARENT
from fedattn_app.results.resume import EarlierRun
from fedattn_app.results.run_state import (
    ENDED,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STATUS,
    has_final_files,
    lock_run,
    remove_final_files,
    write_status,
)
from fedattn_app.results.versions import recorded_versions
from fedattn_app.run_identity import RunIdentity
from fedattn_app.types import NDArray, Row


class RunFolder:
    """The folder of one run, a context manager around all of the run.

    `begin` locks the folder and writes to it for the first time. From then on ``status.json`` says
    how far the run is and how it ended. The lock is released at the end of the context, or by the
    death of the process.

    Every method that writes raises `RunFailedError` with the name of the file that cannot be
    written.

    Args:
        config: the settings of the run.
        parent: the folder in which a run that names none gets one of its own.

    Attributes:
        path: the folder, absolute.
        best: the model of the round with the best score so far.
    """

    def __init__(self, config: Config, parent: str = DEFAULT_PARENT) -> None:
        output = config.output
        self.config = config
        self.path = user_path("output-dir", output.output_dir or output.resume_from or parent)
        self.best = BestModel()
        self.identity = RunIdentity()
        self._earlier = user_path("resume-from", output.resume_from) if output.resume_from else None
        self._in_place = self._earlier is not None and _same(self.path, self._earlier)
        self._lock: FileLock | None = None
        self._round = 0
        self._state = ""  # nothing is written yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write why the run ends, if it ends early, and release the lock."""
        if error is not None and self._state == RUNNING:
            with suppress(RunFailedError):
                if isinstance(error, Exception):
                    self._set_state(FAILED, _reason(error))
                else:
                    self._set_state(INTERRUPTED, type(error).__name__)
        if self._lock:
            self._lock.release()

    def check_free(self) -> None:
        """Raise `UserError` if the folder already holds another run. Nothing is written."""
        if not self._in_place and self._holds_rounds():
            raise UserError(
                f"output-dir = {self.path}: already holds a run; name another folder, or resume "
                "that run with resume-from"
            )

    @contextmanager
    def reading_earlier_run(self) -> Iterator[None]:
        """Lock the run that this one resumes, if there is one, while its files are read.

        If the run goes on in the same folder, the lock stays until the run ends. Raises `UserError`
        if another run is writing there.
        """
        earlier = self._earlier
        if earlier is None or not (earlier / CHECKPOINT).exists():
            yield
            return
        try:
            lock = lock_run("resume-from", earlier)
        except OSError:  # nobody can lock it, so no run is writing there
            yield
            return
        if self._in_place:
            self._lock = lock
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def begin(self, identity: RunIdentity | None = None, earlier: EarlierRun | None = None) -> None:
        """Lock the folder, and write ``config.toml`` and the rounds of the run that is resumed.

        Raises `UserError` for a folder that cannot be written, that another run is writing, or that
        already holds another run.

        Args:
            identity: what must be the same in every round; the checkpoint records it.
            earlier: the run that this one resumes.
        """
        earlier = earlier or EarlierRun()
        self.identity = identity or RunIdentity()
        self.best = earlier.best
        self._round = earlier.last_round
        try:
            self._claim()
            make_private_folder(self.path / "checkpoint")
            if (self.path / "checkpoint").is_symlink():
                raise OSError(errno.ELOOP, "checkpoint in it is a link")
            for folder in (self.path, self.path / "checkpoint"):
                remove_leftovers(folder)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                raise self._failure(self.path, error) from None
            raise UserError(
                f"output-dir = {self.path}: cannot be written ({error.strerror})"
            ) from None
        self._set_state(RUNNING)
        if earlier.path and not self._in_place:
            if earlier.best.arrays:
                self.write_best(earlier.best.server_round, earlier.best.arrays)
            self.write_checkpoint(
                earlier.last_round, earlier.arrays, earlier.num_partitions, earlier.rule_state
            )
        self._write_text("config.toml", _to_toml(self.config.to_run_config(), recorded_versions()))
        self._write_text("history.jsonl", "".join(map(_to_line, earlier.history)))
        self._write_text("clients.jsonl", "".join(map(_to_line, earlier.clients)))

    @property
    def finished(self) -> bool:
        """Whether the folder has its final files."""
        return has_final_files(self.path)

    def remove_final_files(self) -> None:
        """Delete the summary and the final models, which a resumed run makes out of date."""
        with self._writing("summary.json"):
            remove_final_files(self.path)

    def add_round(self, row: Row, clients: Iterable[Row]) -> None:
        """Append one round to ``history.jsonl`` and its clients to ``clients.jsonl``."""
        for name, rows in (("clients.jsonl", clients), ("history.jsonl", [row])):
            with self._writing(name):
                append(self.path / name, _encode("".join(map(_to_line, rows))))

    def write_accountant(self, state: Mapping[str, object]) -> None:
        """Write the state of the server's accountant.

        Call this before anyone sees the noisy model.
        """
        with self._writing(ACCOUNTANT):
            write_spending(self.path, ACCOUNTANT, state)

    def write_budgets(self, budgets: Mapping[str, object]) -> None:
        """Write what the clients have spent.

        Call this before sending a message that may cost more.
        """
        with self._writing(BUDGETS):
            write_spending(self.path, BUDGETS, budgets)

    def write_checkpoint(
        self,
        server_round: int,
        arrays: Mapping[str, NDArray],
        num_partitions: int = 0,
        rule_state: Mapping[str, NDArray] | None = None,
    ) -> None:
        """Replace the checkpoint by the state after `server_round`; see `Checkpoint`."""
        with self._writing(CHECKPOINT):
            Checkpoint(server_round, arrays, rule_state or {}, num_partitions, self.identity).write(
                self.path
            )
        self._round = server_round
        self._set_state(RUNNING)

    def write_best(self, server_round: int, arrays: Mapping[str, NDArray]) -> None:
        """Replace the best model by `arrays`, the parameters after the round `server_round`."""
        self.best = BestModel(server_round, dict(arrays))
        with self._writing(BEST):
            write_best(self.path, self.best)

    def finish(
        self, summary: Row, arrays: Mapping[str, NDArray], metadata: Mapping[str, str]
    ) -> None:
        """Write the final model, the best model if any round has a score, and the summary.

        Args:
            summary: the content of ``summary.json``.
            arrays: every parameter of the final model.
            metadata: what `Predictor` needs to use the models.
        """
        with self._writing("model.safetensors"):
            write_arrays(self.path / "model.safetensors", arrays, metadata)
        if self.best.arrays:
            with_round = {**metadata, "round": str(self.best.server_round)}
            best = {**arrays, **self.best.arrays}
            with self._writing("best.safetensors"):
                write_arrays(self.path / "best.safetensors", best, with_round)
        self._write_text("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

        self.end()

    def end(self) -> None:
        """Write that the run has ended."""
        self._set_state(ENDED)

    def _claim(self) -> None:
        """Make the folder and lock it; raises `OSError`, and `UserError` if it is taken."""
        output = self.config.output
        if output.output_dir or output.resume_from:
            make_private_folder(self.path)
        else:
            self.path = _new_folder(self.path, self.config.aggregation.strategy)
        if self._lock is None:
            self._lock = lock_run("output-dir", self.path)
        self.check_free()

    def _holds_rounds(self) -> bool:
        """Return whether the folder has more of a run than a round 0 that cannot be resumed."""
        history = self.path / "history.jsonl"
        num_rows = history.read_bytes().count(b"\n") if history.exists() else 0
        return num_rows > (0 if (self.path / CHECKPOINT).exists() else 1)

    def _set_state(self, state: str, reason: str = "") -> None:
        with self._writing(STATUS):
            write_status(self.path, state, self._round, reason)
        self._state = state

    def _write_text(self, name: str, text: str) -> None:
        with self._writing(name):
            write_atomically(self.path / name, _encode(text))

    @contextmanager
    def _writing(self, name: str | Path) -> Iterator[None]:
        """Turn an `OSError` into a `RunFailedError` that names the file `name` of the folder."""
        try:
            yield
        except OSError as error:
            raise self._failure(self.path / name, error) from None

    def _failure(self, path: Path, error: OSError) -> RunFailedError:
        advice = f"; the rounds so far are in {self.path}" * (self.path / CHECKPOINT).exists()
        return RunFailedError(f"{path}: cannot be written ({error.strerror}){advice}")


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()


def _new_folder(parent: Path, strategy: str) -> Path:
    """Make a folder with a name that no other run has; raises `OSError`."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{strategy}-{os.getpid()}"
    make_private_folder(parent)
    for number in count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(PRIVATE_FOLDER)
            return path
    raise AssertionError("count has no end")


def _reason(error: Exception) -> str:
    """Return what `error` says, in one line."""
    text = " ".join(str(error).splitlines())
    return (
        text
        if isinstance(error, (UserError, RunFailedError))
        else f"{type(error).__name__}: {text}"
    )


def _encode(text: str) -> bytes:
    # JSON writes half a surrogate pair, which UTF-8 does not have, as Python does: \\ud83d.
    return text.encode(errors="backslashreplace")


def _to_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _to_toml(settings: Mapping[str, ConfigValue], versions: Mapping[str, str]) -> str:
    # A JSON scalar is a TOML value.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    lines += ["", "[versions]", *(f"{key} = {json.dumps(v)}" for key, v in versions.items())]
    return "\n".join(lines) + "\n"
