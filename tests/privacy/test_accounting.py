"""The ε of a history, against accountants written by others, and the noise that fits a budget."""

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

from fedattn_app.privacy.accounting import ORDERS, Steps, _curve, epsilon_of, noise_for

# Noise multiplier, sample rate and count of each part.
HISTORIES = {
    "one step": [Steps(1.0, 1.0, 1)],
    "all in each step": [Steps(1.0, 1.0, 10)],
    "a tenth": [Steps(1.0, 0.1, 100)],
    "few in each step": [Steps(0.6, 1e-4, 1000)],
    "many steps": [Steps(1.1, 0.01, 10000)],
    "mixed": [Steps(0.8, 0.05, 200), Steps(2.0, 0.2, 50), Steps(1.2, 1.0, 3)],
    "much noise": [Steps(50.0, 1.0, 1000)],
}
DELTAS = [1e-5, 1e-2, 0.1]
# Here dp_accounting has another ε: 0, by a bound beside RDP; and too much, since it leaves out low
# orders, which are the best at large δ, where its series does not converge.
UNLIKE = [("few in each step", 1e-2), ("mixed", 0.1)]


def of_others(accountant, history, delta):
    for steps in history:
        noise = GaussianDpEvent(steps.noise_multiplier)
        accountant.compose(PoissonSampledDpEvent(steps.sample_rate, noise), steps.count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(
    ("name", "delta"),
    [(name, delta) for name in HISTORIES for delta in DELTAS if (name, delta) not in UNLIKE],
)
def test_rdp_is_that_of_dp_accounting(name, delta):
    theirs = of_others(RdpAccountant(), HISTORIES[name], delta)
    assert epsilon_of(HISTORIES[name], delta) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("order", [1.1, 1.5, 3.3, 12])
def test_the_divergence_is_its_integral(order):
    noise, rate = 0.8, 0.2

    def integrand(x):  # E of the likelihood ratio to the power of the order
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return norm.pdf(x, scale=noise) * ratio**order

    expected = math.log(quad(integrand, -15, 25, points=[0, 1, order])[0]) / (order - 1)
    assert _curve(noise, rate)[ORDERS.index(order)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_both_are_above_the_tightest_bound(history):
    """PRV is off by 0.01 at most, which is on the safe side; RDP is further up."""
    least = of_others(PLDAccountant(value_discretization_interval=1e-3), history, 1e-5)
    prv = epsilon_of(history, 1e-5, "prv")
    assert least - 1e-3 <= prv <= least + 0.02
    assert prv <= epsilon_of(history, 1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_no_noise_and_no_steps(accountant):
    assert epsilon_of([], 1e-5, accountant) == 0
    assert epsilon_of([Steps(0.0, 0.1, 1)], 1e-5, accountant) == math.inf
    assert epsilon_of([Steps(math.nan, 1.0, 1)], 1e-5, accountant) == math.inf
    assert epsilon_of([Steps(1.0, 0.1, 1), Steps(0.0, 1.0, 1)], 1e-5, accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("rate", "delta"), [(1.0, 1e-5), (0.01, 1e-5), (1.0, 0.5)])
def test_noise_beyond_all_use_costs_no_more_than_less_of_it(accountant, rate, delta):
    noises = [0.0, 1e-200, 1e-7, 1e-3, 0.1, 1.0, 1e3, 1e8, 1e200, 1e300]
    told = [epsilon_of([Steps(noise, rate, 3)], delta, accountant) for noise in noises]
    assert told[:3] == [math.inf] * 3
    assert told == sorted(told, reverse=True)
    assert 0 <= told[-1] < 0.01


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.5, 0.999])
def test_a_large_epsilon_is_that_of_rdp_and_finite(delta):
    history = [Steps(0.05, 1.0, 10)]
    epsilon = epsilon_of(history, delta, "prv")
    assert 30 < epsilon == epsilon_of(history, delta) < math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_where_the_steps_stand_in_the_history_does_not_matter(accountant):
    apart = [Steps(1.0, 0.1, 30), Steps(2.0, 1.0, 1), Steps(1.0, 0.1, 70)]
    together = [Steps(2.0, 1.0, 1), Steps(1.0, 0.1, 100)]
    ours, theirs = (epsilon_of(history, 1e-5, accountant) for history in (apart, together))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_prv_that_fails_falls_back_on_rdp(monkeypatch):
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


BEFORE = [Steps(2.0, 1.0, 2)]
ONE = Steps(0.0, 1.0, 1)


@pytest.mark.parametrize(
    ("target", "rate", "count", "history"),
    [
        (8.0, 1.0, 10, []),
        (1.0, 0.1, 50, []),
        (0.01, 1.0, 5, []),
        (0.5, 1e-3, 1000, []),
        (100.0, 1.0, 1, []),
        (6.0, 1.0, 10, BEFORE),
        (6.0, 0.1, 20, BEFORE),
    ],
)
def test_the_noise_is_within_the_target_and_hardly_more(target, rate, count, history):
    planned = Steps(0.0, rate, count)
    noise = noise_for(target, 1e-5, planned, history)
    assert epsilon_of([*history, replace(planned, noise_multiplier=noise)], 1e-5) <= target
    less = replace(planned, noise_multiplier=noise * 0.99)
    assert epsilon_of([*history, less], 1e-5) > target


@pytest.mark.parametrize("history", [[], BEFORE])
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
        (1.0, 1e-5, BEFORE),  # all is spent
        (epsilon_of(BEFORE, 1e-5) * 0.999, 1e-5, BEFORE),
        (5.0, 1e-5, [Steps(0.0, 1.0, 1)]),
        (1e-4, 1e-12, []),
        (0.0, 1e-5, []),
    ],
)
def test_no_noise_is_enough(target, delta, history):
    assert noise_for(target, delta, Steps(0.0, 1.0, 1), history) is None


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("part_spent", "enough"), [(0.1, True), (0.5, True), (0.999, False)])
def test_a_sliver_of_the_budget_buys_nothing(accountant, part_spent, enough):
    before = [Steps(noise_for(2.0 * part_spent, 1e-5, ONE, (), accountant), 1.0, 1)]
    noise = noise_for(2.0, 1e-5, ONE, before, accountant)
    assert (noise is not None) == enough
    # It is for want of budget that there is none: so much noise would stay within it.
    much = replace(ONE, noise_multiplier=1e4)
    assert epsilon_of([*before, much], 1e-5, accountant) <= 2.0


def test_the_noise_that_was_planned_does_not_count():
    noises = {noise_for(2.0, 1e-5, Steps(noise, 1.0, 3)) for noise in (0.0, 0.1, 50.0)}
    assert len(noises) == 1


def test_a_budget_beyond_use_still_gets_some_noise():
    noise = noise_for(1e9, 1e-5, Steps(0.0, 1.0, 1))
    assert 0 < noise <= 1e-2
    assert np.isfinite(epsilon_of([Steps(noise, 1.0, 1)], 1e-5))
