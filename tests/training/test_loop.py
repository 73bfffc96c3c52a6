"""Local training and evaluation, against torch's own gradients and scikit-learn's scores."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from torch.nn import functional as F

from fedattn_app.config import ModelConfig, TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.training.evaluation import evaluate
from fedattn_app.training.loop import TrainingDivergedError, gradient, train
from fedattn_app.training.optimizer import Proximal

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = 3
SMALL = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24, "vocabulary": 40, "max_length": 9}
CONFIG = ModelConfig(**SMALL)
TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_examples(count, seed=1):
    """Texts of 1 to 9 tokens whose first token decides the label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (count, 9), generator=generator)
    lengths = torch.randint(1, 10, (count,), generator=generator)
    ids = torch.where(torch.arange(9) < lengths[:, None], ids, 0)
    return Examples(TextBatch.of(ids.int(), lengths.int()), ids[:, 0] % LABELS)


@pytest.fixture(scope="module")
def examples():
    return make_examples(48)


@pytest.fixture
def model():
    return build_model(CONFIG, LABELS, seed=1)


def changed(before, after):
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def trained(examples, seed=1, model_config=CONFIG, **settings):
    model = build_model(model_config, LABELS, seed=1)
    names = {name for name, _ in model.named_parameters()}
    train(model, names, examples, TrainingConfig(**settings), seed)
    return get_arrays(model)


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
@pytest.mark.parametrize("shared", ["all", "attention", "attention+head", "head"])
def test_the_trainable_parameters_change_and_the_others_keep_their_bits(
    model, examples, shared, optimizer
):
    before = get_arrays(model)
    trainable = scope_of(shared, "frozen", BUILT_IN, before).trainable
    train(model, trainable, examples, TrainingConfig(optimizer=optimizer, local_epochs=2), seed=1)
    assert changed(before, get_arrays(model)) == trainable
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_in_parts_of_similar_length_has_the_gradient_of_the_whole(model, examples):
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
def test_parts_of_similar_length_hold_each_example_once(count):
    inputs = make_examples(count).inputs
    parts = inputs.split_by_size(torch.arange(count), 16)
    assert sorted(place for part in parts for place in part.tolist()) == list(range(count))
    assert all(len(part) <= 16 for part in parts)
    longest = [int(inputs.lengths[part].max()) for part in parts]
    assert longest == sorted(longest)


def test_what_was_trainable_before_no_longer_changes(model, examples):
    config = TrainingConfig()
    train(model, set(get_arrays(model)), examples, config, seed=1)
    before = get_arrays(model)
    train(model, {"head.bias"}, examples, config, seed=2)
    assert changed(before, get_arrays(model)) == {"head.bias"}


def test_the_embedding_of_padding_stays_zero(examples):
    assert not trained(examples, local_epochs=2)["embedding.weight"][0].any()


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
def test_one_seed_gives_the_same_bits_whatever_the_global_generator_is_at(examples, optimizer):
    config = ModelConfig(**SMALL, dropout=0.3)
    torch.manual_seed(5)
    first = trained(examples, model_config=config, optimizer=optimizer, batch_size=8)
    torch.manual_seed(6)
    second = trained(examples, model_config=config, optimizer=optimizer, batch_size=8)
    assert changed(first, second) == set()


def test_the_seed_decides_the_order_of_the_examples(examples):
    first, second = (trained(examples, seed, batch_size=8) for seed in (1, 2))
    assert "head.weight" in changed(first, second)


def test_the_seed_decides_the_dropout(examples):
    config = ModelConfig(**SMALL, dropout=0.3)
    alone = examples[torch.tensor([4])]
    first, second = (trained(alone, seed, model_config=config, optimizer="sgd") for seed in (1, 2))
    assert "head.weight" in changed(first, second)


def test_training_has_dropout_after_an_evaluation_too(examples):
    config = ModelConfig(**SMALL, dropout=0.3)
    model = build_model(config, LABELS, seed=1)
    evaluate(model, examples, LABELS)
    train(model, set(get_arrays(model)), examples, TrainingConfig(), seed=1)
    assert changed(trained(examples, model_config=config), get_arrays(model)) == set()


def test_training_leaves_the_global_generator_alone(examples):
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


def test_epochs_and_batches_are_as_many_steps(examples):
    # At so small a rate gradients stay put, so that SGD's way is its number of steps long.
    start = get_arrays(build_model(CONFIG, LABELS, seed=1))["head.bias"]

    def way(**settings):
        end = trained(examples, optimizer="sgd", learning_rate=1e-3, weight_decay=0.0, **settings)
        return end["head.bias"] - start

    one = way(batch_size=48)
    np.testing.assert_allclose(way(batch_size=48, local_epochs=3), 3 * one, rtol=0.02)
    np.testing.assert_allclose(way(batch_size=12), 4 * one, rtol=0.02)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimizer_learns(model, examples, optimizer, rate):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(optimizer=optimizer, learning_rate=rate, local_epochs=20, batch_size=16)
    result = train(model, set(get_arrays(model)), examples, config, seed=1)
    after = evaluate(model, examples, LABELS)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > before.accuracy
    assert result.loss < 0.5 * before.loss


def test_the_result_is_the_mean_over_examples_seen_before_their_step(model, examples):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(batch_size=len(examples))
    result = train(model, {"head.bias"}, examples, config, seed=1)
    assert result.loss == pytest.approx(before.loss, rel=1e-5)
    assert result.accuracy == pytest.approx(before.accuracy)


def test_an_uneven_last_batch_counts_by_its_examples(model, examples):
    before = evaluate(model, examples, LABELS)
    config = TrainingConfig(batch_size=47, learning_rate=1e-9)
    result = train(model, {"head.bias"}, examples, config, seed=1)
    assert result.loss == pytest.approx(before.loss, rel=1e-5)
    assert result.accuracy == pytest.approx(before.accuracy)


@pytest.mark.parametrize("batch_size", [8, 48], ids=["in an early step", "in the last step"])
def test_a_training_that_diverges_is_no_update(model, examples, batch_size):
    model.head.weight.data *= 1e3  # gradients so steep that the first step overflows
    config = TrainingConfig(optimizer="sgd", learning_rate=3e38, batch_size=batch_size)
    with pytest.raises(TrainingDivergedError, match="learning-rate"):
        train(model, set(get_arrays(model)), examples, config, seed=1)


def test_a_model_that_is_not_finite_is_no_update(model, examples):
    model.head.bias.data[0] = torch.nan
    with pytest.raises(TrainingDivergedError):
        train(model, {"head.weight"}, examples, TrainingConfig(), seed=1)


def test_evaluation_agrees_with_one_big_batch_and_scikit_learn(model):
    examples = make_examples(600, seed=2)
    with torch.no_grad():
        logits = model.eval()(examples.inputs)
    predicted = logits.argmax(1)
    result = evaluate(model, examples, LABELS)
    assert result.loss == pytest.approx(F.cross_entropy(logits, examples.labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx(accuracy_score(examples.labels, predicted))
    assert result.num_examples == 600
    expected = confusion_matrix(examples.labels, predicted, labels=range(LABELS))
    np.testing.assert_array_equal(result.support, expected.sum(1))
    np.testing.assert_array_equal(result.predicted, expected.sum(0))
    np.testing.assert_array_equal(result.correct, expected.diagonal())


def test_labels_that_do_not_occur_are_counted_too(model, examples):
    only = examples[examples.labels == 1]
    result = evaluate(model, only, LABELS)
    assert result.support.tolist() == [0, len(only), 0]
    assert len(result.predicted) == len(result.correct) == LABELS


def test_no_examples_score_nothing(model, examples):
    result = evaluate(model, examples[torch.arange(0)], LABELS)
    assert (result.loss, result.accuracy, result.num_examples) == (0, 0, 0)
    assert result.support.tolist() == result.predicted.tolist() == [0] * LABELS


def test_evaluation_has_no_dropout_and_leaves_no_gradients(examples):
    model = build_model(ModelConfig(**SMALL, dropout=0.5), LABELS, seed=1)
    before = get_arrays(model)
    first, second = (evaluate(model, examples, LABELS) for _ in range(2))
    assert first.loss == second.loss
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    assert changed(before, get_arrays(model)) == set()


def test_scores_are_the_same_in_any_number_of_threads(model):
    many = make_examples(500)
    alone = evaluate(model, many, LABELS)
    torch.set_num_threads(3)
    try:
        together = evaluate(model, many, LABELS)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert together.loss == alone.loss
    np.testing.assert_array_equal(together.predicted, alone.predicted)
    np.testing.assert_array_equal(together.correct, alone.correct)


def by_hand(examples, mu, anchored, optimizer, rate, decay, epochs=2):
    """Train with the proximal term in the loss, one example order, torch's own optimizer."""
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
def test_the_proximal_term_is_that_of_the_loss(examples, model, optimizer, part, decay):
    names = {name for name, _ in model.named_parameters()}
    anchored = scope_of(part, "frozen", BUILT_IN, names).shared
    config = TrainingConfig(
        optimizer=optimizer, learning_rate=0.05, weight_decay=decay, local_epochs=2
    )
    train(model, names, examples, config, 1, Proximal(0.7, anchored))
    expected = by_hand(examples, 0.7, anchored, optimizer, 0.05, decay)
    for name, array in get_arrays(model).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_a_proximal_term_of_zero_changes_no_bit(examples, model):
    names = {name for name, _ in model.named_parameters()}
    config = TrainingConfig(local_epochs=2)
    train(model, names, examples, config, 1, Proximal(0.0, names))
    plain = trained(examples, local_epochs=2)
    assert changed(get_arrays(model), plain) <= {"embedding.weight"}  # whose rows go another way
    for name, array in get_arrays(model).items():
        np.testing.assert_allclose(array, plain[name], atol=1e-7)


def test_a_strong_proximal_term_keeps_the_model_where_it_was(examples, model):
    names = {name for name, _ in model.named_parameters()}
    before = get_arrays(model)
    config = TrainingConfig(optimizer="sgd", learning_rate=0.01, local_epochs=5)
    train(model, names, examples, config, 1, Proximal(90.0, names))
    held = sum(np.square(array - before[k]).sum() for k, array in get_arrays(model).items())
    free = trained(examples, optimizer="sgd", learning_rate=0.01, local_epochs=5)
    moved = sum(np.square(array - before[k]).sum() for k, array in free.items())
    assert held < 0.1 * moved


@pytest.mark.parametrize("physical", [5, 48])
def test_the_gradient_is_torchs_of_the_mean_loss(examples, model, physical):
    names = {name for name, _ in model.named_parameters()}
    config = TrainingConfig(physical_batch_size=physical)
    arrays, result = gradient(model, names, examples, config, seed=1)
    loss = F.cross_entropy(model(examples.inputs), examples.labels)
    loss.backward()
    assert arrays.keys() == names
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(arrays[name], parameter.grad, rtol=1e-4, atol=1e-7)
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_gradient_over_a_batch_is_over_so_many(examples, model):
    names = {"head.weight", "head.bias"} & {name for name, _ in model.named_parameters()}
    first, _ = gradient(model, names, examples, TrainingConfig(), seed=1, batch=7)
    again, _ = gradient(model, names, examples, TrainingConfig(), seed=1, batch=7)
    other, _ = gradient(model, names, examples, TrainingConfig(), seed=2, batch=7)
    assert set(first) == names
    assert all(first[k].tobytes() == again[k].tobytes() for k in names)
    assert any(first[k].tobytes() != other[k].tobytes() for k in names)
