import numpy as np
import pytest
from helpers.replying import after_round, random_arrays, record, reply

from strategies import GeometricMedian
from strategies.common.gram import distances_from, gram
from strategies.geometric_median import weiszfeld


def flat(arrays):
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)]).astype(np.float64)


def cost(point, points):
    return sum(np.linalg.norm(point - other) for other in points)


def test_no_point_nearby_has_a_smaller_sum_of_distances():
    clients = [random_arrays(seed) for seed in range(1, 8)]
    after = flat(
        after_round(
            GeometricMedian(), random_arrays(0), [reply(k, **c) for k, c in enumerate(clients)]
        )
    )
    points = [flat(client) for client in clients]
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(50):
            other = after + scale * rng.normal(size=after.shape)
            assert cost(after, points) <= cost(other, points) + 1e-6


def test_on_a_line_it_is_the_median():
    replies = [reply(k, w=np.float32([x])) for k, x in enumerate([0.0, 1.0, 1.5, 9.0, 1000.0])]
    after = after_round(GeometricMedian(), {"w": np.zeros(1, np.float32)}, replies)
    assert after["w"][0] == pytest.approx(1.5, abs=1e-3)


def test_a_minority_of_malicious_clients_hardly_moves_it():
    honest = [reply(k, w=np.float32([1.0 + 0.01 * k, -1.0])) for k in range(7)]
    malicious = [reply(7 + k, 10**6, w=np.float32([-1e6, 1e6])) for k in range(3)]
    after = after_round(GeometricMedian(), {"w": np.zeros(2, np.float32)}, honest + malicious)
    np.testing.assert_allclose(after["w"], [1.03, -1.0], atol=0.05)


@pytest.mark.parametrize("far", [1e10, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("num_malicious", [1, 3])
def test_malicious_clients_may_be_as_far_as_float32_goes(far, num_malicious):
    honest = [reply(k, w=np.float32([1.0 + 0.01 * k, -1.0])) for k in range(7)]
    malicious = [reply(7 + k, w=np.float32([-far, far])) for k in range(num_malicious)]
    after = after_round(GeometricMedian(), {"w": np.zeros(2, np.float32)}, honest + malicious)
    np.testing.assert_allclose(after["w"], [1.03, -1.0], atol=0.05)


def test_distances_follow_from_products():
    center, clients = random_arrays(0), [random_arrays(seed) for seed in (1, 2, 3)]
    products = gram(record(**center), [record(**client) for client in clients])
    weights = np.array([0.2, 0.5, 0.3])
    mean = sum(w * flat(client) for w, client in zip(weights, clients, strict=True))
    expected = [np.linalg.norm(flat(client) - mean) for client in clients]
    np.testing.assert_allclose(distances_from(weights, products), expected, rtol=1e-6)


def test_one_client_is_its_own_median():
    assert weiszfeld(np.array([[4.0]])).tolist() == [1.0]
