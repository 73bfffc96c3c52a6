"""Attentive aggregation of clients (FedAtt).

    w^l ← w^l − ε Σ_k α_k^l (w^l − w_k^l),    α^l = softmax_k ‖w^l − w_k^l‖₂

for each array l, so that clients that moved further from the global model count more. Ji, Pan,
Long, Li, Jiang and Huang, "Learning private neural language modeling with attentive aggregation",
2019, arXiv 1812.07108, equations 4 to 7.

Use it where clients differ and those that learned most should lead. It weighs clients and is
independent of which parameters are shared; compare `AttentionOnly`, which selects parameters. It is
not robust: a malicious client that moves far gets the largest weight.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from strategies.common.arrays import as_dtype
from strategies.common.whole_round import WholeRound

Floats = npt.NDArray[np.float64]


class FedAtt(WholeRound):
    """Moves the global arrays towards the clients' arrays, weighted by distance.

    Args:
        step: Step size ε > 0; 1 is a weighted mean of the clients.
        **fedavg: Keywords of Flower's `FedAvg`.
    """

    def __init__(self, step: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.step = step

    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Move each array separately, with its own weights of the clients."""
        return ArrayRecord(
            {
                name: as_dtype(
                    attend(array.numpy(), [client[name].numpy() for client in clients], self.step),
                    array.dtype,
                )
                for name, array in start.items()
            }
        )


def attend(server: npt.NDArray[Any], clients: Sequence[npt.NDArray[Any]], step: float) -> Floats:
    """Return `server` moved towards the distance-weighted mean of `clients`, as float64.

    Args:
        server: The global array.
        clients: The array of each client, all of the shape of `server`; at least one.
        step: Step size ε > 0.
    """
    updates = np.stack(clients).astype(np.float64) - server
    distances = np.sqrt(np.square(updates.reshape(len(clients), -1)).sum(axis=1))
    weights = np.exp(distances - distances.max())
    moved: Floats = server + step * np.tensordot(weights / weights.sum(), updates, axes=1)
    return moved
