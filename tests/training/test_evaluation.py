"""Evaluation, compared with one large batch and with scikit-learn."""

import numpy as np
import pytest
import torch
from helpers.training import CONFIG, LABELS, SMALL, changed, make_examples
from sklearn.metrics import accuracy_score, confusion_matrix
from torch.nn import functional as F

from fedattn_app.config import ModelConfig
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def examples():
    return make_examples(48)


@pytest.fixture
def model():
    return build_model(CONFIG, LABELS, seed=1)


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


def test_labels_without_examples_are_counted_too(model, examples):
    only = examples[examples.labels == 1]
    result = evaluate(model, only, LABELS)
    assert result.support.tolist() == [0, len(only), 0]
    assert len(result.predicted) == len(result.correct) == LABELS


def test_evaluation_without_examples(model, examples):
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


def test_the_scores_do_not_depend_on_the_number_of_threads(model):
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
