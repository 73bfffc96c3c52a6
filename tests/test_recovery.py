"""What a server reads out of one client's message: words and label counts, or nothing."""

import numpy as np
import pytest
import recovery
import torch
from common.results import read
from tables import RESULTS

TINY = {"model": "tiny", "vocabulary": 2048}


def words_and_truth(settings, texts, head_factor=1.0):
    client = recovery.client_of(TINY | settings, texts, seed=1)
    observed = recovery.observe(client, head_factor)
    truth = recovery.occurring(client, client.config.model.vocabulary)
    return client, observed, recovery.word_scores(observed), truth


def distinct_words(texts):
    client = recovery.client_of(TINY, texts, seed=1)
    return int(recovery.occurring(client, 2048).sum())


@pytest.mark.parametrize("optimizer", [None, "sgd"])
@pytest.mark.parametrize("shared", ["attention", "attention+head"])
def test_all_words_are_named_as_long_as_they_are_fewer_than_the_features(optimizer, shared):
    """LayerNorm takes one of the 64 dimensions, and 63 vectors fill the others."""
    message = {"strategy": "fedsgd"} if optimizer is None else recovery.CASES["an epoch of SGD"]
    texts = max(number for number in range(1, 20) if distinct_words(number) < 63)
    assert distinct_words(texts) > 50
    _, _, scores, truth = words_and_truth({**message, "shared": shared}, texts)
    assert sorted(recovery.named(scores).tolist()) == truth.nonzero()[:, 0].tolist()


def test_with_more_words_and_with_adamw_a_part_is_found():
    for message in ({"strategy": "fedsgd"}, {}):
        *_, scores, truth = words_and_truth(message, texts=16)
        number = int(truth.sum())
        assert number > 64
        found = truth[scores.topk(number, largest=False).indices].double().mean()
        assert 4 * number / len(truth) < found < 1


@pytest.mark.parametrize("texts", [1, 16, 360])
def test_a_server_that_sends_a_small_head_reads_the_exact_label_counts(texts):
    client, observed, *_ = words_and_truth({"strategy": "fedsgd"}, texts, recovery.SMALL)
    counts = np.bincount(client.data.train.labels, minlength=len(client.labels))
    assert recovery.label_counts(observed).tolist() == counts.tolist()


@pytest.mark.parametrize("case", ["dp-sgd with SGD", "dp-sgd with AdamW"])
@pytest.mark.parametrize("texts", [16, 360])
def test_with_dp_sgd_the_words_are_ranked_as_by_chance(case, texts):
    """The bounds are five standard deviations of the area under the curve of a random ranking."""
    *_, scores, truth = words_and_truth(recovery.CASES[case], texts)
    number, others = int(truth.sum()), int((~truth).sum())
    deviation = ((number + others + 1) / (12 * number * others)) ** 0.5
    assert abs(recovery.area_under_curve(scores, truth) - 0.5) < 5 * deviation


def test_the_area_under_the_curve_of_known_rankings():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    for positive, area in (([0, 1], 1.0), ([2, 3], 0.0), ([0, 3], 0.5), ([0, 2], 0.75)):
        occurs = torch.zeros(4, dtype=torch.bool)
        occurs[positive] = True
        assert recovery.area_under_curve(scores, occurs) == area


def test_the_committed_results_are_what_the_documentation_says():
    """README and docs/privacy.md quote them."""
    rows = read(RESULTS / "recovery.jsonl").rows
    fits = [row for row in rows if row["words"] < row["width"] - 1]
    linear = [row for row in fits if "AdamW" not in row["sent"] and "dp-sgd" not in row["sent"]]
    assert len(linear) == 27
    assert all(row["named"] == row["named_rightly"] == row["words"] for row in linear)
    small_head = [row["label_error"] for row in rows if row["sent"] == recovery.SMALL_HEAD]
    assert small_head == [0] * 15
