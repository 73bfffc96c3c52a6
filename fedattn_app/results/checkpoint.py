"""The files under ``checkpoint/`` of a run's folder: what a resumed run starts from.

They hold the parameters that training may change and the arrays that the rule keeps; where the run
has a privacy budget also what its clients have spent, and the state of the server's accountant.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays, write_arrays, write_atomically
from fedattn_app.types import NDArray, Row

CHECKPOINT = Path("checkpoint", "model.safetensors")
BEST = Path("checkpoint", "best.safetensors")
ACCOUNTANT = Path("checkpoint", "accountant.json")
BUDGETS = Path("checkpoint", "spending.json")
RULE_PREFIX = "rule/"  # before the names of the arrays that the rule keeps

T = TypeVar("T")


@dataclass(frozen=True)
class BestModel:
    """The changeable parameters after the round with the best score; round -1 without any."""

    server_round: int = -1
    arrays: Mapping[str, NDArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """What a run has after one of its rounds.

    Attributes:
        server_round: the round.
        arrays: the parameters that training may change, by name.
        rule_state: the arrays that the rule keeps from round to round.
        num_partitions: the number of clients that the data are split over; 0: they are not split.
        frozen_fingerprint: the SHA-256 (hex) of the frozen parameters; empty without any.
    """

    server_round: int
    arrays: Mapping[str, NDArray]
    rule_state: Mapping[str, NDArray]
    num_partitions: int
    frozen_fingerprint: str

    def write(self, run: Path) -> None:
        """Replace the checkpoint in the folder `run`; raises `OSError`."""
        about = {
            "round": str(self.server_round),
            "num-partitions": str(self.num_partitions),
            "frozen-fingerprint": self.frozen_fingerprint,
        }
        state = {f"{RULE_PREFIX}{name}": array for name, array in self.rule_state.items()}
        write_arrays(run / CHECKPOINT, {**self.arrays, **state}, about)

    @classmethod
    def read(cls, run: Path) -> "Checkpoint":
        """Read the checkpoint in the folder `run`; raises `UserError` where there is none."""
        arrays, about = read_arrays(run / CHECKPOINT)
        if not about.get("round", "").isdecimal():
            raise UserError(
                f"{run / CHECKPOINT}: is not the checkpoint of a run (it names no round)"
            )
        return cls(
            int(about["round"]),
            {k: v for k, v in arrays.items() if not k.startswith(RULE_PREFIX)},
            {
                k.removeprefix(RULE_PREFIX): v
                for k, v in arrays.items()
                if k.startswith(RULE_PREFIX)
            },
            int(about.get("num-partitions", 0)),
            about.get("frozen-fingerprint", ""),
        )


def write_best(run: Path, best: BestModel) -> None:
    """Replace the best model in the folder `run`; raises `OSError`."""
    write_arrays(run / BEST, best.arrays, {"round": str(best.server_round)})


def read_best(run: Path, checkpoint: Checkpoint) -> BestModel:
    """Read the best model of a run, up to the round of its `checkpoint`.

    A run that was stopped between writing the two files may have a best model of a later round; the
    best of the rounds before is then that of the checkpoint.
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
    """Read the state of the server's accountant in a run.

    Raises `UserError` where it cannot be read, or counts fewer than `num_rounds` rounds.
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
    """Return what `convert` makes of the clients' budgets, rounds included that were lost.

    Raises `UserError` where they cannot be read.
    """
    return _read_spending(run / BUDGETS, convert)


def _read_spending(path: Path, convert: Callable[[Row], T]) -> T:
    try:
        return convert(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: does not say what the run has spent ({error})") from None
