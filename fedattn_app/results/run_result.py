"""Read a run's folder from scripts and notebooks."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays
from fedattn_app.results.run_state import read_status
from fedattn_app.types import NDArray, Row


@dataclass(frozen=True)
class RunResult:
    """The results in a run's folder; each file is read when it is first used.

    Every attribute raises `UserError` if its file cannot be read.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def status(self) -> Row:
        """The present state of the run, with its `reason` or None, and its last finished `round`.

        The `state` is "running", "ended", "failed", "interrupted" or "died". A run has died if it
        was killed before it could say how it ended. That is known only on the machine of the run.
        """
        return read_status(self.path)

    @property
    def state(self) -> str:
        """The `state` in `status`."""
        return str(self.status["state"])

    @cached_property
    def summary(self) -> Row:
        """The content of ``summary.json``."""
        summary: Row = self._parse("summary.json", [self._read("summary.json")])[0]
        return summary

    @cached_property
    def history(self) -> list[Row]:
        """The rows of ``history.jsonl``, one per round, from round 0."""
        return self._rows("history.jsonl")

    @cached_property
    def clients(self) -> list[Row]:
        """The rows of ``clients.jsonl``, one per client and round."""
        return self._rows("clients.jsonl")

    @cached_property
    def arrays(self) -> dict[str, NDArray]:
        """The parameters of the final global model, by name."""
        return read_arrays(self.path / "model.safetensors")[0]

    def _rows(self, name: str) -> list[Row]:
        # In a run that was killed the last line may be incomplete.
        return self._parse(name, self._read(name).split(b"\n")[:-1])

    def _parse(self, name: str, texts: list[bytes]) -> list[Row]:
        try:
            return [json.loads(text) for text in texts]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name}: cannot be read ({error})") from None

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be read ({error.strerror})") from None
