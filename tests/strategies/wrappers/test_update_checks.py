import io
import logging
import re

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord
from helpers.replying import failed_reply, grid, record, reply

from fedattn_app.flower_compat import set_source_node
from strategies import FedSGD, NormBounds, UpdateChecks, WeightedFedAvg

START = {"w": np.float32([1.0, 1.0]), "s": np.float32(0.0)}
GOOD = {"w": np.float32([1.0, 2.0]), "s": np.float32(0.0)}


def checked(replies, rule=None, min_updates=1, **bounds):
    """Run a round; return the checks and the arrays after it. The replies get the grid's nodes."""
    checks = UpdateChecks(rule or WeightedFedAvg("uniform"), NormBounds(**bounds), min_updates)
    nodes = grid(max(2, len(replies)))  # Flower waits for two
    list(checks.configure_train(1, record(**START), ConfigRecord(), nodes))
    for node, answer in zip(nodes.get_node_ids(), replies, strict=False):
        set_source_node(answer, node)
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
def test_a_bad_update_is_dropped_with_its_reason(bad, caplog):
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
def test_an_array_unlike_its_declaration_is_refused(dtype, shape):
    odd = reply(0, **GOOD)
    whole = odd.content["arrays"]["w"]
    odd.content["arrays"]["w"] = Array(dtype, shape, whole.stype, whole.data)
    checks, after = checked([odd, reply(1, **GOOD)], clip_norm=100.0)
    assert list(checks.dropped.values()) == [f"w is {dtype} {shape}, not float32 (2,)"]
    np.testing.assert_array_equal(after["w"], GOOD["w"])


class Recording(WeightedFedAvg):
    """Keeps the replies that it is given."""

    def __init__(self):
        super().__init__("uniform")
        self.seen = []

    def aggregate_train(self, server_round, replies):
        self.seen = list(replies)
        return super().aggregate_train(server_round, self.seen)


def test_arrays_are_put_in_the_order_in_which_they_were_sent():
    rule = Recording()
    turned = reply(1, **dict(reversed(GOOD.items())))
    _, after = checked([reply(0, **GOOD), turned], rule)
    assert [list(answer.content["arrays"]) for answer in rule.seen] == [["w", "s"]] * 2
    assert after["w"].tobytes() == GOOD["w"].tobytes()


def test_two_records_of_arrays_are_refused():
    odd = reply(1, **GOOD)
    odd.content["more"] = record(**GOOD)
    checks, _ = checked([reply(0, **GOOD), odd])
    assert list(checks.dropped.values()) == ["it must hold one record of arrays"]


@pytest.mark.parametrize(("num_valid", "combined"), [(2, False), (3, True)])
def test_nothing_is_combined_if_too_few_updates_are_left(num_valid, combined):
    bad = BAD["NaN"][0]
    replies = [reply(k, **(GOOD if k < num_valid else bad)) for k in range(4)]
    _, after = checked(replies, min_updates=3)
    assert bool(after) is combined


def test_nothing_is_combined_if_no_update_is_left():
    checks, after = checked([reply(0, **BAD["NaN"][0])])
    assert len(checks.dropped) == 1
    assert after == {}


def test_dropped_is_about_the_last_round():
    checks, _ = checked([reply(0, **BAD["NaN"][0])])
    checks.aggregate_train(2, [])
    assert checks.dropped == {}


def test_a_long_update_is_clipped_to_the_norm_and_keeps_its_direction():
    # Δ = (3, 4, 0): norm 5, to 2.5.
    long = {"w": np.float32([4.0, 5.0]), "s": np.float32(0.0)}
    checks, after = checked([reply(0, **long)], clip_norm=2.5)
    np.testing.assert_allclose(after["w"], [2.5, 3.0], rtol=1e-6)
    assert checks.dropped == {}


def test_a_short_update_is_not_changed():
    _, after = checked([reply(0, **GOOD)], clip_norm=1.0)
    assert after["w"].tobytes() == GOOD["w"].tobytes()


def test_a_gradient_is_measured_from_zero():
    gradient = {"w": np.float32([3.0, 4.0]), "s": np.float32(0.0)}
    _, after = checked(
        [reply(0, **gradient)], FedSGD(1.0), clip_norm=2.5, replies_are_gradients=True
    )
    np.testing.assert_allclose(after["w"], [1.0 - 1.5, 1.0 - 2.0], rtol=1e-6)


def test_checks_of_form_work_without_checks_of_size():
    checks = UpdateChecks(WeightedFedAvg("uniform"))
    first, second = nodes = list(grid(2).get_node_ids())
    assert len(list(checks.configure_train(1, record(**START), ConfigRecord(), grid(2)))) == 2
    far = {"w": np.float32([1e30, 0.0]), "s": np.float32(0.0)}
    replies = [reply(first, **far), reply(second, **BAD["NaN"][0])]
    arrays, _ = checks.aggregate_train(1, replies)
    assert arrays["w"].numpy().tobytes() == far["w"].tobytes()
    assert list(checks.dropped) == nodes[1:]


def test_the_rule_gets_neither_failed_nor_refused_replies():
    rule = Recording()
    good = reply(0, **GOOD)
    checked([good, failed_reply(1), reply(2, **BAD["NaN"][0])], rule)
    assert rule.seen == [good]


def test_a_reply_of_a_node_that_was_sent_nothing_is_refused():
    rule = Recording()
    checks = UpdateChecks(rule)
    list(checks.configure_train(1, record(**START), ConfigRecord(), grid(2)))
    checks.aggregate_train(1, [reply(99, **GOOD)])
    assert rule.seen == []
    assert checks.dropped == {99: "it was sent no message"}


def test_what_a_failed_node_was_sent_is_forgotten_when_it_is_free_again():
    checks = UpdateChecks(WeightedFedAvg(fraction_train=0.01))
    for server_round in range(1, 6):
        list(checks.configure_train(server_round, record(**START), ConfigRecord(), grid(20)))
        checks.aggregate_train(server_round, [failed_reply(node) for node in checks._sent])
        assert len(checks._sent) == 2


def archive(**arrays):
    """The bytes of an .npz file, which numpy reads without an error."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [archive(x=np.zeros(2)), b"PK\5\6" + bytes(18)])
def test_an_archive_of_arrays_is_not_an_array(data):
    hostile = reply(2, **GOOD)
    hostile.content["arrays"]["w"] = Array("float32", (2,), "numpy.ndarray", data)
    checks, after = checked([reply(1, **GOOD), hostile])
    assert list(checks.dropped.values()) == ["w is not an array"]
    np.testing.assert_array_equal(after["w"], GOOD["w"])
