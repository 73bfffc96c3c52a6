"""Local training, compared with the gradients and optimizers of torch."""

import numpy as np
import pytest
import torch
from helpers.training import CONFIG, LABELS, SMALL, changed, make_examples
from torch.nn import functional as F

from fedattn_app.config import ModelConfig, TrainingConfig
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.training.evaluation import evaluate
from fedattn_app.training.loop import TrainingDivergedError, gradient, train
from fedattn_app.training.optimizer import Proximal

pytestmark = pytest.mark.usefixtures("one_thread")

TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@pytest.fixture(scope="module")
def examples():
    return make_examples(48)


@pytest.fixture
def model():
    return build_model(CONFIG, LABELS, seed=1)


def trained(examples, seed=1, model_config=CONFIG, **settings):
    model = build_model(model_config, LABELS, seed=1)
    names = {name for name, _ in model.named_parameters()}
    train(model, names, examples, TrainingConfig(**settings), seed)
    return get_arrays(model)


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
@pytest.mark.parametrize("shared", ["all", "attention", "attention+head", "head"])
def test_only_the_trainable_parameters_change(model, examples, shared, optimizer):
    before = get_arrays(model)
    trainable = scope_of(shared, "frozen", BUILT_IN, before).trainable
    train(model, trainable, examples, TrainingConfig(optimizer=optimizer, local_epochs=2), seed=1)
    assert changed(before, get_arrays(model)) == trainable
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(model, examples):
    assert len(examples) > TrainingConfig.physical_batch_size
    loss = F.cross_entropy(model(examples.inputs), examples.labels)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    config = TrainingConfig(
        optimizer="sgd", learning_rate=1.0, weight_decay=0.0, batch_size=len(examples)
    )
    result = train(model, names, examples, config, seed=1)
    for name, start, step, now in zip(names, before, expected, model.parameters(), strict=True):
        torch.testing.assert_close(start - now, step, rtol=1e-4, atol=1e-6, msg=name)
    assert result.loss == pytest.approx(loss.item())


@pytest.mark.parametrize("count", [0, 1, 16, 17, 48])
def test_the_parts_contain_each_example_once(count):
    inputs = make_examples(count).inputs
    parts = inputs.split_by_size(torch.arange(count), 16)
    assert sorted(place for part in parts for place in part.tolist()) == list(range(count))
    assert all(len(part) <= 16 for part in parts)
    longest = [int(inputs.lengths[part].max()) for part in parts]
    assert longest == sorted(longest)


def test_earlier_trainable_parameters_no_longer_change(model, examples):
    config = TrainingConfig()
    train(model, set(get_arrays(model)), examples, config, seed=1)
    before = get_arrays(model)
    train(model, {"head.bias"}, examples, config, seed=2)
    assert changed(before, get_arrays(model)) == {"head.bias"}


def test_the_embedding_of_padding_stays_zero(examples):
    assert not trained(examples, local_epochs=2)["embedding.weight"][0].any()


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
def test_the_result_depends_on_the_seed_and_not_on_the_global_generator(examples, optimizer):
    config = ModelConfig(**SMALL, dropout=0.3)
    torch.manual_seed(5)
    first = trained(examples, model_config=config, optimizer=optimizer, batch_size=8)
    torch.manual_seed(6)
    second = trained(examples, model_config=config, optimizer=optimizer, batch_size=8)
    assert changed(first, second) == set()


def test_the_order_of_the_examples_depends_on_the_seed(examples):
    first, second = (trained(examples, seed, batch_size=8) for seed in (1, 2))
    assert "head.weight" in changed(first, second)


def test_dropout_depends_on_the_seed(examples):
    config = ModelConfig(**SMALL, dropout=0.3)
    alone = examples[torch.tensor([4])]
    first, second = (trained(alone, seed, model_config=config, optimizer="sgd") for seed in (1, 2))
    assert "head.weight" in changed(first, second)


def test_training_after_an_evaluation_has_dropout(examples):
    config = ModelConfig(**SMALL, dropout=0.3)
    model = build_model(config, LABELS, seed=1)
    evaluate(model, examples, LABELS)
    train(model, set(get_arrays(model)), examples, TrainingConfig(), seed=1)
    assert changed(trained(examples, model_config=config), get_arrays(model)) == set()


def test_training_does_not_change_the_global_generator(examples):
    before = torch.get_rng_state()
    trained(examples)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
def test_one_batch_in_one_epoch_is_one_step_of_torchs_optimizer(model, examples, optimizer):
    rate, decay = 0.05, 0.1
    step = TORCH_OPTIMIZERS[optimizer](model.parameters(), lr=rate, weight_decay=decay)
    F.cross_entropy(model(examples.inputs), examples.labels).backward()
    step.step()
    ours = trained(
        examples,
        optimizer=optimizer,
        learning_rate=rate,
        weight_decay=decay,
        batch_size=len(examples),
    )
    for name, array in get_arrays(model).items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=2e-5, err_msg=name)


def test_the_number_of_steps_follows_from_epochs_and_batch_size(examples):
    # At this small rate the gradient hardly changes, so the distance counts the steps.
    start = get_arrays(build_model(CONFIG, LABELS, seed=1))["head.bias"]

    def distance(**settings):
        end = trained(examples, optimizer="sgd", learning_rate=1e-3, weight_decay=0.0, **settings)
        return end["head.bias"] - start

    one_step = distance(batch_size=48)
    np.testing.assert_allclose(distance(batch_size=48, local_epochs=3), 3 * one_step, rtol=0.02)
    np.testing.assert_allclose(distance(batch_size=12), 4 * one_step, rtol=0.02)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimizer_learns(model, examples, optimizer, rate):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(optimizer=optimizer, learning_rate=rate, local_epochs=20, batch_size=16)
    result = train(model, set(get_arrays(model)), examples, config, seed=1)
    after = evaluate(model, examples, LABELS)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > before.accuracy
    assert result.loss < 0.5 * before.loss


def test_examples_are_scored_before_their_step(model, examples):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(batch_size=len(examples))
    result = train(model, {"head.bias"}, examples, config, seed=1)
    assert result.loss == pytest.approx(before.loss, rel=1e-5)
    assert result.accuracy == pytest.approx(before.accuracy)


def test_a_smaller_last_batch_counts_by_its_examples(model, examples):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(batch_size=47, learning_rate=1e-9)
    result = train(model, {"head.bias"}, examples, config, seed=1)
    assert result.loss == pytest.approx(before.loss, rel=1e-5)
    assert result.accuracy == pytest.approx(before.accuracy)


@pytest.mark.parametrize("batch_size", [8, 48], ids=["in an early step", "in the last step"])
def test_diverging_training_raises_an_error(model, examples, batch_size):
    model.head.weight.data *= 1e3  # gradients so steep that the first step overflows
    config = TrainingConfig(optimizer="sgd", learning_rate=3e38, batch_size=batch_size)
    with pytest.raises(TrainingDivergedError, match="learning-rate"):
        train(model, set(get_arrays(model)), examples, config, seed=1)


def test_a_model_with_nan_raises_an_error(model, examples):
    model.head.bias.data[0] = torch.nan
    with pytest.raises(TrainingDivergedError):
        train(model, {"head.weight"}, examples, TrainingConfig(), seed=1)


def train_by_hand(examples, mu, anchored, optimizer, rate, decay, epochs=2):
    """Train with the proximal term in the loss and with torch's optimizer."""
    model = build_model(CONFIG, LABELS, seed=1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    kind = TORCH_OPTIMIZERS[optimizer](model.parameters(), lr=rate, weight_decay=decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(examples)), 16):
                kind.zero_grad()
                batch = examples[index]
                loss = F.cross_entropy(model(batch.inputs), batch.labels)
                for name, parameter in model.named_parameters():
                    if name in anchored:
                        loss = loss + mu / 2 * (parameter - start[name]).square().sum()
                loss.backward()
                kind.step()
    return get_arrays(model)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("part", ["all", "attention"])
def test_the_proximal_term_equals_the_one_in_the_loss(examples, model, optimizer, part, decay):
    names = {name for name, _ in model.named_parameters()}
    anchored = scope_of(part, "frozen", BUILT_IN, names).shared
    config = TrainingConfig(
        optimizer=optimizer, learning_rate=0.05, weight_decay=decay, local_epochs=2
    )
    train(model, names, examples, config, 1, Proximal(0.7, anchored))
    expected = train_by_hand(examples, 0.7, anchored, optimizer, 0.05, decay)
    for name, array in get_arrays(model).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_a_proximal_term_of_zero_changes_nothing(examples, model):
    names = {name for name, _ in model.named_parameters()}
    config = TrainingConfig(local_epochs=2)
    train(model, names, examples, config, 1, Proximal(0.0, names))
    plain = trained(examples, local_epochs=2)
    assert changed(get_arrays(model), plain) <= {"embedding.weight"}  # with another rounding
    for name, array in get_arrays(model).items():
        np.testing.assert_allclose(array, plain[name], atol=1e-7)


def test_a_strong_proximal_term_keeps_the_model_near_its_start(examples, model):
    names = {name for name, _ in model.named_parameters()}
    before = get_arrays(model)
    config = TrainingConfig(optimizer="sgd", learning_rate=0.01, local_epochs=5)
    train(model, names, examples, config, 1, Proximal(90.0, names))
    with_term = sum(np.square(array - before[k]).sum() for k, array in get_arrays(model).items())
    free = trained(examples, optimizer="sgd", learning_rate=0.01, local_epochs=5)
    without_term = sum(np.square(array - before[k]).sum() for k, array in free.items())
    assert with_term < 0.1 * without_term


@pytest.mark.parametrize("physical", [5, 48])
def test_the_gradient_equals_torchs_gradient_of_the_mean_loss(examples, model, physical):
    names = {name for name, _ in model.named_parameters()}
    config = TrainingConfig(physical_batch_size=physical)
    arrays, result = gradient(model, names, examples, config, seed=1)
    loss = F.cross_entropy(model(examples.inputs), examples.labels)
    loss.backward()
    assert arrays.keys() == names
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(arrays[name], parameter.grad, rtol=1e-4, atol=1e-7)
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_seed_selects_the_batch_of_a_gradient(examples, model):
    names = {"head.weight", "head.bias"} & {name for name, _ in model.named_parameters()}
    first, _ = gradient(model, names, examples, TrainingConfig(), seed=1, batch=7)
    again, _ = gradient(model, names, examples, TrainingConfig(), seed=1, batch=7)
    other, _ = gradient(model, names, examples, TrainingConfig(), seed=2, batch=7)
    assert set(first) == names
    assert all(first[k].tobytes() == again[k].tobytes() for k in names)
    assert any(first[k].tobytes() != other[k].tobytes() for k in names)
