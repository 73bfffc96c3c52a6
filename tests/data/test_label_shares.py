"""Clients with given shares of the labels: their examples, and the scores of a run with them."""

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
    """Run-config of a data set of 440 training examples, one half with each of two labels."""
    texts = [f"{'bad' if k % 2 else 'good'} word{k % 7} word{k % 11}" for k in range(500)]
    labels = ["no" if k % 2 else "yes" for k in range(500)]
    for name, part in (("train", slice(440)), ("test", slice(440, None))):
        write(tmp_path / "data" / f"{name}.csv", texts[part], labels[part])
    return {**SHARES, "data-path": str(tmp_path / "data")}


def label_counts(run_config, part):
    """The number of examples with each label in the `part` of each of three clients."""
    config = Config.from_run_config(run_config)
    clients = [client_data(config.data, config.model, 1, k, 3) for k in range(3)]
    return [np.bincount(getattr(client, part).labels, minlength=2) for client in clients]


def test_each_client_has_its_shares_of_the_labels(two_labels):
    counts = label_counts({**two_labels, "validation-fraction": 0.0}, "train")
    assert [count.tolist() for count in counts] == [[50, 50], [30, 70], [20, 80]]


def test_a_run_reports_scores_by_label_and_client(two_labels, tmp_path):
    settings = {
        **QUICK,
        **two_labels,
        "learning-rate": 0.003,
        "fraction-evaluate": 1.0,
        "validation-fraction": 0.2,
        "output-dir": str(tmp_path / "run"),
    }
    result = simulate(settings, 3, workers=1, quiet=True)
    summary = result.summary
    support = label_counts(settings, "validation")
    first, last = (
        sorted(
            (row for row in result.clients if row["round"] == number),
            key=lambda row: row["partition"],
        )
        for number in (1, 4)
    )
    for rows in (first, last):
        assert [row["partition"] for row in rows] == [0, 1, 2]
        for row, counts in zip(rows, support, strict=True):
            recall, f1 = np.array(row["recall_per_class"]), np.array(row["f1_per_class"])
            assert recall.shape == f1.shape == (2,)
            assert counts.min() > 0
            assert recall @ counts / counts.sum() == pytest.approx(row["accuracy"])
            assert ((f1 >= 0) & (f1 <= 1)).all()
            assert ((f1 > 0) == (recall > 0)).all()
    accuracies = [row["accuracy"] for row in last]
    assert min(row["accuracy"] for row in first) < min(accuracies)
    assert summary["worst_client_accuracy"] == min(accuracies)
    assert summary["best_client_accuracy"] == max(accuracies)
    assert summary["client_accuracy_deviation"] == pytest.approx(np.std(accuracies))
    assert set(summary["f1_per_class"]) == {"no", "yes"}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"label-shares": "50/50, 40/50"}, ["label-shares", "sum to 100"]),
        ({"label-shares": "half/half"}, ["label-shares", "sum to 100"]),
        ({"label-shares": ""}, ["label-shares"]),
        ({"label-shares": "50/50, 50/50"}, ["is for 2 clients, not 3"]),
        ({"label-shares": "50/30/20, 50/50, 50/50"}, ["names 3 shares", "2 labels"]),
        ({"examples-per-client": 200}, ["too few examples of 'yes'", "examples-per-client = 200"]),
    ],
)
def test_impossible_shares_are_refused(two_labels, tmp_path, refused, settings, parts):
    output = {"output-dir": str(tmp_path / "run")}
    with refused(*parts):
        simulate({**QUICK, **two_labels, **settings, **output}, 3, quiet=True)
