"""Training the used embedding rows, compared with training all rows."""

import numpy as np
import pytest
import torch
from helpers.pretrained_folders import FAMILIES_TESTED
from torch import nn

from fedattn_app.config import Config, TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import get_arrays
from fedattn_app.training import loop, sparse_embedding
from fedattn_app.training.loop import TrainingDivergedError, train
from fedattn_app.training.sparse_embedding import train_used_rows

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("a", "b", "c")
OPTIMIZERS = [
    ("sgd", 0.0),
    ("sgd", 0.1),
    ("adam", 0.0),
    ("adam", 0.1),
    ("adamw", 0.0),
    ("adamw", 0.1),
]


@pytest.fixture
def examples():
    """Texts with 20 of the 400 tokens of a model, padding included."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 20, (24, 6), generator=generator)
    lengths = torch.randint(1, 7, (24,), generator=generator)
    ids = torch.where(torch.arange(6) < lengths[:, None], ids, 0)
    return Examples(TextBatch.of(ids.int(), lengths.int()), ids[:, 0] % len(LABELS))


@pytest.fixture
def build(pretrained_folder):
    def build(kind):
        settings = {"model": "tiny", "vocabulary": 400}
        if kind != "built-in":
            settings = {"model": str(pretrained_folder(kind))}
        return build_classifier(Config.from_run_config({**settings, "max-length": 8}), LABELS)

    return build


def trained(model, examples, trainable=None, **settings):
    names = {name for name, _ in model.named_parameters()} if trainable is None else trainable
    config = TrainingConfig(**{"local_epochs": 2, "batch_size": 5, **settings})
    result = train(model, names, examples, config, seed=1)
    return result, get_arrays(model)


@pytest.fixture
def train_all_rows(monkeypatch):
    """A function that makes all later training train all rows."""

    def switch():
        monkeypatch.setattr(sparse_embedding, "_is_plain", lambda *_: False)

    return switch


@pytest.mark.parametrize(("optimizer", "decay"), OPTIMIZERS)
@pytest.mark.parametrize("kind", ["built-in", "bert", "roberta", "distilbert"])
def test_the_parameters_equal_those_of_training_all_rows(
    build, examples, train_all_rows, kind, optimizer, decay
):
    settings = {"optimizer": optimizer, "weight_decay": decay, "learning_rate": 0.01}
    result, rows = trained(build(kind), examples, **settings)
    train_all_rows()
    expected, whole = trained(build(kind), examples, **settings)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.accuracy == expected.accuracy
    assert rows.keys() == whole.keys()
    for name, array in whole.items():
        # A step of Adam with a gradient near zero depends on rounding.
        np.testing.assert_allclose(rows[name], array, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("optimizer", "decay"), OPTIMIZERS)
def test_unused_rows_change_by_weight_decay_only(build, examples, optimizer, decay):
    model = build("built-in")
    before = model.embedding.weight.detach().clone()
    trained(model, examples, optimizer=optimizer, weight_decay=decay, learning_rate=0.01)
    unused = torch.arange(400) >= 20
    moved = (model.embedding.weight - before)[unused].abs().max() > 0
    assert moved == (decay > 0)
    if decay and optimizer != "adam":
        steps = 2 * 5  # epochs of 24 examples in batches of 5
        torch.testing.assert_close(
            model.embedding.weight[unused], before[unused] * (1 - 0.01 * decay) ** steps
        )


def keeps_embedding(model, examples, **settings):
    """Whether the context does not replace the embedding."""
    config = TrainingConfig(**settings)
    before = model.token_embedding
    with train_used_rows(model, examples.inputs, 1, config):
        return model.token_embedding is before


@pytest.mark.parametrize("kind", ["built-in", *FAMILIES_TESTED])
def test_the_rows_replace_the_embedding_only_in_the_context(build, examples, kind):
    model = build(kind)
    embedding = model.token_embedding
    assert not keeps_embedding(model, examples)
    assert model.token_embedding is embedding


def test_the_embedding_is_kept_where_rows_would_be_wrong_or_save_nothing(build, examples):
    model = build("built-in")
    assert keeps_embedding(model, examples, optimizer="adam", weight_decay=0.1)
    model.embedding.max_norm = 1.0
    assert keeps_embedding(model, examples)
    model.embedding.max_norm = None
    tied = build("built-in")
    tied.decoder = nn.Linear(64, 400, bias=False)
    tied.decoder.weight = tied.embedding.weight
    assert keeps_embedding(tied, examples)
    model.embedding.weight.requires_grad_(False)
    assert keeps_embedding(model, examples)
    model.embedding.weight.requires_grad_(True)
    every_word = torch.arange(400, dtype=torch.int32)[:, None]
    every_word_once = Examples(TextBatch.of(every_word, torch.ones(400)), torch.zeros(400))
    assert keeps_embedding(model, every_word_once)
    assert not keeps_embedding(model, examples)


def test_a_frozen_embedding_does_not_change(build, examples):
    model = build("built-in")
    before = get_arrays(model)
    head = {name for name in before if name.startswith("head.")}
    _, after = trained(model, examples, trainable=head, weight_decay=0.1)
    assert {n for n in before if before[n].tobytes() != after[n].tobytes()} == head


def test_failed_training_restores_the_embedding(build, examples, monkeypatch):
    model = build("built-in")
    embedding, before = model.embedding, get_arrays(model)["embedding.weight"]
    with pytest.raises(TrainingDivergedError):
        trained(model, examples, optimizer="sgd", learning_rate=1e30)
    assert model.embedding is embedding
    monkeypatch.setattr(loop, "FlatOptimizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(build("built-in"), examples)
    assert np.isfinite(before).all()
    assert (get_arrays(model)["embedding.weight"] == before).all()
