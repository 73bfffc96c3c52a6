"""The files under ``checkpoint/`` of a run's folder: what a resumed run starts from.

They hold the parameters that training may change and the arrays that the rule keeps. In a run with
a privacy budget they also hold what its clients have spent and the state of the server's
accountant.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays, write_arrays, write_atomically
from fedattn_app.run_identity import RunIdentity
from fedattn_app.types import NDArray, Row

CHECKPOINT = Path("checkpoint", "model.safetensors")
BEST = Path("checkpoint", "best.safetensors")
ACCOUNTANT = Path("checkpoint", "accountant.json")
BUDGETS = Path("checkpoint", "spending.json")
MAX_DIGITS = 18  # of a number in the metadata
RULE_PREFIX = "rule/"  # before the names of the arrays that the rule keeps

T = TypeVar("T")


@dataclass(frozen=True)
class BestModel:
    """The parameters that training may change, after the round with the best score.

    `server_round` is -1 if no round has a score yet.
    """

    server_round: int = -1
    arrays: Mapping[str, NDArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after one of its rounds.

    Attributes:
        server_round: the round.
        arrays: the parameters that training may change, by name.
        rule_state: the arrays that the rule keeps from round to round.
        num_partitions: the number of clients that the data are split over; 0: they are not split.
        identity: what must be the same in every round.
    """

    server_round: int
    arrays: Mapping[str, NDArray]
    rule_state: Mapping[str, NDArray]
    num_partitions: int
    identity: RunIdentity

    def write(self, run: Path) -> None:
        """Replace the checkpoint in the folder `run`; raises `OSError`."""
        about = {
            "round": str(self.server_round),
            "num-partitions": str(self.num_partitions),
            **self.identity.to_metadata(),
        }
        state = {f"{RULE_PREFIX}{name}": array for name, array in self.rule_state.items()}
        write_arrays(run / CHECKPOINT, {**self.arrays, **state}, about)

    @classmethod
    def read(cls, run: Path) -> "Checkpoint":
        """Read the checkpoint in the folder `run`; raises `UserError` if there is none."""
        arrays, about = read_arrays(run / CHECKPOINT)
        server_round = _number(run, about, "round")
        return cls(
            server_round,
            {k: v for k, v in arrays.items() if not k.startswith(RULE_PREFIX)},
            {
                k.removeprefix(RULE_PREFIX): v
                for k, v in arrays.items()
                if k.startswith(RULE_PREFIX)
            },
            _number(run, about, "num-partitions"),
            _identity_of(run, about),
        )


def _number(run: Path, about: Mapping[str, str], name: str) -> int:
    text = about.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise UserError(f"{run / CHECKPOINT}: is not the checkpoint of a run (it names no {name})")
    return int(text)


def _identity_of(run: Path, about: Mapping[str, str]) -> RunIdentity:
    try:
        return RunIdentity.from_metadata(about)
    except ValueError as error:
        raise UserError(f"{run / CHECKPOINT}: its labels cannot be read ({error})") from None


def write_best(run: Path, best: BestModel) -> None:
    """Replace the best model in the folder `run`; raises `OSError`."""
    write_arrays(run / BEST, best.arrays, {"round": str(best.server_round)})


def read_best(run: Path, checkpoint: Checkpoint) -> BestModel:
    """Return the best model in the folder `run`, up to the round of `checkpoint`.

    If the file holds the model of a later round, return the model of the checkpoint instead,
    because the resumed run repeats the later rounds.
    """
    if not (run / BEST).exists():
        return BestModel()
    arrays, about = read_arrays(run / BEST)
    server_round = int(about.get("round", "-1"))
    if server_round > checkpoint.server_round:
        return BestModel(checkpoint.server_round, checkpoint.arrays)
    return BestModel(server_round, arrays)


def write_spending(run: Path, file: Path, state: Mapping[str, object]) -> None:
    """Replace the file `ACCOUNTANT` or `BUDGETS` in the folder `run`; raises `OSError`."""
    write_atomically(run / file, json.dumps(state).encode())


def read_accountant(run: Path, num_rounds: int) -> Row:
    """Return the state of the server's accountant in the folder `run`; empty before any round.

    Raises `UserError` if it cannot be read, or counts fewer than `num_rounds` rounds.
    """
    path = run / ACCOUNTANT
    if not num_rounds and not path.exists():
        return {}

    def counted(state: Row) -> tuple[Row, int]:
        return state, sum(release["count"] for release in state.get("compositions", []))

    state, num_counted = _read_spending(path, counted)
    if num_counted < num_rounds:
        raise UserError(f"{path}: counts {num_counted} rounds and the checkpoint {num_rounds}")
    return state


def read_budgets(run: Path, convert: Callable[[Row], T]) -> T:
    """Return the result of `convert` for what the clients have spent, read from the folder `run`.

    It covers all messages sent, also those of rounds after the checkpoint. Raises `UserError` if it
    cannot be read.
    """
    return _read_spending(run / BUDGETS, convert)


def _read_spending(path: Path, convert: Callable[[Row], T]) -> T:
    try:
        return convert(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: does not say what the run has spent ({error})") from None
