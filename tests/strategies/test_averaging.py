"""Flower's rules over our average: the papers' formulas, and what they reduce to."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower
from helpers.replying import after_round, grid, random_arrays, record, reply

from strategies import FedAdagrad, FedAdam, FedAvgM, FedProx, FedYogi, WeightedFedAvg

RULES = [FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi]
SIZES = [3, 1, 8]


def answers(server_round=0):
    return [
        reply(node, SIZES[node], **random_arrays(10 * server_round + node + 1)) for node in range(3)
    ]


def mean(name, server_round=0, weights=SIZES):
    values = [random_arrays(10 * server_round + node + 1)[name] for node in range(3)]
    return np.average(np.float64(values), axis=0, weights=weights)


@pytest.mark.parametrize("kind", RULES)
def test_each_is_flowers_own_up_to_rounding(kind):
    before = random_arrays(0)
    ours, theirs = kind(), getattr(flower, kind.__name__)()
    for server_round in (1, 2, 3):
        got = after_round(ours, before, answers(server_round), server_round)
        expected = after_round(theirs, before, answers(server_round), server_round)
        for name in before:
            np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=1e-6)
        before = {name: np.asarray(array, np.float32) for name, array in expected.items()}


@pytest.mark.parametrize("weighting", ["uniform", "loss"])
def test_the_weighting_is_the_averages(weighting):
    got = after_round(FedProx(weighting=weighting), random_arrays(0), answers())
    expected = after_round(WeightedFedAvg(weighting), random_arrays(0), answers())
    for name in got:
        assert got[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("rule", [FedProx(proximal_mu=0.0), FedAvgM(server_momentum=0.0)])
def test_without_its_term_each_is_the_average_exactly(rule):
    got = after_round(rule, random_arrays(0), answers())
    expected = after_round(WeightedFedAvg(), random_arrays(0), answers())
    for name in got:
        assert got[name].tobytes() == expected[name].tobytes()


def test_momentum_is_the_formula_of_hsu_et_al():
    beta, rate = 0.9, 0.5
    rule = FedAvgM(server_momentum=beta, server_learning_rate=rate)
    w, v = random_arrays(0, np.float64), 0.0
    start = random_arrays(0)
    for server_round in (1, 2, 3):
        start = after_round(rule, start, answers(server_round), server_round)
        v = beta * v + (w["w"] - mean("w", server_round))
        w["w"] = w["w"] - rate * v
        np.testing.assert_allclose(start["w"], w["w"], rtol=1e-5, atol=1e-6)


def second_moment(kind, v, d, beta2):
    if kind is FedAdagrad:
        return v + d**2
    if kind is FedYogi:
        return v - (1 - beta2) * d**2 * np.sign(v - d**2)
    return beta2 * v + (1 - beta2) * d**2


@pytest.mark.parametrize("kind", [FedAdagrad, FedYogi])
def test_adaptive_rules_are_the_formula_of_reddi_et_al(kind):
    eta, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    moments = {} if kind is FedAdagrad else {"beta_1": beta1, "beta_2": beta2}
    beta1 = moments.get("beta_1", 0.0)
    rule = kind(eta=eta, tau=tau, **moments)
    start, w = random_arrays(0), np.float64(random_arrays(0)["w"])
    m, v = np.zeros_like(w), np.zeros_like(w)
    for server_round in (1, 2, 3):
        start = after_round(rule, start, answers(server_round), server_round)
        d = mean("w", server_round) - w
        m = beta1 * m + (1 - beta1) * d
        v = second_moment(kind, v, d, beta2)
        w = w + eta * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(start["w"], w, rtol=1e-4, atol=1e-5)


def test_clients_get_the_proximal_term():
    sent = FedProx(proximal_mu=0.3).configure_train(
        1, record(**random_arrays(0)), ConfigRecord(), grid(2)
    )
    assert {m.content.config_records["config"]["proximal-mu"] for m in sent} == {0.3}
