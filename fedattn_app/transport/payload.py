"""The number of bytes that a message's content takes on the network."""

from flwr.app import Array, ArrayRecord, RecordDict

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.flower_compat import protobuf_size
from fedattn_app.transport.lazy_array import serialized_size


def payload_size(content: RecordDict) -> int:
    """Return the serialised size of `content` in bytes, without copying its arrays.

    It is the length of the array data, plus the size of names, shapes and all other records in
    Flower's protocol buffers. The result is a few bytes per array below the true size, because the
    length prefixes of the array data are left out.
    """
    others = RecordDict(dict(content.items()))
    for key in content.array_records:
        del others[key]
    size = protobuf_size(others)
    for key, record in content.array_records.items():
        size += sum(serialized_size(array) for array in record.values())
        size += _size_without_data(
            key, tuple((name, a.dtype, tuple(a.shape), a.stype) for name, a in record.items())
        )
    return size


@PROCESS_CACHE.keep(max_entries=16)  # most replies of a run have the same names and shapes
def _size_without_data(key: str, arrays: tuple[tuple[str, str, tuple[int, ...], str], ...]) -> int:
    """Return the size in bytes of a record whose arrays have no data.

    `arrays` has one tuple per array: its name, dtype, shape and serialisation format.
    """
    record = ArrayRecord(
        {name: Array(dtype, shape, stype, b"") for name, dtype, shape, stype in arrays}
    )
    return protobuf_size(RecordDict({key: record}))
