"""Attentive aggregation of clients.

    w^l ← w^l − ε Σ_k α_k^l (w^l − w_k^l),    α^l = softmax_k ‖w^l − w_k^l‖₂

for each array l: who has moved further from the global model counts more. Ji, Pan, Long, Li, Jiang
and Huang, "Learning private neural language modeling with attentive aggregation", 2019, arXiv
1812.07108, equations 4 to 7.

Use it where clients differ and the ones that learned most should lead; it weighs clients, whatever
part of the model travels, and one that sends nonsense counts most of all.
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
    """Steps by `step` (ε > 0) towards the clients; the other keywords are those of `FedAvg`."""

    def __init__(self, step: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.step = step

    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Move each array towards the clients'."""
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
    """Return `server` moved by `step` towards the mean of `clients`, weighted by distance.

    All arrays have one shape; the sums are in float64.
    """
    updates = np.stack(clients).astype(np.float64) - server
    distances = np.sqrt(np.square(updates.reshape(len(clients), -1)).sum(axis=1))
    weights = np.exp(distances - distances.max())
    moved: Floats = server + step * np.tensordot(weights / weights.sum(), updates, axes=1)
    return moved
