"""The Rényi filter: its divergence and conversion, its limit, and an adversary that adapts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fedattn_app.privacy.accounting import RDP_ORDERS, Steps, conversion, epsilon_of, noise_for
from fedattn_app.privacy.privacy_filter import PrivacyFilter

LIMITS = [(0.5, 1e-5), (1.0, 1e-5), (8.0, 1e-5), (2.0, 1e-8), (3.0, 1e-3), (40.0, 1e-5)]
HISTORIES = {
    "one step": [Steps(4.0, 1.0, 1)],
    "few examples": [Steps(1.1, 0.01, 500)],
    "an eighth": [Steps(2.0, 1 / 8, 92)],
    "mixed": [Steps(3.0, 64 / 490, 8), Steps(2.0, 16 / 90, 30), Steps(15.0, 1.0, 3)],
}
ROUNDING = 1e-9

noises = st.sampled_from([0.7, 1.0, 1.6, 3.0, 9.0, 40.0])
rates = st.sampled_from([0.01, 16 / 90, 64 / 490, 1.0])
steps = st.builds(Steps, noises, rates, st.integers(1, 2000))
histories = st.lists(steps, max_size=5)
filters = st.sampled_from(LIMITS).map(lambda limit: PrivacyFilter(*limit))


def divergence_by_integral(run, order):
    """Of one step, at any order: log E[ratio ** order] / (order - 1)."""
    noise, rate = run.noise_multiplier, run.sample_rate

    def integrand(x):
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return math.exp(norm.logpdf(x, scale=noise) + order * math.log(ratio))

    points = [0, 1, order]
    power, _ = quad(integrand, -12 * noise, 12 * noise + order, points=points, epsrel=1e-12)
    return math.log(power) / (order - 1)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("limit", LIMITS)
def test_it_spends_the_divergence_at_the_single_order(limit, history):
    privacy_filter = PrivacyFilter(*limit)
    order = privacy_filter.order
    exact = sum(run.count * divergence_by_integral(run, order) for run in history)
    spent = privacy_filter.budget - (limit[0] - privacy_filter.epsilon(history))
    assert spent == pytest.approx(exact, rel=1e-5)
    assert privacy_filter.allows(history) == (exact <= privacy_filter.budget)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("limit", LIMITS)
def test_epsilon_is_that_of_dp_accounting_at_the_single_order(limit, history):
    privacy_filter = PrivacyFilter(*limit)
    order = privacy_filter.order
    accountant = RdpAccountant(orders=[order])
    for run in history:
        noise = GaussianDpEvent(run.noise_multiplier)
        accountant.compose(PoissonSampledDpEvent(run.sample_rate, noise), run.count)
    theirs = accountant.get_epsilon(privacy_filter.delta)
    # Between integers dp_accounting's divergence is a little larger than the integral.
    precision = 1e-6 if order.is_integer() else 1e-2
    assert privacy_filter.epsilon(history) == pytest.approx(theirs, rel=precision)
    assert privacy_filter.allows(history) == (theirs <= privacy_filter.max_epsilon)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_history_that_spends_the_budget_has_the_epsilon_of_the_limit(limit):
    """Without sampling the divergence at α is α / 2σ², so this σ spends the budget exactly."""
    privacy_filter = PrivacyFilter(*limit)
    noise = math.sqrt(privacy_filter.order / (2 * privacy_filter.budget))
    assert privacy_filter.epsilon([Steps(noise, 1.0, 1)]) == pytest.approx(limit[0], rel=1e-9)
    assert privacy_filter.allows([Steps(noise * 1.0001, 1.0, 1)])
    assert not privacy_filter.allows([Steps(noise * 0.9999, 1.0, 1)])


@given(privacy_filter=filters, history=histories)
@settings(max_examples=100, deadline=None)
def test_it_is_never_below_the_accountant_and_never_above_its_limit(privacy_filter, history):
    epsilon = privacy_filter.epsilon(history)
    plain = epsilon_of(history, privacy_filter.delta)
    assert epsilon >= plain
    if privacy_filter.allows(history):
        assert plain <= epsilon <= privacy_filter.max_epsilon + ROUNDING
    else:
        assert epsilon > privacy_filter.max_epsilon - ROUNDING


@given(privacy_filter=filters, history=histories, more=steps)
@settings(max_examples=100, deadline=None)
def test_more_steps_never_cost_less(privacy_filter, history, more):
    assert privacy_filter.epsilon([*history, more]) >= privacy_filter.epsilon(history)
    if privacy_filter.allows([*history, more]):
        assert privacy_filter.allows(history)


@given(
    limits=st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0]), min_size=2, max_size=2),
    delta=st.sampled_from([1e-8, 1e-5, 1e-3]),
    kinds=st.lists(st.tuples(noises, rates), min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_what_a_limit_allows_a_higher_limit_allows(limits, delta, kinds):
    low, high = (PrivacyFilter(limit, delta) for limit in sorted(limits))
    assert high.order <= low.order
    history = [Steps(noise, rate, 1) for noise, rate in kinds]
    if low.allows(history):
        count = 1
        while low.allows([replace(run, count=2 * count) for run in history]):
            count *= 2
        assert high.allows([replace(run, count=count) for run in history])


@pytest.mark.parametrize("seed", range(8))
def test_an_adversary_that_adapts_never_passes_the_limit(seed):
    """It sets noise, rate and count of the next steps by the noise that it has seen."""
    random = np.random.default_rng(seed)
    privacy_filter = PrivacyFilter(4.0, 1e-5)
    history, refused = [], 0
    while refused < 20:
        answer = random.normal()
        more = Steps(
            noise_multiplier=round(math.exp(abs(answer)), 1),
            sample_rate=[0.01, 64 / 490, 1.0][int(10 * abs(answer)) % 3],
            count=1 + int(100 * abs(answer)) % 40,
        )
        if privacy_filter.allows([*history, more]):
            history.append(more)
        else:
            refused += 1
    assert len(history) > 1
    assert epsilon_of(history, 1e-5) <= privacy_filter.epsilon(history) <= 4.0 + ROUNDING


def gaussian_delta(epsilon, noise):
    """The exact δ of one Gaussian step at any ε, 0 for infinite noise."""
    if math.isinf(noise):
        return max(0.0, -math.expm1(epsilon))
    log_second = epsilon + norm.logcdf(-1 / (2 * noise) - epsilon * noise)
    return norm.cdf(1 / (2 * noise) - epsilon * noise) - math.exp(log_second)


@pytest.mark.parametrize("limit", [(1.0, 1e-5), (8.0, 1e-5), (3.0, 1e-3)])
@pytest.mark.parametrize("threshold", [-math.inf, 0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_the_exact_delta_of_two_adaptive_steps_is_within_the_limit(limit, threshold, fraction):
    """The second step is taken only where the first answer already tells much.

    One example adds 1 to the sum, and nothing is sampled. The first step spends a fraction of the
    budget and answers x. Where x is above the threshold, the adversary takes all of the rest.
    """
    privacy_filter = PrivacyFilter(*limit)
    epsilon, delta = limit

    def largest(before, budget):
        noise = math.sqrt(privacy_filter.order / (2 * budget)) * 1.000001
        assert privacy_filter.allows([*before, Steps(noise, 1.0, 1)])
        return noise

    first = largest([], fraction * privacy_filter.budget)
    before = [Steps(first, 1.0, 1)]
    second = largest(before, (1 - fraction) * privacy_filter.budget)

    def density(x):  # of the δ, where the first answer is x
        loss = (2 * x - 1) / (2 * first**2)
        more = gaussian_delta(epsilon - loss, second if x > threshold * first else math.inf)
        return norm.pdf(x, loc=1, scale=first) * more

    points = sorted({-5 * first, min(max(threshold, -5), 5) * first, 5 * first, epsilon * first**2})
    exact, _ = quad(density, -15 * first, 15 * first + 1, points=points, limit=500)
    assert 0 < exact <= delta


@pytest.mark.parametrize("limit", LIMITS)
def test_the_order_is_where_the_accountant_finds_the_epsilon_of_a_typical_run(limit):
    run = Steps(0.0, 1 / 8, 100)
    run = replace(run, noise_multiplier=noise_for(*limit, run))
    privacy_filter = PrivacyFilter(*limit)
    assert privacy_filter.epsilon([run]) == pytest.approx(epsilon_of([run], limit[1]), rel=1e-9)
    assert privacy_filter.allows([run])


@pytest.mark.parametrize("limit", [(1e-6, 1e-5), (1e-3, 1e-12)])
def test_a_limit_that_is_too_small_allows_no_step(limit):
    privacy_filter = PrivacyFilter(*limit)
    assert privacy_filter.budget <= 0
    assert not privacy_filter.allows([Steps(1e300, 0.001, 1)])


def test_no_steps_cost_nothing_and_steps_without_noise_are_never_allowed():
    privacy_filter = PrivacyFilter(1e9, 1e-5)
    assert privacy_filter.epsilon([]) == 0
    assert privacy_filter.allows([])
    for noise in (0.0, 1e-200, math.nan):
        assert privacy_filter.epsilon([Steps(noise, 1.0, 1)]) == math.inf
        assert not privacy_filter.allows([Steps(5.0, 0.1, 1), Steps(noise, 1.0, 1)])


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.5, 0.999])
@pytest.mark.parametrize("max_epsilon", [1e-9, 0.1, 8.0, 1e4, 1e12])
def test_any_limit_has_an_order(max_epsilon, delta):
    privacy_filter = PrivacyFilter(max_epsilon, delta)
    assert privacy_filter.order in RDP_ORDERS
    assert math.isfinite(privacy_filter.budget)


@pytest.mark.parametrize("delta", [1e-12, 1e-5])
def test_a_limit_is_too_small_where_no_order_has_a_budget(delta):
    smallest = float(conversion(delta).min())
    for factor, too_small in ((0.5, True), (1.0, True), (1.1, False), (4.0, False)):
        limit = PrivacyFilter(smallest * factor, delta)
        assert limit.is_too_small is too_small
        assert (limit.budget <= 0) is too_small
