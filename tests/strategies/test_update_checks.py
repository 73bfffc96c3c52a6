import logging
import re

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers.replying import record, reply

from fedattn_app.engine.local_grid import LocalGrid
from strategies import FedSGD, UpdateChecks, WeightedFedAvg

START = {"w": np.float32([1.0, 1.0]), "s": np.float32(0.0)}
GOOD = {"w": np.float32([1.0, 2.0]), "s": np.float32(0.0)}


def checked(replies, rule=None, **bounds):
    checks = UpdateChecks(rule or WeightedFedAvg("uniform"), **bounds)
    grid = LocalGrid(ClientApp(), max(2, len(replies)), {})  # Flower waits for two
    list(checks.configure_train(1, record(**START), ConfigRecord(), grid))
    for number, answer in enumerate(replies):  # nodes have the grid's ids
        answer.metadata.__dict__["_src_node_id"] = list(grid.get_node_ids())[number]
    arrays, _ = checks.aggregate_train(1, replies)
    return checks, {name: array.numpy() for name, array in (arrays or {}).items()}


BAD = {
    "NaN": ({"w": np.float32([np.nan, 1.0]), "s": np.float32(0.0)}, "w holds NaN"),
    "infinity": ({"w": np.float32([1.0, 1.0]), "s": np.float32(-np.inf)}, "s holds NaN or inf"),
    "name": ({"w": np.float32([1.0, 1.0]), "t": np.float32(0.0)}, "differ in s, t"),
    "missing": ({"w": np.float32([1.0, 1.0])}, "differ in s"),
    "shape": ({"w": np.float32([1.0]), "s": np.float32(0.0)}, r"\(1,\), not float32 \(2,\)"),
    "broadcasts": ({"w": np.float32([[1.0, 1.0]]), "s": np.float32(0.0)}, r"\(1, 2\)"),
    "dtype": ({"w": np.float64([1.0, 1.0]), "s": np.float32(0.0)}, "w is float64"),
    "norm": ({"w": np.float32([1.0, 12.0]), "s": np.float32(0.0)}, "norm is 11, above 10"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_update_is_dropped_and_told(bad, caplog):
    arrays, reason = BAD[bad]
    replies = [reply(0, **GOOD), reply(1, **arrays), reply(2, **GOOD)]
    with caplog.at_level(logging.WARNING, "fedattn"):
        checks, after = checked(replies, drop_norm=10.0)
    np.testing.assert_array_equal(after["w"], GOOD["w"])
    ((node, why),) = checks.dropped.items()
    assert re.search(reason, why)
    assert f"client {node}" in caplog.text
    assert why in caplog.text


@pytest.mark.parametrize("content", [b"", b"xx", b"\x93NUMPY"])
def test_bytes_that_are_no_array_are_refused(content):
    odd = reply(1, **GOOD)
    odd.content["arrays"]["w"] = Array("float32", (2,), "numpy.ndarray", content)
    checks, after = checked([reply(0, **GOOD), odd])
    (why,) = checks.dropped.values()
    assert why.startswith("w cannot be read: ")
    np.testing.assert_array_equal(after["w"], GOOD["w"])


@pytest.mark.parametrize(
    ("dtype", "shape"), [("nonsense", (2,)), ("int8", (2,)), ("float32", (1,))]
)
def test_an_array_that_is_not_what_it_says_is_refused(dtype, shape):
    odd = reply(0, **GOOD)
    whole = odd.content["arrays"]["w"]
    odd.content["arrays"]["w"] = Array(dtype, shape, whole.stype, whole.data)
    checks, after = checked([odd, reply(1, **GOOD)], clip_norm=100.0)
    assert list(checks.dropped.values()) == [f"w is {dtype} {shape}, not float32 (2,)"]
    np.testing.assert_array_equal(after["w"], GOOD["w"])


def test_arrays_come_in_the_order_in_which_they_were_sent():
    seen = []
    rule = WeightedFedAvg("uniform")
    combine = rule.aggregate_train
    rule.aggregate_train = lambda r, replies: combine(r, seen.extend(replies) or seen)
    turned = reply(1, **dict(reversed(GOOD.items())))
    _, after = checked([reply(0, **GOOD), turned], rule)
    assert [list(answer.content["arrays"]) for answer in seen] == [["w", "s"]] * 2
    assert after["w"].tobytes() == GOOD["w"].tobytes()


def test_two_records_of_arrays_are_refused():
    odd = reply(1, **GOOD)
    odd.content["more"] = record(**GOOD)
    checks, _ = checked([reply(0, **GOOD), odd])
    assert list(checks.dropped.values()) == ["it must hold one record of arrays"]


@pytest.mark.parametrize(("sound", "combined"), [(2, False), (3, True)])
def test_too_few_are_left_for_the_rule(sound, combined, caplog):
    bad = BAD["NaN"][0]
    replies = [reply(k, **(GOOD if k < sound else bad)) for k in range(4)]
    with caplog.at_level(logging.WARNING, "fedattn"):
        _, after = checked(replies, at_least=3)
    assert bool(after) is combined
    assert ("the rule needs 3 updates, there are 2" in caplog.text) is not combined


def test_none_is_left_and_the_model_stays():
    checks, after = checked([reply(0, **BAD["NaN"][0])])
    assert len(checks.dropped) == 1
    assert after == {}


def test_dropped_are_those_of_the_last_round():
    checks, _ = checked([reply(0, **BAD["NaN"][0])])
    checks.aggregate_train(2, [])
    assert checks.dropped == {}


def test_a_long_update_is_clipped_to_the_norm_and_keeps_its_direction():
    # Δ = (3, 4, 0): norm 5, to 2.5.
    long = {"w": np.float32([4.0, 5.0]), "s": np.float32(0.0)}
    checks, after = checked([reply(0, **long)], clip_norm=2.5)
    np.testing.assert_allclose(after["w"], [2.5, 3.0], rtol=1e-6)
    assert checks.dropped == {}


def test_a_short_update_is_left_as_it_is():
    _, after = checked([reply(0, **GOOD)], clip_norm=1.0)
    assert after["w"].tobytes() == GOOD["w"].tobytes()


def test_a_gradient_is_measured_from_zero():
    rule = FedSGD(1.0)
    gradient = {"w": np.float32([3.0, 4.0]), "s": np.float32(0.0)}
    _, after = checked([reply(0, **gradient)], rule, clip_norm=2.5)
    np.testing.assert_allclose(after["w"], [1.0 - 1.5, 1.0 - 2.0], rtol=1e-6)


def test_failed_replies_pass():
    seen = []
    checks = UpdateChecks(WeightedFedAvg())
    checks.inner.aggregate_train = lambda r, replies: (seen.extend(replies), (None, None))[1]
    failed = Message(Error(1, "boom"), reply_to=Message(RecordDict(), 2, "train"))
    checks.aggregate_train(1, [failed])
    assert seen == [failed]
