"""Arrays as Flower carries them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

BLOCK = 1 << 15  # numbers at a time, so that they stay in the processor's cache


class RunningMean:
    """The weighted mean of array records, added up in float64 one record at a time."""

    def __init__(self) -> None:
        self._total = 0.0
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._dtypes: dict[str, str] = {}
        self._term = np.empty(BLOCK)

    def add(self, weight: float, record: ArrayRecord) -> None:
        """Add `record`; raises `ValueError` unless names and shapes are those of the first."""
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
                    f"{name} is {values.shape} and was {self._sums[name].shape} in the first record"
                )
            sums, values = self._sums[name].reshape(-1), values.reshape(-1)
            for start in range(0, len(values), BLOCK):
                part = slice(start, start + BLOCK)
                term = self._term[: len(values[part])]
                np.multiply(values[part], weight, out=term, dtype=np.float64)
                sums[part] += term

    def arrays(self) -> ArrayRecord:
        """Return the mean, each array of the dtype that the first record's had."""
        return ArrayRecord(
            {
                name: as_dtype(sums / self._total, self._dtypes[name])
                for name, sums in self._sums.items()
            }
        )


def as_dtype(values: npt.NDArray[Any], dtype: str) -> Array:
    """Return `values` as an `Array` of `dtype`, rounded to the nearest where that is integer."""
    rounded = np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values
    return Array(np.asarray(np.asarray(rounded).astype(dtype)))
