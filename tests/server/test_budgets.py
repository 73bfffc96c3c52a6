"""What the server knows of spent privacy."""

import math

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedattn_app.flower_compat import task_identity
from fedattn_app.server.budgets import Budgets, BudgetSpentError


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def reply_from(partition, **metrics):
    asked = Message(RecordDict(), partition, "train")
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=asked)


def test_nothing_is_spent_at_first():
    assert Budgets().largest is None
    Budgets().check(0, 1, "min-replies = 1")


def test_a_client_is_unreported_until_it_reports_its_epsilon():
    budgets = Budgets()
    budgets.record_messages([1, 2, 3])
    for reply in (reply_from(1, epsilon=0.5), reply_from(2, loss=1.0)):
        budgets.record_reply(reply)
    assert budgets.unreported == {2, 3}
    assert budgets.epsilon == {1: 0.5}
    budgets.record_messages([1])
    assert budgets.unreported == {1, 2, 3}


@pytest.mark.parametrize("reported", [math.nan, math.inf, -1.0, [1.0]])
def test_an_impossible_epsilon_is_ignored(reported):
    budgets = Budgets({1: 0.5})
    budgets.record_messages([1])
    budgets.record_reply(reply_from(1, epsilon=reported))
    assert (budgets.epsilon, budgets.unreported, budgets.retired) == ({1: 0.5}, {1}, set())


def test_a_client_whose_epsilon_fell_stays_unreported_and_is_retired():
    budgets = Budgets({1: 0.5, 2: 0.1})
    budgets.record_messages([1, 2])
    budgets.record_reply(reply_from(1, epsilon=0.4))
    budgets.record_reply(reply_from(2, epsilon=0.1))
    assert budgets.epsilon == {1: 0.5, 2: 0.1}
    assert budgets.unreported == budgets.retired == {1}


def test_the_servers_noise_costs_every_client_the_same():
    budgets = Budgets()
    budgets.spend_in_common([], 1.0)
    assert budgets.largest == 1.0
    budgets.spend_in_common([4], 2.0)
    budgets.spend_in_common([5], 3.0)
    assert budgets.epsilon == {4: 3.0, 5: 3.0}


def test_too_few_clients_are_left_only_where_some_were_retired():
    budgets = Budgets({1: 8.0})
    budgets.retire({1})
    budgets.check(2, 2, "min-replies = 2")
    with pytest.raises(
        BudgetSpentError, match=r"1 of 2 clients .* 2 are needed \(min-replies = 2\)"
    ):
        budgets.check(1, 2, "min-replies = 2")


def test_a_resumed_run_knows_what_was_spent():
    budgets = Budgets({2: 0.5, 0: 1.5}, {0})
    restored = Budgets.from_row(budgets.to_row())
    assert (restored.epsilon, restored.unreported) == ({0: 1.5, 2: 0.5}, {0})


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -0.5])
def test_an_impossible_epsilon_is_not_restored(epsilon):
    with pytest.raises(ValueError, match="not a number >= 0"):
        Budgets.from_row({"epsilon": {"0": epsilon}, "unreported": []})
