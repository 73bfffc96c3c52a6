import numpy as np
import pytest
from flwr.app import ConfigRecord
from helpers.replying import after_round, failed_reply, grid, random_arrays, record, reply

from strategies import FedBuff, WeightedFedAvg


def selected(rule, server_round, arrays, free_nodes=None):
    """Configure a round in which 8 nodes are free; return the nodes that get a message."""
    nodes = grid(8)
    if free_nodes is not None:
        nodes.get_node_ids = lambda: free_nodes
    messages = list(rule.configure_train(server_round, record(**arrays), ConfigRecord(), nodes))
    return [message.metadata.dst_node_id for message in messages]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_buffer_without_delay_is_federated_averaging_exactly(weighting):
    replies = [reply(node, node + 1, **random_arrays(node + 1)) for node in range(4)]
    got = after_round(FedBuff(buffer_size=4, weighting=weighting), random_arrays(0), replies)
    expected, _ = WeightedFedAvg(weighting).aggregate_train(1, replies)
    for name, array in got.items():
        assert array.tobytes() == expected[name].numpy().tobytes()


def test_late_updates_are_the_papers_formula():
    """w ← w + η/K Σ (1+τ)^-1/2 (w_k − w_{t−τ}), with uniform weights."""
    rate = 0.7
    rule = FedBuff(buffer_size=2, server_learning_rate=rate, weighting="uniform")
    first = random_arrays(0)
    early, late, *_ = selected(rule, 1, first)
    news = {node: random_arrays(node) for node in (early, late)}
    arrays, _ = rule.aggregate_train(1, [reply(early, **news[early])])
    second = {name: array.numpy() for name, array in arrays.items()}
    third = second
    selected(rule, 3, third, free_nodes=[early])  # the late one is still at work
    again = random_arrays(50)
    arrays, _ = rule.aggregate_train(3, [reply(late, **news[late]), reply(early, **again)])
    for name in first:
        slow = (1 + 2) ** -0.5 * (np.float64(news[late][name]) - first[name])
        quick = np.float64(again[name]) - third[name]
        expected = third[name] + rate * (slow + quick) / 2
        np.testing.assert_allclose(arrays[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_late_update_counts_for_less():
    weights = [FedBuff().staleness_weight(late) for late in range(5)]
    assert weights[0] == 1.0
    assert weights == sorted(weights, reverse=True)
    assert FedBuff(staleness_exponent=0.0).staleness_weight(9) == 1.0


def test_selects_at_most_concurrency_nodes_and_each_once():
    nodes = selected(FedBuff(concurrency=5), 1, random_arrays(0))
    assert len(nodes) == len(set(nodes)) == 5


def test_a_node_that_failed_is_forgotten_and_starts_anew():
    rule = FedBuff(concurrency=8, weighting="uniform", staleness_exponent=1.0)
    first, third = random_arrays(0), random_arrays(3)
    failing, *_ = selected(rule, 1, first)
    assert rule.aggregate_train(1, [failed_reply(failing)]) == (None, None)
    selected(rule, 3, third, free_nodes=[failing])
    update = random_arrays(4)
    arrays, _ = rule.aggregate_train(3, [reply(failing, **update)])
    for name, array in update.items():  # not late: one full step to the client's arrays
        assert arrays[name].numpy().tobytes() == array.tobytes()


def test_a_model_is_kept_only_for_nodes_at_work():
    rule = FedBuff(concurrency=2)
    for server_round in range(1, 6):
        nodes = selected(rule, server_round, random_arrays(0))
        rule.aggregate_train(server_round, [failed_reply(node) for node in nodes])
        assert set(rule._sent) == set(nodes)
