"""Valid replies are combined in order, one at a time where they arrive so."""

import weakref

import numpy as np
import pytest
from flwr.app import ConfigRecord
from helpers.replying import failed_reply, grid, record, reply

from strategies import AttentionOnly, DecodedReplies, UpdateChecks, WeightedFedAvg
from strategies.common.replies import valid_replies


def nodes(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_a_sequence_is_sorted_by_node():
    given = [reply(3), reply(1), reply(2)]
    assert nodes(valid_replies(given)) == [1, 2, 3]
    assert nodes(given) == [3, 1, 2]


def test_an_iterator_is_read_one_reply_at_a_time():
    arriving = iter([reply(1), reply(2), reply(3)])
    valid = valid_replies(arriving)
    assert nodes([next(valid)]) == [1]
    assert nodes(arriving) == [2, 3]


@pytest.mark.parametrize("arrive", [list, iter])
def test_failed_replies_are_left_out(arrive):
    replies = [failed_reply(1), reply(2), failed_reply(3), reply(4)]
    assert nodes(valid_replies(arrive(replies))) == [2, 4]


def decoded(rule):
    return DecodedReplies(
        AttentionOnly(UpdateChecks(rule), lambda name: True), lambda encoded, sent: encoded
    )


@pytest.mark.parametrize("wrap", [lambda rule: rule, decoded], ids=["alone", "wrapped"])
def test_a_round_keeps_few_replies_in_memory(wrap):
    alive, max_alive = weakref.WeakSet(), 0

    def arriving(node_ids):
        nonlocal max_alive
        for node in node_ids:
            made = reply(node, w=np.full(3, float(node - node_ids[0] + 1)))
            alive.add(made)
            max_alive = max(max_alive, len(alive))
            yield made
            del made

    strategy = wrap(WeightedFedAvg())
    nodes = grid(20)
    list(strategy.configure_train(1, record(w=np.zeros(3)), ConfigRecord(), nodes))
    arrays, _ = strategy.aggregate_train(1, arriving(list(nodes.get_node_ids())))
    assert arrays["w"].numpy().tolist() == [10.5] * 3
    assert max_alive <= 3
