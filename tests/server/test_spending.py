"""What the server believes of spent privacy."""

import math

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from fedattn_app.flower_compat import task_identity
from fedattn_app.server.budgets import BudgetSpentError, Spending


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def reply_from(partition, **metrics):
    asked = Message(RecordDict(), partition, "train")
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=asked)


def failure_of(partition):
    return Message(Error(1, "boom"), reply_to=Message(RecordDict(), partition, "train"))


def test_nothing_is_spent_at_first():
    assert Spending().largest is None
    Spending().check(left=0, needed=1)


def test_a_client_is_untold_until_it_tells():
    spending = Spending()
    spending.ask([1, 2, 3])
    for reply in (reply_from(1, epsilon=0.5), reply_from(2, loss=1.0), failure_of(3)):
        spending.take(reply)
    assert spending.untold == {2, 3}
    assert spending.epsilon == {1: 0.5}
    spending.ask([1])
    assert spending.untold == {1, 2, 3}


@pytest.mark.parametrize("told", [math.nan, math.inf, -1.0, [1.0]])
def test_what_is_no_epsilon_tells_nothing(told):
    spending = Spending({1: 0.5})
    spending.ask([1])
    spending.take(reply_from(1, epsilon=told))
    assert (spending.epsilon, spending.untold, spending.retired) == ({1: 0.5}, {1}, set())


def test_a_client_whose_epsilon_fell_stays_untold_and_is_retired():
    spending = Spending({1: 0.5, 2: 0.1})
    spending.ask([1, 2])
    spending.take(reply_from(1, epsilon=0.4))
    spending.take(reply_from(2, epsilon=0.1))
    assert spending.epsilon == {1: 0.5, 2: 0.1}
    assert spending.untold == spending.retired == {1}


def test_what_the_servers_noise_spends_is_everyones():
    spending = Spending()
    spending.spend_alike([], 1.0)
    assert spending.largest == 1.0
    spending.spend_alike([4], 2.0)
    spending.spend_alike([5], 3.0)
    assert spending.epsilon == {4: 3.0, 5: 3.0}


def test_too_few_clients_are_left_only_where_some_retired():
    spending = Spending({1: 8.0})
    spending.retire({1})
    spending.check(left=2, needed=2)
    with pytest.raises(BudgetSpentError, match=r"1 of 2 clients .* 2 are needed"):
        spending.check(left=1, needed=2)
