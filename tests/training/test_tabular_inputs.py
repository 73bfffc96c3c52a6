"""A model without tokens trains like any other: nothing outside models and data reads token ids."""

import copy

import pytest
import torch
from helpers.per_example import assert_exact
from torch import nn

from fedattn_app.config import TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import Batch
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.parameters import get_arrays
from fedattn_app.privacy.dp_sgd import Noise, Sampling, train_privately
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OneByOne, OpacusHooks
from fedattn_app.privacy.gradients.selection import engine_for
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.evaluation import evaluate
from fedattn_app.training.loop import set_trainable, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

NUM_FEATURES, LABELS = 5, 3
NAMES = {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}


class TabularClassifier(Classifier):
    """Two linear layers over one row of numbers."""

    family = "tabular"

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(NUM_FEATURES, 16)
        self.head = nn.Linear(16, LABELS)

    def forward(self, batch):
        return self.head(self.hidden(batch["features"]).tanh())

    def random_batch(self, count, max_length):
        return Batch({"features": torch.randn(count, NUM_FEATURES)})


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TabularClassifier()


@pytest.fixture(scope="module")
def examples():
    """Rows whose largest of the first three numbers is the label."""
    features = torch.randn(200, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    return Examples(Batch({"features": features}), features[:, :LABELS].argmax(1))


def test_training_learns(model, examples):
    before = evaluate(model, examples, LABELS)
    train(model, NAMES, examples, TrainingConfig(learning_rate=0.01, local_epochs=20), seed=1)
    assert before.accuracy < 0.6
    assert evaluate(model, examples, LABELS).accuracy > 0.9


def test_private_training_is_the_same_with_every_engine(model, examples):
    sampling, noise = Sampling(rate=0.1, steps=20, batch_size=20.0), Noise(1.0, 0.5)
    padded = examples.pad_independently(64)
    ends = []
    for engine in (BookKeeping, OpacusHooks, OneByOne):
        trained = copy.deepcopy(model)
        config, random = (
            TrainingConfig(optimizer="sgd", learning_rate=0.1),
            SecretRandom.from_seed(1),
        )
        train_privately(trained, NAMES, padded, config, sampling, noise, engine, random)
        ends.append(get_arrays(trained))
    for name, start in get_arrays(model).items():
        for end in ends:
            assert abs(end[name] - start).max() > 1e-3
            torch.testing.assert_close(end[name], ends[0][name], rtol=0, atol=1e-6)


def test_every_engine_clips_exactly_and_the_fastest_is_selected(model, examples):
    assert_exact([BookKeeping, OpacusHooks, OneByOne], model, examples[torch.arange(20)])
    set_trainable(model, NAMES)
    assert engine_for(model, max_length=64) is BookKeeping
