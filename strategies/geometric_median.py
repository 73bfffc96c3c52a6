"""The geometric median of the clients.

    w ← argmin_v Σ_k ‖v − w_k‖₂

by Weiszfeld's algorithm, smoothed: v ← Σ_k β_k w_k / Σ_k β_k with β_k = 1 / max(ν, ‖v − w_k‖).
Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", 2019, arXiv 1912.13445,
algorithm 2. Clients count alike: how many examples one has is its own word.

Use it where fewer than half of the clients may send anything whatever; it needs no guess of how
many. Clients that are right but far from the others count less too.
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.arrays import RunningMean
from strategies.gram import Floats, distances_from, gram
from strategies.replies import arrays_of, contents_of

SMOOTHING = 1e-6  # ν, as in the paper
MOST_STEPS = 1000
TOLERANCE = 1e-9  # of the weights, which sum to 1


class GeometricMedian(FedAvg):
    """Takes Flower's `FedAvg` keywords. It holds the replies of a round at once."""

    _global = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep what the clients start from."""
        self._global = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the median of the replies, or (None, None) where none came."""
        contents = contents_of(replies, self.weighted_by_key)
        if not contents:
            return None, None
        records = [arrays_of(content) for content in contents]
        median = RunningMean()
        for weight, record in zip(weiszfeld(gram(self._global, records)), records, strict=True):
            median.add(float(weight), record)
        return median.arrays(), self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def weiszfeld(products: Floats) -> Floats:
    """Return the weights, float64 (n,), with which n points make their geometric median.

    `products` are the points' inner products, float64 (n, n).
    """
    weights: Floats = np.full(len(products), 1 / len(products))
    for _ in range(MOST_STEPS):
        nearness = 1 / np.maximum(SMOOTHING, distances_from(weights, products))
        before, weights = weights, nearness / nearness.sum()
        if np.abs(weights - before).max() < TOLERANCE:
            break
    return weights
