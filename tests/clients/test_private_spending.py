"""The ε that a private client spends in training, and the end of its budget."""

import multiprocessing
import time

import pytest
from flwr.app import RecordDict
from helpers.dp_sgd_clients import DELTA, client_of, evaluate, fit

from fedattn_app.privacy.accounting import Steps, epsilon_of
from fedattn_app.privacy.ledger import Ledger
from fedattn_app.privacy.privacy_filter import PrivacyFilter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_rounds_cost_as_much_as_one_with_twice_the_steps(trainings):
    twice, once = client_of(batch_size=16), client_of(batch_size=16, local_epochs=2)
    for server_round in (1, 2):
        *_, last = fit(twice, server_round)
    *_, expected = fit(once)
    assert last["epsilon"] == pytest.approx(expected["epsilon"], rel=1e-9)
    assert last["epsilon"] == pytest.approx(epsilon_of([Steps(1.0, 0.5, 4)], DELTA), rel=1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_a_budget_lasts_for_exactly_its_rounds(trainings, accountant):
    client = client_of(target_epsilon=2.0, num_rounds=3, accountant=accountant)
    start = client.get_parameters({})
    replies = [fit(client, server_round)[2] for server_round in (1, 2, 3)]
    assert [metrics["budget-spent"] for metrics in replies] == [0, 0, 0]
    assert 1.99 < replies[-1]["epsilon"] <= 2.0 * (1 + 1e-6)
    assert len(set(trainings)) == 1
    assert len(trainings) == 3
    entries = client.ledger.entries
    arrays, num_examples, metrics = client.fit(start, {"server-round": 4})
    assert all(a is b for a, b in zip(arrays, start, strict=True))
    assert (num_examples, metrics) == (0, {"epsilon": replies[-1]["epsilon"], "budget-spent": 1})
    assert client.ledger.entries == entries
    assert len(trainings) == 3


def test_a_client_that_joins_late_uses_its_whole_budget(trainings):
    client = client_of(target_epsilon=2.0, num_rounds=10)
    assert fit(client, 9)[2]["epsilon"] < 1.99 < fit(client, 10)[2]["epsilon"] <= 2.000002


def test_the_next_run_has_the_rest_of_the_budget(trainings, tmp_path):
    path = tmp_path / "ledger.json"
    for run, target in enumerate((2.0, 4.0)):
        client = client_of(Ledger(RecordDict(), path), run=run, target_epsilon=target, num_rounds=2)
        assert [fit(client, number)[2]["budget-spent"] for number in (1, 2)] == [0, 0]
        assert target - 0.01 < client.epsilon <= target * (1 + 1e-6)
    client = client_of(Ledger(RecordDict(), path), run=3, target_epsilon=3.9)
    assert fit(client)[2]["budget-spent"] == 1
    assert len(trainings) == 4


def test_a_given_noise_multiplier_stops_at_the_target(trainings):
    client = client_of(noise_multiplier=2.0, target_epsilon=6.0)
    replies = [fit(client, number)[2] for number in range(1, 12)]
    rounds = [metrics["budget-spent"] for metrics in replies].index(1)
    assert set(trainings) == {Steps(2.0, 1.0, 1)}
    assert len(trainings) == rounds
    assert all(metrics["budget-spent"] for metrics in replies[rounds:])
    step = Steps(2.0, 1.0, 1)
    assert epsilon_of([step] * rounds, DELTA) <= 6.0 < epsilon_of([step] * (rounds + 1), DELTA)


def test_a_given_noise_multiplier_without_a_target_never_stops(trainings):
    client = client_of(noise_multiplier=0.5, num_rounds=2)
    replies = [fit(client, number)[2] for number in range(1, 6)]
    assert not any(metrics["budget-spent"] for metrics in replies)


def test_the_owners_limit_covers_all_runs_and_kinds_together(trainings, tmp_path):
    path = tmp_path / "ledger.json"
    limit = epsilon_of([Steps(1.0, 1.0, 2)], DELTA) * 1.1
    allows = PrivacyFilter(limit, DELTA).allows
    assert allows([Steps(1.0, 1.0, 2)])
    assert not allows([Steps(1.0, 1.0, 3)])
    for run, spent in enumerate((0, 0, 1)):
        ledger = Ledger(RecordDict(), path)
        client = client_of(ledger, run=run, max_epsilon=limit, evaluate_epsilon=4.0)
        assert fit(client)[2]["budget-spent"] == spent
        assert client.epsilon <= limit
    before = len(ledger.entries)
    while not (reply := evaluate(client))[2]["budget-spent"]:
        assert len(ledger.entries) == before + 1
        before += 1
    _, num_examples, metrics = reply
    assert metrics.pop("budget-spent") == 1
    assert metrics.pop("epsilon") == client.epsilon <= limit
    assert num_examples == sum(metrics.values()) == 0
    assert allows(ledger.mechanisms)
    assert len(ledger.entries_of("train")) == len(trainings) == 2


def test_the_noise_is_raised_so_that_the_owners_limit_lasts_for_all_rounds(trainings):
    """A filter allows less than the accountant that a run's target is held against."""
    replies = {}
    for limit in (1e3, 4.0):
        client = client_of(target_epsilon=4.0, num_rounds=5, max_epsilon=limit, batch_size=8)
        replies[limit] = [fit(client, number)[2] for number in range(1, 6)]
        assert not any(metrics["budget-spent"] for metrics in replies[limit])
        if client.limit.max_epsilon == 4.0:
            assert client.limit.allows(client.ledger.mechanisms)
    noises = [steps.noise_multiplier for steps in trainings]
    assert noises[0] < noises[-1] < 1.5 * noises[0]
    assert replies[4.0][-1]["epsilon"] < replies[1e3][-1]["epsilon"] <= 4.0


def test_two_processes_do_not_spend_the_same_budget(trainings, tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    clients = [client_of(Ledger(RecordDict(), path), run=run, max_epsilon=6.0) for run in (1, 2)]

    def hesitate(ledger, entry, add=Ledger.add):
        time.sleep(0.3)
        add(ledger, entry)

    monkeypatch.setattr(Ledger, "add", hesitate)
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=fit, args=(client,), daemon=True) for client in clients]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(Ledger(RecordDict(), path).entries) == 1


def test_the_reason_is_logged_where_no_noise_is_enough(trainings, caplog):
    client = client_of(target_epsilon=1e-5, target_delta=1e-12)
    assert fit(client)[2] == {"epsilon": 0.0, "budget-spent": 1}
    assert "the rest of ε = 1e-05 is too small to train for" in caplog.text


def test_a_tighter_accountant_does_not_lower_the_reported_epsilon(trainings):
    ledger = Ledger(RecordDict())
    reported = fit(client_of(ledger))[2]["epsilon"]
    client = client_of(ledger, run=2, accountant="prv")
    assert epsilon_of(ledger.mechanisms, DELTA, "prv") < client.epsilon == reported
