import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from helpers.replying import after_round, random_arrays, record, reply

from fedattn_app.engine.local_grid import LocalGrid
from strategies import FedBuff, WeightedFedAvg


def asked(rule, server_round, arrays, nodes=8):
    grid = LocalGrid(ClientApp(), nodes, {})
    messages = list(rule.configure_train(server_round, record(**arrays), ConfigRecord(), grid))
    return [message.metadata.dst_node_id for message in messages]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_buffer_without_delay_is_federated_averaging_exactly(weighting):
    replies = [reply(node, node + 1, **random_arrays(node + 1)) for node in range(4)]
    got = after_round(FedBuff(buffer_size=4, weighting=weighting), random_arrays(0), replies)
    expected, _ = WeightedFedAvg(weighting).aggregate_train(1, replies)
    for name, array in got.items():
        assert array.tobytes() == expected[name].numpy().tobytes()


def test_late_updates_are_the_papers_formula():
    """w ← w + η/K Σ (1+τ)^-1/2 (w_k − w_{t−τ}), the clients weighed alike."""
    rate = 0.7
    rule = FedBuff(buffer_size=2, server_learning_rate=rate, weighting="uniform")
    first = random_arrays(0)
    early, late, *_ = asked(rule, 1, first)
    news = {node: random_arrays(node) for node in (early, late)}
    arrays, _ = rule.aggregate_train(1, [reply(early, **news[early])])
    second = {name: array.numpy() for name, array in arrays.items()}
    # The late one is still at work: nobody may ask it, so `_sent` keeps what it was sent.
    kept = rule._sent[late]
    third = second
    asked(rule, 3, third)
    rule._sent[late] = kept
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


def test_asks_at_most_so_many_and_each_once():
    nodes = asked(FedBuff(concurrency=5), 1, random_arrays(0))
    assert len(nodes) == len(set(nodes)) == 5
