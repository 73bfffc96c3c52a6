"""Read a run's folder from scripts and notebooks."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays
from fedattn_app.types import NDArray, Row


@dataclass(frozen=True)
class RunResult:
    """The results in a run's folder; each file is read when it is first used.

    Every attribute raises `UserError` if its file cannot be read.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @cached_property
    def summary(self) -> Row:
        """The content of ``summary.json``."""
        summary: Row = json.loads(self._read("summary.json"))
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
        lines = self._read(name).split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{self.path / name}: cannot be read ({error})") from None

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be read ({error.strerror})") from None
