"""The geometric median of the clients.

    w ← argmin_v Σ_k ‖v − w_k‖₂

by Weiszfeld's algorithm, smoothed: v ← Σ_k β_k w_k / Σ_k β_k with β_k = 1 / max(ν, ‖v − w_k‖).
Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", 2019, arXiv 1912.13445,
algorithm 2. Clients count alike: how many examples one has is its own word.

Use it where fewer than half of the clients may send anything whatever; it needs no guess of how
many. Clients that are right but far from the others count less too.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord

from strategies.common.arrays import RunningMean
from strategies.common.gram import Floats, distances_from, gram
from strategies.common.whole_round import WholeRound

SMOOTHING = 1e-6  # ν, as in the paper
MOST_STEPS = 1000
TOLERANCE = 1e-9  # of each weight, in parts of it: one that is next to nothing may bear much


class GeometricMedian(WholeRound):
    """Takes Flower's `FedAvg` keywords."""

    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Return the point that is nearest to all clients."""
        median = RunningMean()
        for weight, client in zip(weiszfeld(gram(start, clients)), clients, strict=True):
            median.add(float(weight), client)
        return median.arrays()


def weiszfeld(products: Floats) -> Floats:
    """Return the weights, float64 (n,), with which n points make their geometric median.

    `products` are the points' inner products, float64 (n, n).
    """
    weights: Floats = np.full(len(products), 1 / len(products))
    for _ in range(MOST_STEPS):
        nearness = 1 / np.maximum(SMOOTHING, distances_from(weights, products))
        before, weights = weights, nearness / nearness.sum()
        if np.abs(weights / before - 1).max() < TOLERANCE:
            break
    return weights
