"""Arrays in messages that are serialised only where they leave the machine."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.constant import SType

from fedattn_app.types import NDArray


class HeldArray(Array):
    """A Flower `Array` that holds `values`, read-only, and makes its bytes when asked for them.

    On this machine `numpy` then costs nothing. What travels is the same as of an `Array`.
    """

    def __init__(self, values: NDArray) -> None:
        self.dtype = str(values.dtype)
        self.shape = values.shape
        self.stype = SType.NUMPY
        self._values = values.view()
        self._values.flags.writeable = False

    def numpy(self) -> NDArray:
        """Return the values, read-only."""
        return self._values

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The values as Flower serialises them."""
        return Array(self._values).data

    @property
    def num_bytes(self) -> int:
        """The length of `data`."""
        fortran = not self._values.flags.c_contiguous and self._values.flags.f_contiguous
        return _header_size(self._values.dtype, self.shape, fortran) + self._values.nbytes

    def deflate(self) -> bytes:
        """Return what Flower sends, under the name of the class that is known elsewhere."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()


def record_of(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Return a record that holds `arrays`, which nobody must change from now on."""
    record = ArrayRecord()
    for name, values in arrays.items():  # its constructor would serialise them
        record[name] = HeldArray(np.asarray(values))
    return record


def held(content: RecordDict) -> RecordDict:
    """Return `content` with its arrays held."""
    arrays = {
        key: record_of({name: array.numpy() for name, array in record.items()})
        for key, record in content.array_records.items()
    }
    return RecordDict({**dict(content.items()), **arrays})


def num_bytes(array: Array) -> int:
    """Return the length of an array's data, without making them."""
    return array.num_bytes if isinstance(array, HeldArray) else len(array.data)


@lru_cache(maxsize=4096)
def _header_size(dtype: np.dtype[np.generic], shape: tuple[int, ...], fortran: bool) -> int:
    header = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.tell()
