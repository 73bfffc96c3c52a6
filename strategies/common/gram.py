"""Updates by the products of any two of them.

Distances between clients, and between a client and any mean of clients, follow from the matrix of
inner products, which is small however large the model is.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from strategies.common.arrays import BLOCK

Floats = npt.NDArray[np.float64]


def gram(center: ArrayRecord, records: Sequence[ArrayRecord]) -> Floats:
    """Return ⟨x_i − c, x_j − c⟩ for all pairs of `records`, float64 (n, n); c is the `center`."""
    products = np.zeros((len(records), len(records)))
    for name, array in center.items():
        middle = array.numpy().reshape(-1)
        each = [record[name].numpy().reshape(-1) for record in records]
        for start in range(0, len(middle), BLOCK):
            part = slice(start, start + BLOCK)
            updates = np.stack([values[part] for values in each]).astype(np.float64) - middle[part]
            products += updates @ updates.T
    return products


def distances_from(weights: Floats, products: Floats) -> Floats:
    """Return how far each of n clients is from Σ_i `weights`_i (x_i − c), both seen from c.

    `weights` is float64 (n,), `products` what `gram` returns.
    """
    towards = products @ weights
    squares = np.diag(products) - 2 * towards + weights @ towards
    distances: Floats = np.sqrt(np.maximum(squares, 0.0))
    return distances
