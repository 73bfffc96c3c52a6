"""The geometric median of the clients.

    w ← argmin_v Σ_k ‖v − w_k‖₂

by Weiszfeld's algorithm with smoothing: v ← Σ_k β_k w_k / Σ_k β_k with β_k = 1 / max(ν, ‖v − w_k‖).
Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", 2019, arXiv 1912.13445,
algorithm 2. All clients weigh the same, since a malicious client can report any number of examples.

Use it where fewer than half of the clients may be malicious and their number is unknown. Honest
clients that are far from the others count less too.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord

from strategies.common.arrays import RunningMean
from strategies.common.gram import Floats, distances_from, gram
from strategies.common.whole_round import WholeRound

SMOOTHING = 1e-6  # ν, as in the paper
MAX_ITERATIONS = 1000
# Relative to each weight: a tiny weight on a very distant client still moves the median.
WEIGHT_TOLERANCE = 1e-9


class GeometricMedian(WholeRound):
    """The geometric median as a Flower strategy. Takes the keywords of Flower's `FedAvg`."""

    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Return the point whose distances to all clients have the smallest sum."""
        median = RunningMean()
        for weight, client in zip(weiszfeld(gram(start, clients)), clients, strict=True):
            median.add(float(weight), client)
        return median.arrays()


def weiszfeld(products: Floats) -> Floats:
    """Return the weights, float64 (n,) with sum 1, whose weighted mean is the geometric median.

    Args:
        products: Inner products of the n points, float64 (n, n), as `gram` returns them.
    """
    weights: Floats = np.full(len(products), 1 / len(products))
    for _ in range(MAX_ITERATIONS):
        nearness = 1 / np.maximum(SMOOTHING, distances_from(weights, products))
        before, weights = weights, nearness / nearness.sum()
        if np.abs(weights / before - 1).max() < WEIGHT_TOLERANCE:
            break
    return weights
