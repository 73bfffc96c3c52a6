import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from strategies.common.arrays import BLOCK_SIZE, RunningMean, as_dtype

SHAPES = {"scalar": (), "empty": (0, 3), "matrix": (3, 4), "blocks": (2, BLOCK_SIZE + 5)}
WEIGHTS = [3.0, 1.0, 0.5]


def records(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        {name: np.asarray(rng.normal(size=shape) * 10, dtype) for name, shape in SHAPES.items()}
        for _ in WEIGHTS
    ]


def mean_of(given, weights=WEIGHTS):
    mean = RunningMean()
    for weight, values in zip(weights, given, strict=True):
        mean.add(weight, ArrayRecord({name: Array(array) for name, array in values.items()}))
    return {name: array.numpy() for name, array in mean.arrays().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_numpys_average(dtype):
    given = records(dtype)
    for name, array in mean_of(given).items():
        stacked = np.stack([values[name].astype(np.float64) for values in given])
        expected = np.average(stacked, axis=0, weights=WEIGHTS)
        assert (array.dtype, array.shape) == (dtype, SHAPES[name])
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6)


def test_sums_are_taken_in_float64():
    given = [{"w": np.float32([2.0**25])}, {"w": np.float32([1])}, {"w": np.float32([-(2.0**25)])}]
    assert mean_of(given, [1, 1, 1])["w"] == np.float32(1 / 3)


def test_memory_layout_does_not_matter():
    given = records()
    turned = [{name: np.asfortranarray(array) for name, array in one.items()} for one in given]
    assert all(
        left.tobytes() == right.tobytes()
        for left, right in zip(mean_of(given).values(), mean_of(turned).values(), strict=True)
    )


def test_integers_are_rounded_to_the_nearest():
    assert as_dtype(np.array([1.6, -1.6]), "int64").numpy().tolist() == [2, -2]
    assert mean_of([{"n": np.array(3)}, {"n": np.array(4)}], [1, 3])["n"] == 4


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"a": np.ones(3, np.float32)}, "different names"),
        ({"a": np.ones(3, np.float32), "c": np.ones(2, np.float32)}, "different names"),
        ({"a": np.ones(1, np.float32), "b": np.ones(2, np.float32)}, r"a has .*\(1,\), but \(3,\)"),
        ({"a": np.ones((3, 1), np.float32), "b": np.ones(2, np.float32)}, "a has shape"),
    ],
)
def test_records_unlike_the_first_are_refused(second, reason):
    first = {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match=reason):
        mean_of([first, second], [1, 1])
