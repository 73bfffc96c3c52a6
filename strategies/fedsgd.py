"""Federated gradient descent.

    g ← Σ_k c_k ∇F_k(w) / Σ_k c_k,    v ← βv + g,    w ← w − ηv

where ∇F_k is the gradient of the mean loss of client k over all its examples, or over a batch of
them. McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep
networks from decentralized data", 2017, arXiv 1602.05629, section 2.

If every client returns the gradient over all its examples, weighted by their number, this is
gradient descent on the examples of all clients together. Use it as a baseline for the rules whose
clients take several local steps, which need far fewer rounds.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from strategies.common.arrays import as_dtype
from strategies.common.state import Arrays, with_prefix, without_prefix
from strategies.weighted_fedavg import WeightedFedAvg


class FedSGD(WeightedFedAvg):
    """Asks clients for gradients and takes one step along their mean.

    Clients get ``local-task`` = "gradient" and ``gradient-batch`` in the config of the message. The
    arrays of a reply are a gradient, not updated parameters.

    Args:
        server_learning_rate: Step size η ≥ 0.
        server_momentum: Momentum β, 0 ≤ β < 1.
        gradient_batch: Number of examples from which a client computes its gradient; 0: all of
            them.
        **fedavg: Keywords of `WeightedFedAvg`.
    """

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
        """Ask the sampled clients for a gradient at `arrays`."""
        self._global = arrays
        config["local-task"] = "gradient"
        config["gradient-batch"] = self.gradient_batch
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step along the mean gradient; return (None, None) if there is none."""
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

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the velocity v of each parameter."""
        return with_prefix("velocity", self.velocity)

    def load_state(self, arrays: Arrays) -> None:
        """Restore the velocity of each parameter."""
        self.velocity = without_prefix("velocity", arrays)
