"""Counts by random shares: they add up, and they have the Dirichlet distribution."""

from decimal import localcontext
from random import Random

import numpy as np
import pytest
from scipy import stats

from fedattn_app.data.dirichlet import dirichlet_counts

TOTAL = 10**15


@pytest.mark.parametrize("alpha", [5e-324, 1e-9, 0.01, 0.3, 1.0, 2.5, 1e6, 1e300])
@pytest.mark.parametrize("num_parts", [1, 2, 7])
@pytest.mark.parametrize("total", [0, 1, 1001])
def test_the_counts_add_up(alpha, num_parts, total):
    counts = dirichlet_counts(total, alpha, num_parts, Random(1))
    assert len(counts) == num_parts
    assert sum(counts) == total
    assert min(counts) >= 0


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("num_parts", [2, 5])
def test_each_share_has_the_beta_distribution(alpha, num_parts):
    """One share of Dirichlet(α, …, α) with n parts is Beta(α, (n - 1) α)."""
    random = Random(3)
    draws = [dirichlet_counts(TOTAL, alpha, num_parts, random) for _ in range(1500)]
    shares = np.array(draws) / TOTAL
    for part in (0, num_parts - 1):
        beta = (alpha, (num_parts - 1) * alpha)
        assert stats.kstest(shares[:, part], "beta", beta).pvalue > 0.001


def test_two_shares_have_the_covariance_of_the_distribution():
    """Cov = -α² / (a² (a + 1)) with a = n α, and 4 standard errors of the sample's."""
    random = Random(4)
    shares = np.array([dirichlet_counts(TOTAL, 0.5, 4, random) for _ in range(3000)]) / TOTAL
    expected = -0.25 / (4 * 3)
    products = (shares[:, 0] - 0.25) * (shares[:, 2] - 0.25)
    assert products.mean() == pytest.approx(expected, abs=4 * products.std() / np.sqrt(3000))


def test_large_and_small_concentrations():
    assert dirichlet_counts(1000, 1e300, 4, Random(1)) == [250] * 4
    assert sorted(dirichlet_counts(1000, 1e-9, 4, Random(1))) == [0, 0, 0, 1000]


def test_a_cut_is_rounded_down():
    counts = [dirichlet_counts(total, 2.0, 3, Random(5)) for total in (10, 10**15)]
    cuts = np.cumsum(counts, axis=1)
    assert cuts[0].tolist() == (cuts[1] * 10 // 10**15).tolist()


def test_the_settings_of_decimal_numbers_have_no_effect():
    expected = dirichlet_counts(TOTAL, 0.5, 5, Random(1))
    with localcontext() as context:
        context.prec = 3
        assert dirichlet_counts(TOTAL, 0.5, 5, Random(1)) == expected
