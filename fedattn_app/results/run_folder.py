"""A run's folder: written as the run goes, read back by scripts and notebooks.

`RunFolder` writes ``config.toml``, ``history.jsonl``, ``clients.jsonl``, ``summary.json``,
``model.safetensors`` and ``checkpoint/``; `RunResult` reads them.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedattn_app.config import Config, ConfigValue, parse_run_config
from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays, user_path, write_arrays, write_atomically
from fedattn_app.server.budgets import Spending
from fedattn_app.types import NDArray, Row

CHECKPOINT = Path("checkpoint", "model.safetensors")
BEST = Path("checkpoint", "best.safetensors")
MEMORY = "rule/"  # before the names of what the rule keeps, in a checkpoint
ACCOUNTANT = Path("checkpoint", "accountant.json")
SPENDING = Path("checkpoint", "spending.json")

# A run carried on may change these; any other change would make it another run.
CHANGEABLE = {"num-rounds", "fraction-evaluate", "min-clients", "round-timeout", "patience"}
CHANGEABLE |= {"output-dir", "resume-from", "target-epsilon"}


class RunFolder:
    """Writes one run's folder.

    `path` is absolute. In a run that carries another on, `arrays` are the shared parameters after
    round `start_round`, `memory` what the rule kept, `best` the shared parameters after the round
    with the best score and that round, `earlier` that run's rows, one per round from 0,
    `num_partitions` over how many clients its data were split, `spending` what its clients have
    spent, and `accountant` the state of the server's accountant. `frozen` is the fingerprint of the
    frozen parameters. Raises `UserError` for a folder that cannot be written, that already holds
    another run, or that cannot be carried on with this configuration or these frozen parameters.
    """

    def __init__(self, config: Config, frozen: str = "") -> None:
        self.path = _choose_path(config)
        self.frozen = frozen
        self.arrays: dict[str, NDArray] = {}
        self.memory: dict[str, NDArray] = {}
        self.best: tuple[int, dict[str, NDArray]] = -1, {}
        self.start_round = 0
        self.num_partitions = 0
        self.earlier: list[Row] = []
        self.spending = Spending()
        self.accountant: Row = {}
        clients: list[Row] = []
        if config.output.resume_from:
            before = _resumable(config)
            arrays, about = read_checkpoint(before.path)
            self.arrays = {k: v for k, v in arrays.items() if not k.startswith(MEMORY)}
            self.memory = {
                k.removeprefix(MEMORY): v for k, v in arrays.items() if k.startswith(MEMORY)
            }
            if about.get("frozen-fingerprint", "") != frozen:
                raise UserError(
                    f"resume-from = {before.path}: its frozen parameters are not those of the "
                    f"model = {config.model.model!r} that is here now"
                )
            self.num_partitions = int(about.get("num-partitions", 0))
            self.start_round = last = int(about["round"])
            if last >= config.federation.num_rounds:
                raise UserError(
                    f"num-rounds = {config.federation.num_rounds}: the run to carry on has "
                    f"{last} rounds already"
                )
            self.earlier = [row for row in before.history if row["round"] <= last]
            self.best = _read_best(before.path, last, self.arrays)
            clients = [row for row in before.clients if row["round"] <= last]
            if config.privacy.privacy == "client-dp":
                self.accountant = _read_accountant(before.path, last)
            if config.privacy.privacy != "none":
                self.spending = _read_spending(before.path)
        try:
            (self.path / "checkpoint").mkdir(parents=True, exist_ok=True)
            if self.best[1]:
                self.keep_best(*self.best)
            if self.earlier and not (self.path / CHECKPOINT).exists():
                self.checkpoint(self.start_round, self.arrays, self.num_partitions, self.memory)
            if config.privacy.privacy != "none":
                self.keep_spending(self.spending)
            self._write_text("config.toml", _to_toml(config.to_run_config(), _versions()))
            for name, rows in (("history.jsonl", self.earlier), ("clients.jsonl", clients)):
                self._write_text(name, "".join(map(_to_line, rows)))
        except OSError as error:
            raise UserError(
                f"output-dir = {self.path}: cannot be written ({error.strerror})"
            ) from None

    def begin(self) -> None:
        """Remove the final files of a run that is carried on, before they are out of date."""
        for name in ("summary.json", "model.safetensors", "best.safetensors"):
            (self.path / name).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether it has its final files."""
        return (self.path / "summary.json").exists()

    def add_round(self, row: Row, clients: Iterable[Row]) -> None:
        """Append one round to ``history.jsonl`` and its clients to ``clients.jsonl``."""
        for name, rows in (("clients.jsonl", clients), ("history.jsonl", [row])):
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.writelines(map(_to_line, rows))
                file.flush()
                os.fsync(file.fileno())

    def account(self, accountant: Mapping[str, object]) -> None:
        """Keep the state of the server's privacy accountant, before anyone sees what it counts."""
        self._write_text(str(ACCOUNTANT), json.dumps(accountant))

    def keep_spending(self, spending: Spending) -> None:
        """Keep what the clients have spent, before they are asked for what may cost them more."""
        self._write_text(str(SPENDING), json.dumps(spending.row()))

    def checkpoint(
        self,
        server_round: int,
        arrays: Mapping[str, NDArray],
        num_partitions: int = 0,
        memory: Mapping[str, NDArray] | None = None,
    ) -> None:
        """Replace the checkpoint by the shared parameters after `server_round`.

        `num_partitions` says over how many clients the data are split; 0: they are not. `memory`
        is what the rule keeps.
        """
        about = {
            "round": str(server_round),
            "num-partitions": str(num_partitions),
            "frozen-fingerprint": self.frozen,
        }
        kept = {f"{MEMORY}{name}": array for name, array in (memory or {}).items()}
        write_arrays(self.path / CHECKPOINT, {**arrays, **kept}, about)

    def keep_best(self, server_round: int, arrays: Mapping[str, NDArray]) -> None:
        """Keep the shared parameters after `server_round`, the one with the best score so far."""
        self.best = server_round, dict(arrays)
        write_arrays(self.path / BEST, arrays, {"round": str(server_round)})

    def finish(self, summary: Row, arrays: Mapping[str, NDArray], about: Mapping[str, str]) -> None:
        """Write ``model.safetensors`` with the metadata `about`, then ``summary.json``.

        Where some round had the best score, its model is in ``best.safetensors``.
        """
        write_arrays(self.path / "model.safetensors", arrays, about)
        server_round, best = self.best
        if best:
            its = {**about, "round": str(server_round)}
            write_arrays(self.path / "best.safetensors", {**arrays, **best}, its)
        self._write_text("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())


@dataclass(frozen=True)
class RunResult:
    """A run's folder, read on demand."""

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
        """One row per round, from round 0."""
        return self._rows("history.jsonl")

    @cached_property
    def clients(self) -> list[Row]:
        """One row per client and round."""
        return self._rows("clients.jsonl")

    @cached_property
    def arrays(self) -> dict[str, NDArray]:
        """The final global model by parameter name."""
        return read_arrays(self.path / "model.safetensors")[0]

    def _rows(self, name: str) -> list[Row]:
        # The last line of a run that was killed may be a part of one.
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


def _choose_path(config: Config) -> Path:
    output = config.output
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.aggregation.strategy}"
    default = output.resume_from or f"runs/{name}-{os.getpid()}"
    path = user_path("output-dir", output.output_dir or default)
    resumed = output.resume_from and path == user_path("resume-from", output.resume_from)
    history = path / "history.jsonl"
    if history.exists() and history.stat().st_size and not resumed:
        raise UserError(
            f"output-dir = {path}: holds a run already; name another folder, "
            "or carry that run on with resume-from"
        )
    return path


def _resumable(config: Config) -> RunResult:
    path = user_path("resume-from", config.output.resume_from)
    before = Config.from_run_config(settings_of(path)).to_run_config()
    changeable = set(CHANGEABLE)
    if config.training.learning_rate_schedule != "constant":
        changeable.discard("num-rounds")  # on which the rate of every round depends
    for key, value in config.to_run_config().items():
        if key not in changeable and before[key] != value:
            raise UserError(
                f"{key} = {value!r}: the run in {path} has {before[key]!r}; "
                "a run carries on with the settings it began with"
            )
    return RunResult(path)


def settings_of(run: Path) -> dict[str, ConfigValue]:
    """Return the run-config of an earlier run that has a checkpoint to carry on from."""
    if not (run / CHECKPOINT).exists():
        raise UserError(f"resume-from = {run}: holds no checkpoint")
    return parse_run_config([str(run / "config.toml")])


def read_checkpoint(run: Path) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Read the arrays of a run's checkpoint and what it says of itself."""
    arrays, about = read_arrays(run / CHECKPOINT)
    if not about.get("round", "").isdecimal():
        raise UserError(f"{run / CHECKPOINT}: is not the checkpoint of a run (it names no round)")
    return arrays, about


def _read_best(run: Path, last: int, newest: dict[str, NDArray]) -> tuple[int, dict[str, NDArray]]:
    """Read the arrays of the round with the best score, and which it was, up to round `last`.

    A run that was stopped between two files may have no arrays of a later best than it kept.
    """
    if not (run / BEST).exists():
        return -1, {}
    arrays, about = read_arrays(run / BEST)
    server_round = int(about.get("round", "-1"))
    return (last, newest) if server_round > last else (server_round, arrays)


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def _read_accountant(run: Path, rounds: int) -> Row:
    """Read what the server's noise has spent in so many rounds of a run."""
    path = run / ACCOUNTANT
    try:
        state: Row = json.loads(path.read_text()) if rounds or path.exists() else {}
        counted = sum(release["count"] for release in state.get("compositions", []))
    except _UNREADABLE as error:
        raise UserError(f"{path}: does not say what the run has spent ({error})") from None
    if counted < rounds:
        raise UserError(f"{path}: counts {counted} rounds and the checkpoint {rounds}")
    return state


def _read_spending(run: Path) -> Spending:
    """Read what the clients of a run have spent; in rounds that were lost, too."""
    path = run / SPENDING
    try:
        return Spending.of(json.loads(path.read_text()))
    except _UNREADABLE as error:
        raise UserError(f"{path}: does not say what the run has spent ({error})") from None


def _to_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _to_toml(settings: Mapping[str, ConfigValue], versions: Mapping[str, str]) -> str:
    # A JSON scalar is a TOML value.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    lines += ["", "[versions]", *(f"{key} = {json.dumps(v)}" for key, v in versions.items())]
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("flwr", "torch", "opacus", "transformers", "peft"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    commit = _git("rev-parse", "HEAD")
    # An installed package may lie inside another project's repository.
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return {**versions, "commit": commit} if commit and ours else versions


def _git(*command: str) -> str:
    """Return what git says about this file's folder, or nothing."""
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
