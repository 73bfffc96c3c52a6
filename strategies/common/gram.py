"""Distances between clients from the inner products of their updates.

The distance between two clients, or between a client and a weighted mean of clients, follows from
the n × n matrix of inner products, whose size does not depend on the size of the model.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from strategies.common.arrays import BLOCK_SIZE

Floats = npt.NDArray[np.float64]


def gram(center: ArrayRecord, records: Sequence[ArrayRecord]) -> Floats:
    """Return the inner products ⟨x_i − c, x_j − c⟩ of all pairs, float64 (n, n).

    Args:
        center: The arrays c, all of which together count as one vector.
        records: The n vectors x_i, with the names and shapes of `center`.
    """
    products = np.zeros((len(records), len(records)))
    for name, array in center.items():
        middle = array.numpy().reshape(-1)
        each = [record[name].numpy().reshape(-1) for record in records]
        for start in range(0, len(middle), BLOCK_SIZE):
            part = slice(start, start + BLOCK_SIZE)
            updates = np.stack([values[part] for values in each]).astype(np.float64) - middle[part]
            products += updates @ updates.T
    return products


def distances_from(weights: Floats, products: Floats) -> Floats:
    """Return the L2 distance of each of n vectors from their weighted mean, float64 (n,).

    Args:
        weights: Weights of the mean, float64 (n,), with sum 1.
        products: Inner products of the vectors, float64 (n, n), as `gram` returns them.
    """
    towards = products @ weights
    squares = np.diag(products) - 2 * towards + weights @ towards
    distances: Floats = np.sqrt(np.maximum(squares, 0.0))
    return distances
