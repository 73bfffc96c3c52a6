"""Secret random numbers: their distribution, and what they depend on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from fedattn_app.privacy import randomness
from fedattn_app.privacy.randomness import SecretRandom

FALSE_ALARM_RATE = 1e-6  # of a correct generator; the seeds are fixed, so results repeat


def normal(random, count, deviation=1.0, dtype=torch.float64):
    values = torch.zeros(count, dtype=dtype)
    random.add_normal(values, deviation)
    return values.numpy()


def correlation(first, second):
    return abs(np.corrcoef(first, second)[0, 1])


def test_uniform_numbers_fill_the_unit_interval():
    drawn = SecretRandom.from_seed(1).uniform(200_000)
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > FALSE_ALARM_RATE
    assert drawn.mean() == pytest.approx(1 / 2, abs=5 / (12 * len(drawn)) ** 0.5)
    assert drawn.var() == pytest.approx(1 / 12, abs=5 / (180 * len(drawn)) ** 0.5)
    assert correlation(drawn[1:], drawn[:-1]) < 5 / len(drawn) ** 0.5


def test_uniform_numbers_have_all_53_bits_of_a_float():
    whole = SecretRandom.from_seed(1).uniform(1000) * 2.0**53
    assert torch.equal(whole, whole.round())
    assert (whole % 2).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.9])
def test_each_example_is_sampled_at_the_rate(rate):
    sampled = int((SecretRandom.from_seed(2).uniform(100_000) < rate).sum())
    assert stats.binomtest(sampled, 100_000, rate).pvalue > FALSE_ALARM_RATE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deviation", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_is_normal(seed, deviation, dtype):
    drawn = normal(SecretRandom.from_seed(seed), 100_001, deviation, dtype).astype(np.float64)
    assert stats.kstest(drawn / deviation, "norm").pvalue > FALSE_ALARM_RATE
    squares = ((drawn / deviation) ** 2).sum()
    assert FALSE_ALARM_RATE / 2 < stats.chi2.cdf(squares, len(drawn)) < 1 - FALSE_ALARM_RATE / 2
    assert np.abs(drawn).max() < 7 * deviation


def test_the_halves_of_box_and_muller_are_independent():
    drawn = normal(SecretRandom.from_seed(3), 200_000)
    cosines, sines = drawn[:100_000], drawn[100_000:]
    bound = 5 / 100_000**0.5
    assert correlation(cosines, sines) < bound
    assert correlation(cosines**2, sines**2) < bound
    assert correlation(np.abs(cosines), np.abs(sines)) < bound
    assert correlation(drawn[1:], drawn[:-1]) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "largest"), [(b"\0", 9.42), (b"\x80", 0.089)])
def test_noise_is_finite_at_the_ends_of_the_interval(bits, largest, dtype):
    random = SecretRandom()
    random._stream = SimpleNamespace(update=lambda zeros: bits * len(zeros))
    assert normal(random, 9, dtype=dtype).max() == pytest.approx(largest, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_added_in_place(dtype):
    values = torch.arange(5, dtype=dtype)
    SecretRandom.from_seed(1).add_normal(values, 2.0)
    expected = np.arange(5) + normal(SecretRandom.from_seed(1), 5, 2.0)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 9, 70_000])
def test_normal_numbers_are_the_noise_of_deviation_one_in_double_precision(count):
    drawn = SecretRandom.from_seed(6).normal(count)
    assert drawn.dtype == torch.float64
    expected = normal(SecretRandom.from_seed(6), count, dtype=torch.float64)
    np.testing.assert_array_equal(drawn.numpy(), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 23])
def test_every_element_gets_noise_at_any_length(monkeypatch, count):
    monkeypatch.setattr(randomness, "BLOCK_SIZE", 8)
    drawn = normal(SecretRandom.from_seed(4), count)
    assert len(set(drawn.tolist())) == count
    assert drawn.all()


@pytest.mark.parametrize("block", [2, 64, 65, 1 << 20])
def test_noise_in_blocks_is_normal_and_never_repeats(monkeypatch, block):
    monkeypatch.setattr(randomness, "BLOCK_SIZE", block)
    drawn = normal(SecretRandom.from_seed(5), 20_001)
    assert stats.kstest(drawn, "norm").pvalue > FALSE_ALARM_RATE
    assert len(set(drawn.tolist())) == len(drawn)


def test_a_stream_continues():
    random = SecretRandom.from_seed(1)
    first, second = random.uniform(50), random.uniform(50)
    assert torch.equal(torch.cat((first, second)), SecretRandom.from_seed(1).uniform(100))
    assert not torch.equal(first, second)


def test_fresh_streams_never_repeat():
    first = {float(SecretRandom().uniform(1)) for _ in range(1000)}
    assert len(first) == 1000


@pytest.mark.parametrize("seed", [(1,), (1, "train"), ("a", 2, 3)])
def test_streams_from_a_seed_repeat(seed):
    assert torch.equal(
        SecretRandom.from_seed(*seed).uniform(9), SecretRandom.from_seed(*seed).uniform(9)
    )


def test_other_seeds_give_other_streams():
    seeds = [(1,), (2,), (1 + 2**32,), ("1",), (1, 1), (11,), (1, "train"), (1, "evaluate"), ()]
    assert len({float(SecretRandom.from_seed(*seed).uniform(1)) for seed in seeds}) == len(seeds)


def seed_everything():
    torch.manual_seed(1)
    np.random.seed(1)


def test_seeds_of_torch_and_numpy_have_no_effect():
    drawn = []
    for _ in range(2):
        seed_everything()
        drawn.append(SecretRandom().uniform(9))
    assert not torch.equal(*drawn)


def test_generators_of_torch_and_numpy_are_not_used():
    seed_everything()
    expected = torch.rand(1), np.random.random()
    seed_everything()
    normal(SecretRandom(), 9)
    assert (torch.rand(1), np.random.random()) == expected


def test_torch_keeps_32_bits_of_a_seed():
    """This is why torch's generator is not used: an attacker can try all of its streams."""
    first, second = (torch.Generator().manual_seed(seed) for seed in (7, 7 + 2**32))
    assert torch.equal(torch.rand(9, generator=first), torch.rand(9, generator=second))
