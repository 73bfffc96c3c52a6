"""The ε of a history, compared with other libraries, and the noise for a budget."""

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fedattn_app.privacy.accounting import (
    MAX_PRV_STEPS,
    RDP_ORDERS,
    Steps,
    _rdp_of_step,
    epsilon_of,
    noise_for,
)

HISTORIES = {
    "one step": [Steps(1.0, 1.0, 1)],
    "all examples in each step": [Steps(1.0, 1.0, 10)],
    "a tenth of the examples": [Steps(1.0, 0.1, 100)],
    "few examples in each step": [Steps(0.6, 1e-4, 1000)],
    "many steps": [Steps(1.1, 0.01, 10000)],
    "mixed": [Steps(0.8, 0.05, 200), Steps(2.0, 0.2, 50), Steps(1.2, 1.0, 3)],
    "much noise": [Steps(50.0, 1.0, 1000)],
}
DELTAS = [1e-5, 1e-2, 0.1]
# Here dp_accounting differs. It returns 0 by a bound other than RDP for the first, and too much for
# the second: at a large δ low orders are the best, and it omits those whose series do not converge.
DIFFERENT_IN_DP_ACCOUNTING = [("few examples in each step", 1e-2), ("mixed", 0.1)]


def epsilon_by(accountant, history, delta):
    for steps in history:
        noise = GaussianDpEvent(steps.noise_multiplier)
        accountant.compose(PoissonSampledDpEvent(steps.sample_rate, noise), steps.count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(
    ("name", "delta"),
    [
        (name, delta)
        for name in HISTORIES
        for delta in DELTAS
        if (name, delta) not in DIFFERENT_IN_DP_ACCOUNTING
    ],
)
def test_rdp_equals_that_of_dp_accounting(name, delta):
    theirs = epsilon_by(RdpAccountant(), HISTORIES[name], delta)
    assert epsilon_of(HISTORIES[name], delta) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("order", [1.1, 1.5, 3.3, 12])
def test_the_divergence_equals_its_integral(order):
    noise, rate = 0.8, 0.2

    def integrand(x):  # its integral is E[ratio ** order]
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return norm.pdf(x, scale=noise) * ratio**order

    expected = math.log(quad(integrand, -15, 25, points=[0, 1, order])[0]) / (order - 1)
    assert _rdp_of_step(noise, rate)[RDP_ORDERS.index(order)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_rdp_and_prv_are_above_the_tightest_bound(history):
    """PRV is above it by about 0.01 at most, and RDP is above PRV."""
    tightest = epsilon_by(PLDAccountant(value_discretization_interval=1e-3), history, 1e-5)
    prv = epsilon_of(history, 1e-5, "prv")
    assert tightest - 1e-3 <= prv <= tightest + 0.02
    assert prv <= epsilon_of(history, 1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_no_noise_and_no_steps(accountant):
    assert epsilon_of([], 1e-5, accountant) == 0
    assert epsilon_of([Steps(0.0, 0.1, 1)], 1e-5, accountant) == math.inf
    assert epsilon_of([Steps(math.nan, 1.0, 1)], 1e-5, accountant) == math.inf
    assert epsilon_of([Steps(1.0, 0.1, 1), Steps(0.0, 1.0, 1)], 1e-5, accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("rate", "delta"), [(1.0, 1e-5), (0.01, 1e-5), (1.0, 0.5)])
def test_epsilon_never_rises_with_the_noise_at_extreme_values(accountant, rate, delta):
    noises = [0.0, 1e-200, 1e-7, 1e-3, 0.1, 1.0, 1e3, 1e8, 1e200, 1e300]
    epsilons = [epsilon_of([Steps(noise, rate, 3)], delta, accountant) for noise in noises]
    assert epsilons[:3] == [math.inf] * 3
    assert epsilons == sorted(epsilons, reverse=True)
    assert 0 <= epsilons[-1] < 0.01


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.5, 0.999])
def test_a_large_epsilon_comes_from_rdp_and_is_finite(delta):
    history = [Steps(0.05, 1.0, 10)]
    epsilon = epsilon_of(history, delta, "prv")
    assert 30 < epsilon == epsilon_of(history, delta) < math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_the_order_of_the_history_does_not_matter(accountant):
    apart = [Steps(1.0, 0.1, 30), Steps(2.0, 1.0, 1), Steps(1.0, 0.1, 70)]
    together = [Steps(2.0, 1.0, 1), Steps(1.0, 0.1, 100)]
    first, second = (epsilon_of(history, 1e-5, accountant) for history in (apart, together))
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("count", [MAX_PRV_STEPS + 1, 10**9, 2**62])
def test_rdp_is_used_for_more_steps_than_prv_has_memory_for(count):
    planned = Steps(1.0, 0.01, count)
    noise = noise_for(1.0, 1e-5, planned, (), "prv")
    assert noise == noise_for(1.0, 1e-5, planned)
    history = [replace(planned, noise_multiplier=noise)]
    assert epsilon_of(history, 1e-5, "prv") == epsilon_of(history, 1e-5)
    halves = [replace(history[0], count=count // 2), replace(history[0], count=count - count // 2)]
    assert epsilon_of(halves, 1e-5, "prv") == epsilon_of(halves, 1e-5)


def test_rdp_is_used_if_prv_fails(monkeypatch):
    def fail(*_):
        raise RuntimeError("numerical trouble")

    monkeypatch.setattr("opacus.accountants.PRVAccountant.get_epsilon", fail)
    history = [Steps(1.2345, 1.0, 3)]
    assert epsilon_of(history, 1e-5, "prv") == epsilon_of(history, 1e-5)
    monkeypatch.setattr("opacus.accountants.PRVAccountant.get_epsilon", lambda *_: math.nan)
    history = [Steps(1.2346, 1.0, 3)]
    assert epsilon_of(history, 1e-5, "prv") == epsilon_of(history, 1e-5)


@given(
    noise=st.floats(0.3, 100),
    rate=st.sampled_from([1.0, 0.01]),
    count=st.integers(1, 10**5),
    more=st.integers(1, 1000),
    factor=st.floats(1, 10),
    delta=st.floats(1e-12, 0.1),
)
@settings(max_examples=15, deadline=None)
def test_more_steps_cost_more_and_more_noise_costs_less(noise, rate, count, more, factor, delta):
    base = Steps(noise, rate, count)
    epsilon = epsilon_of([base], delta)
    assert 0 <= epsilon < math.inf
    assert epsilon_of([base, Steps(1.0, 1.0, more)], delta) >= epsilon
    assert epsilon_of([replace(base, count=count + more)], delta) >= epsilon
    assert epsilon_of([replace(base, noise_multiplier=noise * factor)], delta) <= epsilon + 1e-9


# Noise for a budget


HISTORY = [Steps(2.0, 1.0, 2)]
ONE_STEP = Steps(0.0, 1.0, 1)


@pytest.mark.parametrize(
    ("target", "rate", "count", "history"),
    [
        (8.0, 1.0, 10, []),
        (1.0, 0.1, 50, []),
        (0.01, 1.0, 5, []),
        (0.5, 1e-3, 1000, []),
        (100.0, 1.0, 1, []),
        (6.0, 1.0, 10, HISTORY),
        (6.0, 0.1, 20, HISTORY),
    ],
)
def test_the_noise_meets_the_target_and_is_the_smallest_to_do_so(target, rate, count, history):
    planned = Steps(0.0, rate, count)
    noise = noise_for(target, 1e-5, planned, history)
    assert epsilon_of([*history, replace(planned, noise_multiplier=noise)], 1e-5) <= target
    less = replace(planned, noise_multiplier=noise * 0.99)
    assert epsilon_of([*history, less], 1e-5) > target


@pytest.mark.parametrize("history", [[], HISTORY])
def test_the_tighter_accountant_needs_less_noise(history):
    planned = Steps(0.0, 1.0, 4)
    noise = noise_for(6.0, 1e-5, planned, history, "prv")
    spent = [
        epsilon_of([*history, replace(planned, noise_multiplier=noise * factor)], 1e-5, "prv")
        for factor in (1, 0.99)
    ]
    assert spent[0] <= 6.0 < spent[1]
    assert noise < noise_for(6.0, 1e-5, planned, history)


@pytest.mark.parametrize(
    ("target", "delta", "history"),
    [
        (1.0, 1e-5, HISTORY),  # the history has spent more than that
        (epsilon_of(HISTORY, 1e-5) * 0.999, 1e-5, HISTORY),
        (5.0, 1e-5, [Steps(0.0, 1.0, 1)]),
        (1e-4, 1e-12, []),
        (0.0, 1e-5, []),
    ],
)
def test_a_target_that_no_noise_can_meet(target, delta, history):
    assert noise_for(target, delta, Steps(0.0, 1.0, 1), history) is None


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("fraction_spent", "enough"), [(0.1, True), (0.5, True), (0.999, False)])
def test_a_small_rest_of_the_budget_counts_as_spent(accountant, fraction_spent, enough):
    before = [Steps(noise_for(2.0 * fraction_spent, 1e-5, ONE_STEP, (), accountant), 1.0, 1)]
    noise = noise_for(2.0, 1e-5, ONE_STEP, before, accountant)
    assert (noise is not None) == enough
    # A huge noise multiplier would still meet the target.
    huge = replace(ONE_STEP, noise_multiplier=1e4)
    assert epsilon_of([*before, huge], 1e-5, accountant) <= 2.0


def test_the_noise_of_the_planned_steps_is_ignored():
    noises = {noise_for(2.0, 1e-5, Steps(noise, 1.0, 3)) for noise in (0.0, 0.1, 50.0)}
    assert len(noises) == 1


def test_a_huge_budget_still_gets_some_noise():
    noise = noise_for(1e9, 1e-5, Steps(0.0, 1.0, 1))
    assert 0 < noise <= 1e-2
    assert np.isfinite(epsilon_of([Steps(noise, 1.0, 1)], 1e-5))
