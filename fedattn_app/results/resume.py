"""Read the run that a new one resumes, and check that it can be resumed with these settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedattn_app.config import Config, ConfigValue, parse_run_config
from fedattn_app.errors import UserError
from fedattn_app.files import user_path
from fedattn_app.label_text import join_labels
from fedattn_app.results.checkpoint import CHECKPOINT, BestModel, Checkpoint, read_best
from fedattn_app.results.run_result import RunResult
from fedattn_app.results.run_state import is_complete
from fedattn_app.run_identity import RunIdentity
from fedattn_app.types import NDArray, Row

# A resumed run may change these settings; any other change would make it another run. Whether
# another data-path has the same rows is checked by their fingerprints.
CHANGEABLE_KEYS = {
    *("num-rounds", "fraction-evaluate", "min-clients", "min-replies", "round-timeout"),
    *("data-path", "output-dir", "patience", "resume-from", "target-epsilon"),
}


@dataclass(frozen=True)
class EarlierRun:
    """What a resumed run takes from the run before it. A new run has the defaults.

    Attributes:
        path: the folder of the earlier run; None for a new run.
        last_round: its last round with a checkpoint; 0 for a new run.
        arrays: the parameters that training may change, after that round.
        rule_state: the arrays that the rule had kept.
        best: the model of its best round.
        num_partitions: the number of clients that its data were split over; 0: they were not.
        history: its rows of ``history.jsonl`` up to `last_round`.
        clients: its rows of ``clients.jsonl`` up to `last_round`.
    """

    path: Path | None = None
    last_round: int = 0
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    rule_state: Mapping[str, NDArray] = field(default_factory=dict)
    best: BestModel = field(default_factory=BestModel)
    num_partitions: int = 0
    history: list[Row] = field(default_factory=list)
    clients: list[Row] = field(default_factory=list)


def earlier_run(config: Config, identity: RunIdentity) -> EarlierRun:
    """Return the run that the key ``resume-from`` names; the default `EarlierRun` without the key.

    Raises `UserError` for a run that cannot be read, that has other settings or another identity
    than `identity`, or that already has more than `num-rounds` rounds. A run with exactly that
    number is resumed only if it is not complete.
    """
    if not config.output.resume_from:
        return EarlierRun()
    path = user_path("resume-from", config.output.resume_from)
    _check_settings(config, path)
    checkpoint, result = Checkpoint.read(path), RunResult(path)
    _check_identity(config, path, checkpoint.identity, identity)
    last = checkpoint.server_round
    num_rounds = config.federation.num_rounds
    if last > num_rounds or (last == num_rounds and is_complete(path)):
        raise UserError(f"num-rounds = {num_rounds}: the run to resume already has {last} rounds")
    return EarlierRun(
        path,
        last,
        checkpoint.arrays,
        checkpoint.rule_state,
        read_best(path, checkpoint),
        checkpoint.num_partitions,
        [row for row in result.history if row["round"] <= last],
        [row for row in result.clients if row["round"] <= last],
    )


def settings_of(run: Path) -> dict[str, ConfigValue]:
    """Return the run-config of the run in the folder `run`, by key.

    Raises `UserError` if the folder holds no checkpoint.
    """
    if not (run / CHECKPOINT).exists():
        raise UserError(f"resume-from = {run}: holds no checkpoint")
    return parse_run_config([str(run / "config.toml")])


def _check_identity(config: Config, path: Path, before: RunIdentity, now: RunIdentity) -> None:
    """Raise `UserError` if the run in the folder `path` began with something else than `now`."""
    model = f"model = {config.model.model!r}"
    reasons = {
        "labels": f"its labels are {join_labels(before.labels) or 'not recorded'}, and those of "
        f"the data are now {join_labels(now.labels)}",
        "tokenizer": f"its tokenizer is not that of the {model} that is here now",
        "training_data": "the training data have changed since it began",
        "test_data": "the test data have changed since it began",
        "frozen": f"its frozen parameters are not those of the {model} that is here now",
    }
    for part, reason in reasons.items():
        if getattr(before, part) != getattr(now, part):
            raise UserError(f"resume-from = {path}: {reason}")


def _check_settings(config: Config, path: Path) -> None:
    before = Config.from_run_config(settings_of(path)).to_run_config()
    changeable = set(CHANGEABLE_KEYS)
    if config.training.learning_rate_schedule != "constant":
        changeable.discard("num-rounds")  # the learning rate of every round depends on it
    for key, value in config.to_run_config().items():
        if key not in changeable and before[key] != value:
            raise UserError(
                f"{key} = {value!r}: the run in {path} has {before[key]!r}; a run is resumed with "
                "the settings it began with"
            )
