"""The evaluation of a private client: noisy counts with a budget of their own."""

import math

import numpy as np
import pytest
from helpers.dp_sgd_clients import DELTA, client_of, evaluate, fit
from scipy.stats import chi2

from fedattn_app.clients.base import FrozenClient
from fedattn_app.config import Config
from fedattn_app.data.examples import UNKNOWN_LABEL
from fedattn_app.data.triage import LABELS
from fedattn_app.privacy.accounting import epsilon_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_node_does_not_evaluate_without_a_budget_for_it(refused):
    client = client_of()
    with refused("evaluate-epsilon = 0"):
        evaluate(client)
    assert client.ledger.entries == []


def test_evaluation_has_its_own_budget(trainings):
    client = client_of(evaluate_epsilon=1.0, target_epsilon=2.0, num_rounds=2)
    for server_round in (1, 2):
        assert fit(client, server_round)[2]["budget-spent"] == 0
        loss, _, metrics = evaluate(client, server_round)
        assert (loss, metrics["budget-spent"]) == (0.0, 0)
    assert evaluate(client, 3)[2]["budget-spent"] == fit(client, 3)[2]["budget-spent"] == 1
    for kind, target in (("train", 2.0), ("evaluate", 1.0)):
        entries = client.ledger.entries_of(kind, 1)
        assert [entry.server_round for entry in entries] == [1, 2]
        assert len({entry.noise_multiplier for entry in entries}) == 1
        spent = epsilon_of([entry.mechanism for entry in entries], DELTA)
        assert 0.99 * target < spent <= target
    assert {e.mechanism.sample_rate for e in client.ledger.entries_of("evaluate")} == {1.0}
    assert client.epsilon == epsilon_of(client.ledger.mechanisms, DELTA) > 2.0


def test_noisy_counts_have_the_noise_of_the_ledger():
    """An example is in at most three counts, so the deviation is √3 σ, plus rounding."""
    rounds = 60
    client = client_of(evaluate_epsilon=20.0, num_rounds=rounds, reproducible_noise=True)
    public = Config.from_run_config({"model": "tiny", "vocabulary": 512})
    exact = FrozenClient(public, LABELS, client.data)
    *_, true = exact.evaluate(client.get_parameters({}), {})
    keys = [f"{kind}-{k}" for kind in ("support", "predicted", "correct") for k in range(6)]
    errors = []
    for server_round in range(1, rounds + 1):
        _, num_examples, metrics = evaluate(client, server_round)
        assert set(metrics) == {"epsilon", "budget-spent", *keys}
        assert num_examples == max(0, sum(metrics[key] for key in keys[:6]))
        errors += [metrics[key] - true[key] for key in keys]
    assert all(isinstance(metrics[key], int) for key in keys)
    (noise,) = {entry.noise_multiplier for entry in client.ledger.entries_of("evaluate")}
    squares = np.square(errors).sum() / (3 * noise**2 + 1 / 12)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], len(errors))
    assert low < squares < high
    assert abs(np.mean(errors)) < 4 * math.sqrt(3 * noise**2 / len(errors))


def test_noisy_scores_do_not_repeat():
    client = client_of(evaluate_epsilon=1.0)
    first, second = (evaluate(client)[2] for _ in range(2))
    assert first.pop("epsilon") < second.pop("epsilon")
    assert first != second


def test_held_out_examples_without_a_label_have_no_counts():
    client = client_of(evaluate_epsilon=20.0, reproducible_noise=True)
    client.data.validation.labels.fill_(UNKNOWN_LABEL)
    _, _, metrics = evaluate(client)
    (noise,) = {entry.noise_multiplier for entry in client.ledger.entries_of("evaluate")}
    counts = [count for key, count in metrics.items() if key.startswith("support-")]
    assert len(counts) == 6
    assert max(map(abs, counts)) <= 6 * math.sqrt(3) * noise
