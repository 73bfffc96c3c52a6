import numpy as np
import pytest
from helpers.replying import after_round, random_arrays, reply

from strategies import FedAtt, WeightedFedAvg


def published(server, clients, step):
    """Ji et al.'s equations 4 to 7, one client after the other."""
    distances = [np.linalg.norm(np.ravel(server - client)) for client in clients]
    attention = np.exp(distances) / np.sum(np.exp(distances))
    pull = sum(a * (server - client) for a, client in zip(attention, clients, strict=True))
    return server - step * pull


@pytest.mark.parametrize("step", [0.3, 1.0, 1.2])
def test_is_the_papers_formula(step):
    before = random_arrays(0)
    clients = [random_arrays(seed) for seed in (1, 2, 3, 4)]
    replies = [reply(node, 1 + node, **arrays) for node, arrays in enumerate(clients)]
    after = after_round(FedAtt(step=step), before, replies)
    for name, array in before.items():
        expected = published(np.float64(array), [np.float64(c[name]) for c in clients], step)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)


def test_clients_that_moved_equally_far_are_averaged():
    moves = np.eye(4, dtype=np.float32)
    replies = [reply(node, w=moves[node]) for node in range(4)]
    after = after_round(FedAtt(), {"w": np.zeros(4, np.float32)}, replies)
    mean, _ = WeightedFedAvg("uniform").aggregate_train(1, replies)
    np.testing.assert_allclose(after["w"], mean["w"].numpy(), rtol=1e-6)


def test_a_client_that_moved_further_counts_more():
    replies = [reply(0, w=np.float32([1.0])), reply(1, w=np.float32([-3.0]))]
    after = after_round(FedAtt(), {"w": np.zeros(1, np.float32)}, replies)
    weights = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    assert after["w"][0] == pytest.approx(weights @ [1.0, -3.0], rel=1e-6)


def test_distances_whose_exponential_overflows():
    replies = [reply(0, w=np.float32([2000.0])), reply(1, w=np.float32([-1000.0]))]
    after = after_round(FedAtt(), {"w": np.zeros(1, np.float32)}, replies)
    assert after["w"][0] == 2000.0
