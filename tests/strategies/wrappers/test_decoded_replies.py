"""Decoding: it changes nothing else, drops what cannot be decoded, and holds one reply."""

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord
from helpers.replying import failed_reply, grid, random_arrays, record, reply

from strategies import AttentionOnly, DecodedReplies, UpdateChecks, WeightedFedAvg

NODES = list(grid(4).get_node_ids())


def pipeline(rule=None):
    """Return the checked rule for the parameters that begin with w or b."""
    checks = UpdateChecks(rule or WeightedFedAvg())
    return AttentionOnly(checks, lambda name: name in {"w", "b"})


def shared(arrays):
    return {name: arrays[name] for name in ("w", "b")}


def updates():
    return [shared(random_arrays(seed)) for seed in (1, 2, 3, 4)]


def run_round(strategy, replies):
    list(strategy.configure_train(1, record(**random_arrays(0)), ConfigRecord(), grid(len(NODES))))
    arrays, metrics = strategy.aggregate_train(1, replies)
    return {name: array.numpy().tobytes() for name, array in arrays.items()}, metrics


def plain_replies():
    return [reply(node, 3 + node, **u) for node, u in zip(NODES, updates(), strict=True)]


def test_decoding_nothing_changes_no_bit():
    expected = run_round(pipeline(), plain_replies())
    got = run_round(DecodedReplies(pipeline(), lambda encoded, sent: encoded), plain_replies())
    assert got == expected


def encode(update, start):
    """Return the update as whole numbers of 2⁻¹⁰, int16, under other names."""
    return {
        f"{name}/int16": np.rint((update[name] - start[name]) * 1024).astype(np.int16)
        for name in update
    }


def decode(encoded, sent):
    return record(
        **{
            name: (array.numpy() + encoded[f"{name}/int16"].numpy() / 1024).astype(array.dtype)
            for name, array in sent.items()
        }
    )


def encoded_replies():
    start = random_arrays(0)
    return [
        reply(node, 3 + node, **encode(u, start)) for node, u in zip(NODES, updates(), strict=True)
    ]


def test_the_rule_combines_decoded_arrays():
    start = record(**shared(random_arrays(0)))
    decoded = [
        reply(node, 3 + node, **{k: a.numpy() for k, a in decode(record(**e), start).items()})
        for node, e in zip(NODES, (encode(u, random_arrays(0)) for u in updates()), strict=True)
    ]
    expected = run_round(pipeline(), decoded)
    assert run_round(DecodedReplies(pipeline(), decode), encoded_replies()) == expected


def without_record(answer):
    del answer.content["arrays"]


def wrong_names(answer):
    answer.content["arrays"] = record(x=np.ones(2))


def wrong_shape(answer):
    answer.content["arrays"]["w/int16"] = record(w=np.ones(5, np.int16))["w"]


@pytest.mark.parametrize("spoil", [without_record, wrong_names, wrong_shape])
def test_a_reply_that_cannot_be_decoded_is_dropped_with_its_reason(spoil, caplog):
    expected = run_round(DecodedReplies(pipeline(), decode), encoded_replies()[1:])
    replies = encoded_replies()
    spoil(replies[0])
    strategy = DecodedReplies(pipeline(), decode)
    with caplog.at_level(logging.WARNING, "fedattn"):
        assert run_round(strategy, replies) == expected
    ((node, reason),) = strategy.dropped.items()
    assert node == NODES[0]
    assert reason.startswith("its arrays cannot be decoded: ")
    assert f"client {node}: its update is dropped: {reason}" in caplog.text


def test_what_decodes_to_something_invalid_is_left_to_the_checks():
    checks = UpdateChecks(WeightedFedAvg())
    strategy = DecodedReplies(checks, lambda encoded, sent: record(w=np.full(2, np.nan)))
    list(strategy.configure_train(1, record(w=np.zeros(2)), ConfigRecord(), grid(2)))
    node = next(iter(grid(2).get_node_ids()))
    assert strategy.aggregate_train(1, [reply(node, w=np.zeros(2))]) == (None, None)
    assert strategy.dropped == {}
    assert checks.dropped == {node: "w holds NaN or infinity"}


def test_failed_replies_are_not_decoded():
    strategy = DecodedReplies(pipeline(), decode)
    expected = run_round(strategy, encoded_replies()[:3])
    assert run_round(strategy, [*encoded_replies()[:3], failed_reply(NODES[3])]) == expected
    assert strategy.dropped == {}


def test_replies_are_decoded_one_at_a_time():
    events = []

    def watched(encoded, sent):
        events.append("decode")
        return encoded

    def arriving():
        for answer in plain_replies():
            events.append("arrive")
            yield answer

    run_round(DecodedReplies(pipeline(), watched), arriving())
    assert events == ["arrive", "decode"] * len(NODES)
