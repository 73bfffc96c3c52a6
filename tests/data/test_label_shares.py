"""Clients of chosen label shares: what each gets, and what a run of them tells."""

import numpy as np
import pytest
from helpers.data_files import write
from helpers.runs import QUICK

from fedattn_app.config import Config
from fedattn_app.data.loading import client_data
from fedattn_app.simulation import simulate

SHARES = {"partitioner": "label-shares", "dataset": "file", "learning-rate": 0.01}


@pytest.fixture
def two_labels(tmp_path):
    texts = [f"{'bad' if k % 2 else 'good'} word{k % 7} word{k % 11}" for k in range(500)]
    labels = ["no" if k % 2 else "yes" for k in range(500)]
    for name, part in (("train", slice(440)), ("test", slice(440, None))):
        write(tmp_path / "data" / f"{name}.csv", texts[part], labels[part])
    return {**SHARES, "data-path": str(tmp_path / "data")}


def test_label_shares_are_what_they_say(two_labels):
    config = Config.from_run_config({**two_labels, "validation-fraction": 0.0})
    counts = [
        np.bincount(client_data(config.data, config.model, 1, k, 3).train.labels, minlength=2)
        for k in range(3)
    ]
    assert [count.tolist() for count in counts] == [[50, 50], [30, 70], [20, 80]]


def test_an_imbalanced_run_tells_scores_by_label_and_client(two_labels, tmp_path):
    own = {
        "fraction-evaluate": 1.0,
        "validation-fraction": 0.2,
        "output-dir": str(tmp_path / "run"),
    }
    result = simulate({**QUICK, **two_labels, **own}, 3, workers=1, quiet=True)
    last = [row for row in result.clients if row["round"] == 4]
    assert len(last) == 3
    for row in last:
        for key in ("recall_per_class", "f1_per_class"):
            assert len(row[key]) == 2
            assert all(score is None or 0 <= score <= 1 for score in row[key])
    summary, accuracies = result.summary, [row["accuracy"] for row in last]
    assert summary["worst_client_accuracy"] == min(accuracies)
    assert summary["best_client_accuracy"] == max(accuracies)
    assert summary["client_accuracy_deviation"] == pytest.approx(np.std(accuracies))
    assert set(summary["f1_per_class"]) == {"no", "yes"}


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"label-shares": "50/50, 40/50"}, ["label-shares", "sum to 100"]),
        ({"label-shares": "half/half"}, ["label-shares", "sum to 100"]),
        ({"label-shares": ""}, ["label-shares"]),
        ({"label-shares": "50/50, 50/50"}, ["is for 2 clients, not 3"]),
        ({"label-shares": "50/30/20, 50/50, 50/50"}, ["names 3 shares", "2 labels"]),
        ({"examples-per-client": 200}, ["too few examples of 'yes'", "examples-per-client = 200"]),
    ],
)
def test_shares_that_cannot_be_are_refused(two_labels, tmp_path, refused, more, parts):
    with refused(*parts):
        simulate(
            {**QUICK, **two_labels, **more, "output-dir": str(tmp_path / "run")}, 3, quiet=True
        )
