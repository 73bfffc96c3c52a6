import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedattn_app.transport.lazy_array import (
    LazyArray,
    lazy_record,
    serialized_size,
    with_lazy_arrays,
)

VALUES = {
    "a matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "no dimensions": np.array(3.5),
    "empty": np.zeros((0, 4), np.float16),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "a column": np.ones((5, 1)),
    "every other element": np.arange(10)[::2],
    "big-endian": np.arange(3, dtype=">i8"),
    "a long shape": np.zeros((1,) * 30, np.int8),
}


@pytest.fixture(params=VALUES)
def values(request):
    return VALUES[request.param]


def test_a_lazy_array_is_sent_as_the_same_bytes_as_flowers_array(values):
    lazy, eager = LazyArray(values), Array(values)
    assert (lazy.dtype, lazy.shape, lazy.stype) == (eager.dtype, eager.shape, eager.stype)
    assert lazy.data == eager.data
    assert lazy.deflate() == eager.deflate()
    assert lazy.object_id == eager.object_id
    assert lazy.children.keys() == eager.children.keys()
    inflated = Array.inflate(lazy.deflate(), lazy.children)
    np.testing.assert_array_equal(inflated.numpy(), values)


def test_the_size_is_computed_without_serialising(values):
    lazy = LazyArray(values)
    assert serialized_size(lazy) == serialized_size(Array(values)) == len(Array(values).data)
    assert "data" not in vars(lazy)


def test_values_are_shared_and_read_only(values):
    given = values.copy(order="K")
    lazy = LazyArray(given)
    assert np.shares_memory(lazy.numpy(), given) or not given.size
    assert not lazy.numpy().flags.writeable
    assert given.flags.writeable


def test_a_pickled_lazy_array_is_equal(values):
    copy = pickle.loads(pickle.dumps(LazyArray(values), protocol=5))
    assert copy.numpy().tobytes() == values.tobytes()
    assert copy.data == LazyArray(values).data


def test_a_lazy_record_holds_the_given_arrays():
    record = lazy_record(VALUES)
    assert list(record) == list(VALUES)
    assert all(type(array) is LazyArray for array in record.values())


def test_only_the_arrays_of_a_content_are_replaced():
    eager = RecordDict(
        {
            "config": ConfigRecord({"server-round": 3}),
            "arrays": ArrayRecord({name: Array(values) for name, values in VALUES.items()}),
        }
    )
    lazy = with_lazy_arrays(eager)
    assert list(lazy) == list(eager)
    assert lazy["config"] is eager["config"]
    assert all(type(array) is LazyArray for array in lazy["arrays"].values())
    assert all(type(array) is Array for array in eager["arrays"].values())
    twice = with_lazy_arrays(lazy)
    for name, values in VALUES.items():
        np.testing.assert_array_equal(lazy["arrays"][name].numpy(), values)
        shared = np.shares_memory(lazy["arrays"][name].numpy(), twice["arrays"][name].numpy())
        assert shared or not values.size
