"""Federated gradient descent.

    g ← Σ_k c_k ∇F_k(w) / Σ_k c_k,    v ← βv + g,    w ← w − ηv

with ∇F_k the gradient of client k's mean loss over its examples, or over a batch of them. McMahan,
Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep networks from
decentralized data", 2017, arXiv 1602.05629, section 2.

Where every client answers with the gradient over all its examples, and weighs by their number, it
is gradient descent on all of them in one place. Use it as the yardstick for rules that let clients
take steps of their own, which need far fewer rounds.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from strategies.common.arrays import as_dtype
from strategies.weighted_fedavg import WeightedFedAvg


class FedSGD(WeightedFedAvg):
    """Asks for gradients and steps by `server_learning_rate` (η) and `server_momentum` (β).

    Clients find ``local-task`` = "gradient" in their config, and ``gradient-batch``: over how many
    of its examples a client takes the gradient, 0 for all. The keywords beside are those of
    `WeightedFedAvg`.
    """

    replies_are_gradients = True

    def __init__(
        self,
        server_learning_rate: float = 0.1,
        server_momentum: float = 0.0,
        gradient_batch: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.gradient_batch = gradient_batch
        self.velocity: dict[str, npt.NDArray[Any]] = {}
        self._global = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for a gradient at `arrays`."""
        self._global = arrays
        config["local-task"] = "gradient"
        config["gradient-batch"] = self.gradient_batch
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step along the mean gradient, or return (None, None) where none came."""
        gradient, metrics = super().aggregate_train(server_round, replies)
        if gradient is None:
            return None, None
        stepped = {}
        for name, array in self._global.items():
            velocity = gradient[name].numpy()
            if self.server_momentum and name in self.velocity:
                velocity = velocity + self.server_momentum * self.velocity[name]
            self.velocity[name] = velocity
            moved = array.numpy().astype(np.float64) - self.server_learning_rate * velocity
            stepped[name] = as_dtype(moved, array.dtype)
        return ArrayRecord(stepped), metrics
