import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.exception import InconsistentMessageReplies
from helpers import replying

from strategies import WeightedFedAvg


def reply(node, value, num_examples, loss=0.0):
    return replying.reply(node, num_examples, loss, w=value)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equals_numpys_average(weighting, dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4, 3)).astype(dtype)
    sizes = [1, 5, 2, 90, 7, 3]
    replies = [reply(k, values[k], sizes[k], loss=float(k)) for k in range(6)]
    arrays, metrics = WeightedFedAvg(weighting).aggregate_train(1, replies)
    weights = sizes if weighting == "examples" else None
    expected = np.average(values.astype(np.float64), axis=0, weights=weights).astype(dtype)
    result = arrays["w"].numpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=2 * np.finfo(dtype).eps)
    # Metrics are weighted by examples, whatever weighs the arrays.
    assert metrics["loss"] == pytest.approx(np.average(range(6), weights=sizes))


def test_integers_are_rounded_not_cut():
    replies = [reply(0, np.array([3, 9]), 1), reply(1, np.array([4, 10]), 3)]
    arrays, _ = WeightedFedAvg().aggregate_train(1, replies)
    assert arrays["w"].numpy().tolist() == [4, 10]  # means 3.75 and 9.75


def test_one_client_is_returned_bit_for_bit():
    value = np.random.default_rng(1).normal(size=100).astype(np.float32)
    arrays, _ = WeightedFedAvg().aggregate_train(1, [reply(0, value, 17)])
    assert arrays["w"].numpy().tobytes() == value.tobytes()


def test_uniform_weighting_leaves_out_clients_without_examples():
    arrays, _ = WeightedFedAvg("uniform").aggregate_train(
        1, [reply(0, np.float32(1.0), 3), reply(1, np.float32(5.0), 0)]
    )
    assert arrays["w"].numpy() == 1.0


def test_many_small_terms_are_not_lost_next_to_a_large_one():
    replies = [reply(0, np.float32(1e8), 1)]
    replies += [reply(k, np.float32(1.0), 1) for k in range(1, 1001)]
    arrays, _ = WeightedFedAvg().aggregate_train(1, replies)
    assert arrays["w"].numpy() == np.float32((1e8 + 1000) / 1001)


def altered(node, change):
    odd = reply(node, np.float32(1.0), 2)
    change(odd.content)
    return odd


def more_arrays(content):
    content["arrays"]["v"] = Array(np.float32([1.0]))


def another_record(content):
    content["more"] = ArrayRecord({"w": Array(np.float32([1.0]))})


def another_metric(content):
    content["metrics"]["odd"] = 1


def no_weight(content):
    del content["metrics"]["num-examples"]


@pytest.mark.parametrize("arrive", [list, iter], ids=["at once", "one by one"])
@pytest.mark.parametrize("odd_first", [False, True])
@pytest.mark.parametrize("change", [more_arrays, another_record, another_metric, no_weight])
def test_replies_that_differ_are_not_averaged(change, odd_first, arrive):
    usual, odd = reply(1, np.float32(1.0), 2), altered(0 if odd_first else 2, change)
    replies = [odd, usual] if odd_first else [usual, odd]
    with pytest.raises(InconsistentMessageReplies):
        WeightedFedAvg().aggregate_train(1, arrive(replies))
