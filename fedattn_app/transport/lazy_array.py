"""Flower arrays that are serialised only when they leave the machine."""

from collections.abc import Mapping
from functools import cached_property
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.flower_compat import NUMPY_FORMAT
from fedattn_app.types import NDArray


class LazyArray(Array):
    """A Flower `Array` that holds a numpy array and serialises it on first use of `data`.

    Within one machine `numpy` returns the array without a copy. Over the network it sends the same
    bytes as an `Array` of the same values.

    Args:
        values: Any shape and dtype. The array is not copied, so it must not change afterwards.
    """

    def __init__(self, values: NDArray) -> None:
        self.dtype = str(values.dtype)
        self.shape = values.shape
        self.stype = NUMPY_FORMAT
        self._values = values.view()
        self._values.flags.writeable = False

    def numpy(self) -> NDArray:
        """Return the values as a read-only array."""
        return self._values

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The values in numpy's file format, as Flower serialises them."""
        return Array(self._values).data

    @property
    def serialized_size(self) -> int:
        """The length of `data` in bytes, computed without `data`."""
        fortran = not self._values.flags.c_contiguous and self._values.flags.f_contiguous
        return _header_size(self._values.dtype, self.shape, fortran) + self._values.nbytes

    def deflate(self) -> bytes:
        """Return Flower's network format, which contains the name of the class.

        The receiver may not have this class, so the name is that of Flower's own class.
        """
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()


def lazy_record(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Return an `ArrayRecord` of lazy arrays.

    The arrays are not copied, so they must not change afterwards.
    """
    record = ArrayRecord()
    for name, values in arrays.items():  # the constructor of ArrayRecord would serialise them
        record[name] = LazyArray(np.asarray(values))
    return record


def with_lazy_arrays(content: RecordDict) -> RecordDict:
    """Return a copy of `content` whose arrays are all `LazyArray`s with the same values."""
    arrays = {
        key: lazy_record({name: array.numpy() for name, array in record.items()})
        for key, record in content.array_records.items()
    }
    return RecordDict({**dict(content.items()), **arrays})


def serialized_size(array: Array) -> int:
    """Return the length of `array.data` in bytes, without serialising a lazy array."""
    return array.serialized_size if isinstance(array, LazyArray) else len(array.data)


@PROCESS_CACHE.keep(max_entries=4096)
def _header_size(dtype: np.dtype[np.generic], shape: tuple[int, ...], fortran: bool) -> int:
    """Return the length in bytes of the header that numpy's file format puts before the data."""
    header = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.tell()
