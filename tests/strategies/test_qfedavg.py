import numpy as np
import pytest
from helpers.replying import after_round, random_arrays, reply

from strategies import QFedAvg

LOSSES = (0.5, 1.5, 3.0)


def published(start, clients, q, rate):
    """Li et al.'s algorithm 2, over one flat vector."""
    lipschitz = 1 / rate
    gradients = [lipschitz * (start - client) for client in clients]
    deltas = [loss**q * g for loss, g in zip(LOSSES, gradients, strict=True)]
    weights = [
        q * loss ** (q - 1) * (g @ g) + lipschitz * loss**q
        for loss, g in zip(LOSSES, gradients, strict=True)
    ]
    return start - sum(deltas) / sum(weights)


def flat(arrays):
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)]).astype(np.float64)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("q", [0.0, 0.1, 2.0])
def test_is_the_papers_formula(q, rate):
    before, clients = random_arrays(0), [random_arrays(seed) for seed in (1, 2, 3)]
    replies = [reply(k, loss=LOSSES[k], **arrays) for k, arrays in enumerate(clients)]
    after = after_round(QFedAvg(rate, q), before, replies)
    expected = published(flat(before), [flat(arrays) for arrays in clients], q, rate)
    np.testing.assert_allclose(flat(after), expected, rtol=1e-5, atol=1e-6)


def test_the_replies_are_left_as_they_were():
    answer = reply(0, **random_arrays(1))
    held = answer.content.array_records["arrays"]["w"]
    after_round(QFedAvg(), random_arrays(0), [answer, reply(1, **random_arrays(2))])
    assert np.array_equal(held.numpy(), random_arrays(1)["w"])
