"""Average and convert arrays in the form in which Flower's messages carry them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

BLOCK_SIZE = 1 << 15  # numbers per step of a sum: 256 KiB of float64, which fit in the L2 cache


class RunningMean:
    """Weighted mean of array records. Records are added one at a time; sums are float64."""

    def __init__(self) -> None:
        self._total = 0.0
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._dtypes: dict[str, str] = {}
        self._term = np.empty(BLOCK_SIZE)

    def add(self, weight: float, record: ArrayRecord) -> None:
        """Add `record` to the mean with `weight`.

        Raises `ValueError` if its names or shapes differ from those of the first record.
        """
        if self._sums and record.keys() != self._sums.keys():
            raise ValueError("the records to average have different names")
        self._total += weight
        for name, array in record.items():
            values = array.numpy()
            if name not in self._sums:
                self._sums[name] = np.zeros(values.shape)
                self._dtypes[name] = array.dtype
            if values.shape != self._sums[name].shape:
                raise ValueError(
                    f"{name} has shape {values.shape}, but {self._sums[name].shape} in the first "
                    "record"
                )
            sums, values = self._sums[name].reshape(-1), values.reshape(-1)
            for start in range(0, len(values), BLOCK_SIZE):
                part = slice(start, start + BLOCK_SIZE)
                term = self._term[: len(values[part])]
                np.multiply(values[part], weight, out=term, dtype=np.float64)
                sums[part] += term

    def arrays(self) -> ArrayRecord:
        """Return the mean. Each array has the dtype that it has in the first record."""
        return ArrayRecord(
            {
                name: as_dtype(sums / self._total, self._dtypes[name])
                for name, sums in self._sums.items()
            }
        )


def as_dtype(values: npt.NDArray[Any], dtype: str) -> Array:
    """Return `values` converted to `dtype`, rounded to the nearest if it is an integer type."""
    rounded = np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values
    return Array(np.asarray(np.asarray(rounded).astype(dtype)))
