"""Arrays as Flower carries them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array


def as_dtype(values: npt.NDArray[Any], dtype: str) -> Array:
    """Return `values` as an `Array` of `dtype`, rounded to the nearest where that is integer."""
    rounded = np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values
    return Array(np.asarray(np.asarray(rounded).astype(dtype)))
