import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedattn_app.config import Config
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.transport.lazy_array import lazy_record
from fedattn_app.transport.payload import payload_size

MODEL_ARRAYS = get_arrays(build_model(Config().model, 6, 1))
CONTENTS = {
    "a whole model": MODEL_ARRAYS,
    "a head": {name: MODEL_ARRAYS[name] for name in ("head.weight", "head.bias")},
    "odd arrays": {
        "no dimensions": np.array(3.5),
        "empty": np.zeros((0, 4), np.float16),
        "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "every other element": np.arange(10)[::2],
        "big-endian": np.arange(3, dtype=">i8"),
    },
}


def content_of(record):
    return RecordDict(
        {
            "arrays": record,
            "config": ConfigRecord({"server-round": 3, "frozen-fingerprint": "a" * 64}),
            "metrics": MetricRecord({"loss": 0.5, "num-examples": 10}),
        }
    )


@pytest.mark.parametrize("name", CONTENTS)
def test_the_size_is_that_of_the_serialised_content(name):
    arrays = CONTENTS[name]
    eager = content_of(ArrayRecord({key: Array(values) for key, values in arrays.items()}))
    lazy = content_of(lazy_record(arrays))
    size = payload_size(lazy)
    assert not any("data" in vars(array) for array in lazy["arrays"].values())
    assert payload_size(eager) == size
    assert recorddict_to_proto(lazy) == recorddict_to_proto(eager)
    true_size = len(recorddict_to_proto(lazy).SerializeToString())
    assert size == pytest.approx(true_size, abs=8 * len(arrays))  # the length prefixes


def test_a_content_without_arrays_has_its_exact_size():
    content = RecordDict({"config": ConfigRecord({"server-round": 3})})
    assert payload_size(content) == len(recorddict_to_proto(content).SerializeToString())
