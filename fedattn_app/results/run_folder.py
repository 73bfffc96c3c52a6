"""Write a run's folder during the run: each round is on disk before the next one begins."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedattn_app.config import Config, ConfigValue
from fedattn_app.errors import UserError
from fedattn_app.files import user_path, write_arrays, write_atomically
from fedattn_app.results.checkpoint import (
    ACCOUNTANT,
    BUDGETS,
    CHECKPOINT,
    BestModel,
    Checkpoint,
    write_best,
    write_spending,
)
from fedattn_app.results.resume import EarlierRun
from fedattn_app.run_identity import RunIdentity
from fedattn_app.types import NDArray, Row

FINAL_FILES = ("summary.json", "model.safetensors", "best.safetensors")
RECORDED_VERSIONS = ("flwr", "torch", "opacus", "transformers", "peft")


class RunFolder:
    """The folder of one run.

    The constructor writes ``config.toml`` and the rounds of the run that is resumed. It raises
    `UserError` for a folder that cannot be written or already holds another run.

    Args:
        config: the settings of the run.
        identity: what must be the same in every round; the checkpoint records it.
        earlier: the run that this one resumes.

    Attributes:
        path: the folder, absolute.
        best: the model of the round with the best score so far.
    """

    def __init__(
        self,
        config: Config,
        identity: RunIdentity | None = None,
        earlier: EarlierRun | None = None,
    ) -> None:
        earlier = earlier or EarlierRun()
        self.path = _new_path(config)
        self.identity = identity or RunIdentity()
        self.best = earlier.best
        try:
            (self.path / "checkpoint").mkdir(parents=True, exist_ok=True)
            if earlier.best.arrays:
                write_best(self.path, earlier.best)
            if earlier.history and not (self.path / CHECKPOINT).exists():
                self.write_checkpoint(
                    earlier.last_round, earlier.arrays, earlier.num_partitions, earlier.rule_state
                )
            self._write_text("config.toml", _to_toml(config.to_run_config(), _versions()))
            self._write_text("history.jsonl", "".join(map(_to_line, earlier.history)))
            self._write_text("clients.jsonl", "".join(map(_to_line, earlier.clients)))
        except OSError as error:
            raise UserError(
                f"output-dir = {self.path}: cannot be written ({error.strerror})"
            ) from None

    @property
    def finished(self) -> bool:
        """Whether the folder has its final files."""
        return (self.path / "summary.json").exists()

    def remove_final_files(self) -> None:
        """Delete the summary and the final models, which a resumed run makes out of date."""
        for name in FINAL_FILES:
            (self.path / name).unlink(missing_ok=True)

    def add_round(self, row: Row, clients: Iterable[Row]) -> None:
        """Append one round to ``history.jsonl`` and its clients to ``clients.jsonl``."""
        for name, rows in (("clients.jsonl", clients), ("history.jsonl", [row])):
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.writelines(map(_to_line, rows))
                file.flush()
                os.fsync(file.fileno())

    def write_accountant(self, state: Mapping[str, object]) -> None:
        """Write the state of the server's accountant.

        Call this before anyone sees the noisy model.
        """
        write_spending(self.path, ACCOUNTANT, state)

    def write_budgets(self, budgets: Mapping[str, object]) -> None:
        """Write what the clients have spent.

        Call this before sending a message that may cost more.
        """
        write_spending(self.path, BUDGETS, budgets)

    def write_checkpoint(
        self,
        server_round: int,
        arrays: Mapping[str, NDArray],
        num_partitions: int = 0,
        rule_state: Mapping[str, NDArray] | None = None,
    ) -> None:
        """Replace the checkpoint by the state after `server_round`; see `Checkpoint`."""
        Checkpoint(server_round, arrays, rule_state or {}, num_partitions, self.identity).write(
            self.path
        )

    def write_best(self, server_round: int, arrays: Mapping[str, NDArray]) -> None:
        """Replace the best model by `arrays`, the parameters after the round `server_round`."""
        self.best = BestModel(server_round, dict(arrays))
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
        write_arrays(self.path / "model.safetensors", arrays, metadata)
        if self.best.arrays:
            with_round = {**metadata, "round": str(self.best.server_round)}
            best = {**arrays, **self.best.arrays}
            write_arrays(self.path / "best.safetensors", best, with_round)
        self._write_text("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())


def _new_path(config: Config) -> Path:
    output = config.output
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.aggregation.strategy}"
    default = output.resume_from or f"runs/{name}-{os.getpid()}"
    path = user_path("output-dir", output.output_dir or default)
    resumed = output.resume_from and path == user_path("resume-from", output.resume_from)
    history = path / "history.jsonl"
    if history.exists() and history.stat().st_size and not resumed:
        raise UserError(
            f"output-dir = {path}: already holds a run; name another folder, or resume that run "
            "with resume-from"
        )
    return path


def _to_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _to_toml(settings: Mapping[str, ConfigValue], versions: Mapping[str, str]) -> str:
    # A JSON scalar is a TOML value.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    lines += ["", "[versions]", *(f"{key} = {json.dumps(v)}" for key, v in versions.items())]
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    commit = _git("rev-parse", "HEAD")
    # An installed package may lie inside another project's repository.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return {**versions, "commit": commit} if commit and tracked else versions


def _git(*command: str) -> str:
    """Return what git prints about this file's folder; an empty text if it fails."""
    try:
        ran = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
