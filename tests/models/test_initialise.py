"""Initial values: their distributions, what they depend on, and which parameters get them."""

import math
from hashlib import sha256

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedattn_app.models.initialise import (
    WORDS_PER_BLOCK,
    fill_normal,
    fill_uniform,
    initialise,
    initialise_new,
)

COUNT = 1_000_000


class Model(nn.Module):
    """One module of each type that has initial values."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(500, 40, padding_idx=3)
        self.plain = nn.Embedding(500, 40)
        self.first = nn.Linear(100, 300)
        self.second = nn.Linear(100, 300, bias=False)
        self.norm = nn.LayerNorm(40)


def drawn(fill, scale, seed=0, name="x", count=COUNT):
    tensor = torch.empty(count)
    fill(tensor, scale, seed, name)
    return tensor.numpy()


def set_bits(word):
    return bin(word).count("1")


def test_the_uniform_distribution():
    values = drawn(fill_uniform, 0.25)
    assert stats.kstest(values, "uniform", (-0.25, 0.5)).pvalue > 0.01
    assert values.mean() == pytest.approx(0, abs=4 * 0.25 / math.sqrt(3 * COUNT))
    assert 0.249999 < np.abs(values).max() < 0.25
    assert values.all()


def test_the_normal_distribution():
    values = drawn(fill_normal, 3.0).astype(np.float64) / 3
    assert values.mean() == pytest.approx(0, abs=4 / math.sqrt(COUNT))
    assert values.var() == pytest.approx(1, abs=4 * math.sqrt(2 / COUNT))
    assert stats.skew(values) == pytest.approx(0, abs=4 * math.sqrt(6 / COUNT))
    assert stats.kurtosis(values) == pytest.approx(-0.041, abs=4 * math.sqrt(24 / COUNT))
    # 0.003 for the distribution itself, and a sample's distance at a p-value of 0.001.
    assert stats.kstest(values, "norm").statistic < 0.003 + 1.95 / math.sqrt(COUNT)
    assert 4.5 < np.abs(values).max() < 7.1


def test_the_exact_moments_of_the_normal_substitute():
    """The cumulants of 48 coins and of a uniform fraction with 2¹⁶ values add up."""
    steps = 2.0**16
    variance = 48 / 4 + (1 - steps**-2) / 12
    fourth = 48 / 4 * (1 - 6 / 4) - (1 - steps**-4) / 120
    assert fourth / variance**2 == pytest.approx(-0.041, abs=5e-4)
    assert 24.5 / math.sqrt(variance) < 7.1
    edges = np.arange(50) - 24.5  # the distribution function is linear between them
    exact = np.concatenate(([0], stats.binom.cdf(np.arange(49), 48, 0.5)))
    fine = np.linspace(-24.5, 24.5, 100_001)
    distance = np.abs(np.interp(fine, edges, exact) - stats.norm.cdf(fine / math.sqrt(variance)))
    assert distance.max() < 0.003


@pytest.mark.parametrize(
    ("fill", "value_of"),
    [
        (fill_uniform, lambda word: ((word >> 40) * 2 + 1 - 2**24) * 2**-24),
        (
            fill_normal,
            lambda word: (
                (2 * (set_bits(word >> 16) * 2**16 + word % 2**16) + 1 - 49 * 2**16)
                / math.sqrt(4 * (2**32 * 12 + (2**32 - 1) / 12))
            ),
        ),
    ],
    ids=["uniform", "normal"],
)
def test_each_value_is_made_of_one_word_of_philox(fill, value_of):
    key = int.from_bytes(sha256(b"7/a.weight").digest()[:16], "big")
    words = np.random.Philox(key=key).random_raw(2 * WORDS_PER_BLOCK + 5).tolist()
    values = drawn(fill, 1.0, 7, "a.weight", len(words))
    np.testing.assert_allclose(values, list(map(value_of, words)), rtol=2**-22, atol=0)


@pytest.mark.parametrize("fill", [fill_uniform, fill_normal])
def test_seeds_and_names_give_independent_values(fill):
    columns = [drawn(fill, 1.0, *key, 100_000) for key in ((0, "x"), (1, "x"), (0, "y"))]
    correlations = np.corrcoef(columns)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("fill", [fill_uniform, fill_normal])
def test_a_longer_tensor_begins_with_the_same_values(fill):
    long, short = (drawn(fill, 1.0, count=count) for count in (3 * WORDS_PER_BLOCK, 70))
    assert np.array_equal(long[:70], short)


def test_a_tensor_without_memory_is_left_alone():
    fill_normal(torch.empty(5, device="meta"), 1.0, 0, "x")


def test_each_module_has_the_distribution_that_torch_gives_it():
    ours, theirs = Model(), Model()
    initialise(ours, 1)
    for name, reference in theirs.named_parameters():
        values = ours.get_parameter(name).detach()
        if name.startswith("norm"):
            assert torch.equal(values, reference)
        else:
            count = values.numel()
            assert values.std() == pytest.approx(reference.std().item(), rel=5 / math.sqrt(count))
            same = stats.ks_2samp(values.numpy().ravel(), reference.detach().numpy().ravel())
            assert same.pvalue > 0.001, name
    assert not ours.embedding.weight[3].any()
    assert ours.plain.weight.all()


def test_values_depend_on_seed_and_name_only():
    first, second, other = Model(), Model(), Model()
    second._modules = dict(reversed(second._modules.items()))
    torch.rand(3)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        initialise(model, seed)
    for name, values in first.named_parameters():
        assert torch.equal(values, second.get_parameter(name))
        assert torch.equal(values, other.get_parameter(name)) == name.startswith("norm")
    assert not torch.equal(first.first.weight, first.second.weight)


def test_only_the_named_parameters_are_set():
    model, before = Model(), Model()
    before.load_state_dict(model.state_dict())
    initialise(model, 1, ["first.weight"])
    changed = {
        name for name, p in model.named_parameters() if not p.equal(before.get_parameter(name))
    }
    assert changed == {"first.weight"}


def test_a_layer_norm_that_was_changed_is_reset():
    model = Model()
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    initialise(model, 1)
    assert (model.norm.weight == 1).all()
    assert (model.norm.bias == 0).all()


def test_a_parameter_of_another_module_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2))
    with pytest.raises(TypeError, match=r"1\.weight_ih_l0: no initial values for GRU"):
        initialise(model, 1)


def test_new_parameters_of_a_pretrained_model():
    """Those that the model sets to 0 or 1 keep the value; the rest is drawn."""
    model, before = Model(), Model()
    nn.init.zeros_(model.first.bias)
    before.load_state_dict(model.state_dict())
    new = {"first.weight", "first.bias", "norm.weight", "norm.bias", "plain.weight"}
    initialise_new(model, new, 0.02, 1)
    changed = {
        name for name, p in model.named_parameters() if not p.equal(before.get_parameter(name))
    }
    assert changed == {"first.weight", "plain.weight"}
    assert model.first.weight.std().item() == pytest.approx(0.02, rel=0.03)
