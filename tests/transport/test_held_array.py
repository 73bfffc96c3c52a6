import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedattn_app.server.partition_grid import payload_bytes
from fedattn_app.transport.lazy_array import HeldArray, held, num_bytes, record_of

VALUES = {
    "a matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "no dimensions": np.array(3.5),
    "empty": np.zeros((0, 4), np.float16),
    "Fortran's order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "a column": np.ones((5, 1)),
    "every other": np.arange(10)[::2],
    "big-endian": np.arange(3, dtype=">i8"),
    "a long shape": np.zeros((1,) * 30, np.int8),
}


@pytest.fixture(params=VALUES)
def values(request):
    return VALUES[request.param]


def test_what_travels_is_flowers_own_array(values):
    ours, flowers = HeldArray(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert ours.data == flowers.data
    assert ours.deflate() == flowers.deflate()
    assert ours.object_id == flowers.object_id
    assert ours.children.keys() == flowers.children.keys()
    inflated = Array.inflate(ours.deflate(), ours.children)
    np.testing.assert_array_equal(inflated.numpy(), values)


def test_the_size_is_known_without_the_bytes(values):
    ours = HeldArray(values)
    assert num_bytes(ours) == num_bytes(Array(values)) == len(Array(values).data)
    assert "data" not in vars(ours)


def test_values_are_held_and_cannot_be_changed(values):
    given = values.copy(order="K")
    ours = HeldArray(given)
    assert np.shares_memory(ours.numpy(), given) or not given.size
    assert not ours.numpy().flags.writeable
    assert given.flags.writeable


def test_a_pickle_is_the_same_array(values):
    again = pickle.loads(pickle.dumps(HeldArray(values), protocol=5))
    assert again.numpy().tobytes() == values.tobytes()
    assert again.data == HeldArray(values).data


def contents():
    """The same content with Flower's arrays, and with held ones."""
    others = {
        "config": ConfigRecord({"server-round": 3}),
        "metrics": MetricRecord({"loss": 0.5}),
    }
    flowers = ArrayRecord({name: Array(values) for name, values in VALUES.items()})
    ours = record_of(VALUES)
    return RecordDict({"arrays": flowers, **others}), RecordDict({"arrays": ours, **others})


def test_a_message_is_serialised_to_the_same_bytes_and_counted_so():
    flowers, ours = contents()
    counted = payload_bytes(ours)
    assert recorddict_to_proto(ours) == recorddict_to_proto(flowers)
    assert payload_bytes(flowers) == counted
    true_size = len(recorddict_to_proto(ours).SerializeToString())
    assert counted == pytest.approx(true_size, abs=6 * len(VALUES))  # lengths of lengths


def test_only_the_arrays_of_a_content_change_their_form():
    flowers, _ = contents()
    readable = held(flowers)
    assert list(readable) == list(flowers)
    assert readable["config"] is flowers["config"]
    assert all(type(array) is HeldArray for array in readable["arrays"].values())
    assert all(type(array) is Array for array in flowers["arrays"].values())
    for name, values in VALUES.items():
        once, twice = readable["arrays"][name].numpy(), held(readable)["arrays"][name].numpy()
        np.testing.assert_array_equal(once, values)
        assert np.shares_memory(once, twice) or not values.size
