"""DP-SGD: without noise it equals clipped SGD on the samples; the noise has its deviation."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.per_example import clipped_sum, flat, gradients, norms
from scipy import stats

from fedattn_app.config import ModelConfig, TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.privacy.dp_sgd import Noise, Sampling, train_privately
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OneByOne, OpacusHooks
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.loop import TrainingDivergedError, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

LABELS = 3
CONFIG = ModelConfig(layers=1, width=16, heads=2, feedforward=24, vocabulary=40, max_length=9)
SGD = TrainingConfig(optimizer="sgd", learning_rate=0.5, weight_decay=0.0)
HALF = Sampling(rate=0.5, steps=4, batch_size=20.0)
UNCLIPPED, NOISELESS = 1e9, 0.0


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (40, 9), generator=generator)
    lengths = torch.randint(1, 10, (40,), generator=generator)
    ids = torch.where(torch.arange(9) < lengths[:, None], ids, 0)
    return Examples(TextBatch.of(ids.int(), lengths.int()), ids[:, 0] % LABELS)


@pytest.fixture
def model():
    return build_model(CONFIG, LABELS, seed=1)


def names_of(model, shared="all"):
    return scope_of(shared, "frozen", BUILT_IN, get_arrays(model)).trainable


def train_copy(
    model,
    examples,
    sampling=HALF,
    noise=NOISELESS,
    clip=UNCLIPPED,
    config=SGD,
    shared="all",
    engine=BookKeeping,
    random=None,
):
    """Return a copy of `model` after `train_privately`."""
    model = copy.deepcopy(model)
    random = random or SecretRandom.from_seed(1)
    names = names_of(model, shared)
    noise = Noise(noise, clip)
    train_privately(model, names, examples, config, sampling, noise, engine, random)
    return model


def vector(model):
    return flat(model.parameters()).double()


def changed(before, after):
    before, after = get_arrays(before), get_arrays(after)
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def sgd_by_hand(model, examples, sampling, clip, random, noise=NOISELESS):
    """Return the parameters after the same steps, with the same random stream."""
    model = copy.deepcopy(model)
    for _ in range(sampling.steps):
        sampled = (random.uniform(len(examples)) < sampling.rate).nonzero()[:, 0]
        gradient = torch.zeros(len(vector(model)), dtype=torch.float64)
        if len(sampled):
            gradient += flat(clipped_sum(gradients(model, examples[sampled]), clip))
        random.add_normal(gradient, noise * clip)
        moved = vector(model) - SGD.learning_rate * gradient / sampling.batch_size
        torch.nn.utils.vector_to_parameters(moved.float(), model.parameters())
    return vector(model)


# Without noise


@pytest.mark.parametrize("shared", ["all", "attention", "attention+head", "head"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_with_all_examples_and_no_noise_or_clipping_it_is_plain_training(
    model, examples, optimizer, shared
):
    config = TrainingConfig(optimizer=optimizer, learning_rate=0.05, batch_size=len(examples))
    config = replace(config, weight_decay=0.1, local_epochs=2)
    sampling = Sampling.of(len(examples), config, public=True)
    assert sampling == Sampling(rate=1.0, steps=2, batch_size=len(examples))
    ours = train_copy(model, examples, sampling, config=config, shared=shared)
    train(model, names_of(model, shared), examples, config, seed=1)
    torch.testing.assert_close(vector(ours), vector(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks, OneByOne])
@pytest.mark.parametrize("clip", [UNCLIPPED, 2.0, 0.1])
def test_sampled_training_without_noise_is_clipped_sgd_by_hand(model, examples, clip, engine):
    clips = norms(gradients(model, examples)) > clip
    assert clips.any() == (clip < UNCLIPPED)
    assert clips.all() == (clip == 0.1)
    ours = vector(
        train_copy(model, examples, clip=clip, engine=engine, random=SecretRandom.from_seed(7))
    )
    expected = sgd_by_hand(model, examples, HALF, clip, SecretRandom.from_seed(7))
    start = vector(model)
    assert (ours - expected).norm() <= 1e-5 * (expected - start).norm()


def test_sampled_training_with_noise_is_noisy_clipped_sgd_by_hand(model, examples):
    ours = vector(
        train_copy(model, examples, noise=0.7, clip=1.0, random=SecretRandom.from_seed(7))
    )
    expected = sgd_by_hand(model, examples, HALF, 1.0, SecretRandom.from_seed(7), noise=0.7)
    assert (ours - expected).norm() <= 1e-5 * (expected - vector(model)).norm()


def test_the_physical_batch_size_changes_nothing(model, examples):
    results = [
        vector(train_copy(model, examples, clip=2.0, config=replace(SGD, physical_batch_size=size)))
        for size in (1, 16, 1000)
    ]
    distance = (results[1] - vector(model)).norm()
    assert (results[0] - results[1]).norm() <= 1e-5 * distance
    assert (results[2] - results[1]).norm() <= 1e-5 * distance


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks, OneByOne])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("shared", ["all", "attention", "attention+head", "head"])
def test_only_the_trainable_parameters_change(model, examples, shared, optimizer, engine):
    few = examples[torch.arange(4)]
    config = TrainingConfig(optimizer=optimizer)
    after = train_copy(model, few, noise=1.0, clip=1.0, config=config, shared=shared, engine=engine)
    assert changed(model, after) == names_of(model, shared)


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks, OneByOne])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_padding_of_one_text_does_not_affect_others(model, examples, engine, multiple):
    model.embedding.weight.data[0] = torch.nan
    long = examples[examples.inputs.lengths.argsort()[-1:].repeat(8)]
    one_step = Sampling(rate=1.0, steps=1, batch_size=1.0)
    results = []
    for lengths in ([4] * 8, [4] * 7 + [9]):
        cut = TextBatch.of(long.inputs.ids, torch.tensor(lengths).int())
        padded = replace(long, inputs=cut.pad_independently(9, multiple))
        settings = {"config": SGD, "shared": "attention", "engine": engine, "clip": 1e-3}
        results.append(vector(train_copy(model, padded, one_step, **settings)).nan_to_num())
    assert not torch.equal(results[0], vector(model).nan_to_num())
    assert (results[0] - results[1]).norm() <= 2 * SGD.learning_rate * 1e-3 * (1 + 1e-4)


def test_no_gradients_and_hooks_remain_on_the_model(model, examples):
    after = train_copy(model, examples, noise=1.0, clip=1.0, shared="attention")
    for name, parameter in after.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == (name in names_of(model, "attention"))
    assert not any(module._forward_hooks for module in after.modules())


# Sampling


def test_a_step_without_examples_adds_only_noise(model, examples):
    none = Sampling(rate=1e-12, steps=3, batch_size=5.0)
    ours = vector(
        train_copy(model, examples, none, noise=2.0, clip=0.5, random=SecretRandom.from_seed(3))
    )
    expected = sgd_by_hand(model, examples, none, 0.5, SecretRandom.from_seed(3), noise=2.0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    moved = (ours - vector(model)) / (SGD.learning_rate * 2.0 * 0.5 / 5.0)
    assert moved.var() == pytest.approx(3, rel=0.15)


def test_each_step_samples_afresh_at_the_rate(model, examples):
    batches = []

    class Recording(OneByOne):
        def add(self, batch, max_grad_norm, sums):
            batches.append(batch.labels.shape[0])

    sampling = Sampling(rate=0.3, steps=400, batch_size=12.0)
    config = replace(SGD, physical_batch_size=1000)
    same_length = TextBatch.of(examples.inputs.ids, torch.full((40,), 9).int())
    same_size = replace(examples, inputs=same_length)
    train_copy(model, same_size, sampling, config=config, engine=Recording)
    assert stats.binomtest(sum(batches), 400 * 40, 0.3).pvalue > 1e-6
    assert np.var(batches) == pytest.approx(40 * 0.3 * 0.7, rel=0.4)


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "public", "expected"),
    [
        (1, 16, True, (1.0, 1, 1)),
        (1, 16, False, (1.0, 1, 1)),
        (40, 16, True, (16 / 40, 3, 16)),
        (40, 16, False, (16 / 32, 2, 16)),
        (490, 16, True, (16 / 490, 31, 16)),
        (490, 16, False, (16 / 256, 16, 16)),
        (512, 16, True, (16 / 512, 32, 16)),
        (512, 16, False, (16 / 512, 32, 16)),
        (40, 1000, True, (1.0, 1, 40)),
        (40, 1000, False, (1.0, 1, 32)),
        (40, 40, True, (1.0, 1, 40)),
        (40, 40, False, (1.0, 1, 32)),
        (3, 1, False, (1 / 2, 2, 1)),
    ],
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_sampling_has_these_rates_steps_and_divisors(
    num_examples, batch_size, public, expected, epochs
):
    config = TrainingConfig(batch_size=batch_size, local_epochs=epochs)
    rate, steps, divisor = expected
    assert Sampling.of(num_examples, config, public) == Sampling(rate, steps * epochs, divisor)


@pytest.mark.parametrize("batch_size", [1, 16, 100, 5000])
def test_a_secret_number_of_examples_affects_sampling_only_by_its_power_of_two(batch_size):
    config = TrainingConfig(batch_size=batch_size)
    of = [Sampling.of(n, config, public=False) for n in range(1, 1025)]
    for power in range(10):
        assert len(set(of[2**power - 1 : 2 ** (power + 1) - 1])) == 1
    assert all(0 < sampling.rate <= 1 for sampling in of)


# Noise


def noise_of(model, examples, noise, clip, *seed, batch_size=10.0):
    """The difference that noise makes in one step, with the same samples."""
    sampling = Sampling(rate=0.3, steps=1, batch_size=batch_size)
    config = replace(SGD, learning_rate=1.0)
    results = [
        vector(
            train_copy(
                model, examples, sampling, n, clip, config, random=SecretRandom.from_seed(*seed)
            )
        )
        for n in (noise, NOISELESS)
    ]
    return (results[0] - results[1]).numpy()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("noise", "clip", "batch_size"),
    [(1.0, 1.0, 10.0), (0.5, 1.0, 10.0), (5.0, 1.0, 2.5), (1.0, 0.3, 3.0), (3.0, 20.0, 256.0)],
)
def test_noise_has_the_requested_deviation(model, examples, noise, clip, batch_size, seed):
    drawn = noise_of(model, examples, noise, clip, seed, batch_size=batch_size)
    drawn /= noise * clip / batch_size
    assert 1e-6 / 2 < stats.chi2.cdf((drawn**2).sum(), len(drawn)) < 1 - 1e-6 / 2
    assert abs(drawn.mean()) < 5 / math.sqrt(len(drawn))
    assert stats.kstest(drawn, "norm").pvalue > 1e-6


def test_noise_of_nodes_rounds_and_steps_is_independent(model, examples):
    seeds = [(node, server_round) for node in range(4) for server_round in range(3)]
    drawn = [noise_of(model, examples, 1.0, 1.0, *seed) for seed in seeds]
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 5 / math.sqrt(len(drawn[0]))


def test_noise_is_fresh_in_each_step(model, examples):
    none = Sampling(rate=1e-12, steps=1, batch_size=1.0)
    one = train_copy(model, examples, none, noise=1.0, clip=1.0)
    two = train_copy(model, examples, replace(none, steps=2), noise=1.0, clip=1.0)
    first, second = vector(one) - vector(model), vector(two) - vector(one)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))


def test_secret_noise_does_not_depend_on_seeds(model, examples):
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        results.append(train_copy(model, examples, noise=1.0, clip=1.0, random=SecretRandom()))
    first, second = (vector(end) - vector(model) for end in results)
    assert not torch.equal(first, second)


# Seeds and errors


def test_the_same_seed_gives_the_same_bits(model, examples):
    torch.manual_seed(5)
    first = train_copy(model, examples, noise=1.0, clip=1.0)
    torch.manual_seed(6)
    assert changed(first, train_copy(model, examples, noise=1.0, clip=1.0)) == set()


def test_the_global_generator_is_not_used(model, examples):
    before = torch.get_rng_state()
    train_copy(model, examples, noise=1.0, clip=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_diverged_training_raises(model, examples):
    config = replace(SGD, learning_rate=3e38)
    with pytest.raises(TrainingDivergedError, match="learning-rate"):
        train_copy(model, examples, noise=1.0, clip=1e3, config=config)


def test_an_overflow_in_the_last_step_raises(model, examples):
    one_step = Sampling(rate=1.0, steps=1, batch_size=1.0)
    with pytest.raises(TrainingDivergedError):
        train_copy(model, examples, one_step, clip=1e3, config=replace(SGD, learning_rate=3e38))


def test_an_engine_that_raises_is_closed(model, examples):
    closed = []

    class Raising(OneByOne):
        def add(self, batch, max_grad_norm, sums):
            raise MemoryError

        def close(self):
            closed.append(self)

    with pytest.raises(MemoryError):
        train_copy(model, examples, engine=Raising)
    assert len(closed) == 1
