"""Replies are combined in order, and one at a time where they come so."""

import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from strategies import AttentionOnly, WeightedFedAvg
from strategies.common.replies import in_order


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def reply(node):
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full(3, float(node)))}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def nodes(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_a_sequence_is_sorted_by_node():
    given = [reply(3), reply(1), reply(2)]
    assert nodes(in_order(given)) == [1, 2, 3]
    assert nodes(given) == [3, 1, 2]


def test_what_comes_one_by_one_is_taken_so():
    come = (reply(node) for node in (1, 2, 3))
    ordered = in_order(come)
    assert nodes([next(ordered)]) == [1]
    assert nodes(come) == [2, 3]


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: AttentionOnly(s, lambda name: True)], ids=["alone", "wrapped"]
)
def test_a_round_keeps_few_replies_at_a_time(wrap):
    alive, most = weakref.WeakSet(), 0

    def come():
        nonlocal most
        for node in range(1, 21):
            made = reply(node)
            alive.add(made)
            most = max(most, len(alive))
            yield made
            del made

    strategy = wrap(WeightedFedAvg())
    record = ArrayRecord({"w": Array(np.zeros(3))})
    strategy.configure_train(1, record, ConfigRecord(), LocalGrid(ClientApp(), 20, {}))
    arrays, _ = strategy.aggregate_train(1, come())
    assert arrays["w"].numpy().tolist() == [10.5] * 3
    assert most <= 3
