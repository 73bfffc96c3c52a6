import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fedattn_app.metrics import METRICS, Scores


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]),
        ([0, 0, 0, 0], [0, 0, 1, 0]),
        ([0, 1, 0, 1], [2, 2, 2, 2]),
        ([3], [3]),
        (np.arange(200) % 4, np.arange(200) ** 2 % 4),
    ],
)
def test_scores_equal_those_of_scikit_learn(truth, predicted):
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    counts = (
        np.bincount(labels, minlength=4) for labels in (truth, predicted, truth[truth == predicted])
    )
    scores = Scores(0.0, *counts)
    expected = recall_score(truth, predicted, labels=range(4), average=None, zero_division=np.nan)
    recall = [np.nan if value is None else value for value in scores.recall]
    np.testing.assert_allclose(recall, expected)
    assert scores.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert scores.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert scores.num_examples == len(truth)


def test_scores_without_examples():
    nothing = np.zeros(3, np.int64)
    scores = Scores(0.0, nothing, nothing, nothing)
    assert scores.recall == [None] * 3
    assert scores.row() == {"loss": 0.0, **dict.fromkeys(METRICS, 0.0)}
