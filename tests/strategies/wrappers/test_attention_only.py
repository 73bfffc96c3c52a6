"""`AttentionOnly` by itself: which replies its inner strategy gets, and how it merges."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from helpers.replying import failed_reply, grid, record, reply

from strategies import AttentionOnly


class Recording(FedAvg):
    """Keeps the nodes of the replies that it is given, and returns no arrays."""

    def __init__(self):
        super().__init__()
        self.nodes = None

    def aggregate_train(self, server_round, replies):
        self.nodes = [reply.metadata.src_node_id for reply in replies]
        return None, None

    def aggregate_evaluate(self, server_round, replies):
        self.nodes = [reply.metadata.src_node_id for reply in replies]


MIXED = {3: 1, 1: 5, 5: 0, 2: None, 4: 2}  # node -> number of examples; None: it failed


def mixed_replies(nodes=MIXED):
    return [
        failed_reply(node) if MIXED[node] is None else reply(node, MIXED[node], w=np.ones(2))
        for node in nodes
    ]


@pytest.mark.parametrize("stage", ["aggregate_train", "aggregate_evaluate"])
def test_the_inner_strategy_gets_valid_replies_with_examples_in_order(stage):
    inner = Recording()
    getattr(AttentionOnly(inner, lambda name: True), stage)(1, mixed_replies())
    assert inner.nodes == [1, 3, 4]


def test_an_iterator_keeps_its_order():
    inner = Recording()
    AttentionOnly(inner, lambda name: True).aggregate_train(1, iter(mixed_replies()))
    assert inner.nodes == [3, 1, 4]


@pytest.mark.parametrize("nodes", [[], [2], [5], [5, 2]])
def test_the_inner_strategy_is_called_without_replies_only_if_it_needs_none(nodes):
    needy, noisy = Recording(), Recording()
    wrapped = AttentionOnly(needy, lambda name: True)
    assert wrapped.aggregate_train(1, mixed_replies(nodes)) == (None, None)
    assert wrapped.aggregate_evaluate(1, mixed_replies(nodes)) is None
    assert needy.nodes is None
    noisy_wrapped = AttentionOnly(noisy, lambda name: True, needs_no_replies=True)
    noisy_wrapped.aggregate_train(1, mixed_replies(nodes))
    assert noisy.nodes == []


def test_integer_arrays_are_rounded_not_cut():
    strategy = AttentionOnly(FedAvg(), lambda name: True)
    before = record(steps=np.array([0, 0], dtype=np.int64))
    strategy.configure_train(1, before, ConfigRecord(), grid(2))
    replies = [reply(0, 1, steps=np.array([3, 9])), reply(1, 3, steps=np.array([4, 10]))]
    merged, _ = strategy.aggregate_train(1, replies)
    assert merged["steps"].numpy().dtype == np.int64
    assert merged["steps"].numpy().tolist() == [4, 10]  # means 3.75 and 9.75


def test_flowers_accounted_dp_wrapper_still_skips_a_round_with_a_failure():
    config = PrivacyConfig(
        target_delta=1e-5,
        population_size=100,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    nodes = grid(3)
    for num_failed, skips in ((0, False), (1, True)):
        private = DifferentialPrivacyServerSideFixedClipping(
            FedAvg(), 1.0, 1.0, 3, accountant=RdpAccountant(config)
        )
        strategy = AttentionOnly(private, lambda name: True)
        list(strategy.configure_train(1, record(w=np.zeros(2)), ConfigRecord(), nodes))
        replies = [reply(node, 1, w=np.ones(2)) for node in nodes.get_node_ids()]
        replies[:num_failed] = [failed_reply(node) for node in range(num_failed)]
        assert (strategy.aggregate_train(1, replies)[0] is None) is skips
