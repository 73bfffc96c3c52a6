"""The state of a run after the rounds so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord

from fedattn_app.metrics import Scores
from fedattn_app.server.budgets import Budgets
from fedattn_app.types import NDArray, Row


@dataclass
class Outcome:
    """The global model, its scores and the rows recorded, after the rounds so far.

    Attributes:
        arrays: every parameter of the global model.
        central: the scores on the server's test set; None without a test set.
        federated: the scores on what the clients hold out; None if no client evaluated.
        client_accuracies: the accuracy of each client that evaluated, 0 to 1.
        history: the rows of ``history.jsonl``.
        last_round: the number of the last round, 0 before the first. In a resumed run it is that
            of the checkpoint, whose row in `history` may be lost.
        budgets: what the clients have spent.
    """

    arrays: ArrayRecord
    central: Scores | None = None
    federated: Scores | None = None
    client_accuracies: Sequence[float] = ()
    history: list[Row] = field(default_factory=list)
    last_round: int = 0
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def scores(self) -> Scores | None:
        """The central scores if there are any, else the federated ones."""
        return self.central or self.federated


def array_record(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Return `arrays` as a Flower `ArrayRecord`."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
