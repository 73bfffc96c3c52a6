"""Replies are sorted once into valid, failed and out of budget."""

import math

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedattn_app.flower_compat import set_source_node, task_identity
from fedattn_app.server.budgets import Budgets
from fedattn_app.server.cohort import Cohort

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds"})
PRIVATE_METRICS = frozenset({"num-examples", "epsilon", "budget-spent"})
GOOD = {"num-examples": 3, "loss": 0.5, "accuracy": 1.0, "seconds": 0.1}


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def reply(partition, content=None, **metrics):
    """A reply of a partition, with one record of metrics unless `content` is given."""
    asked = Message(RecordDict(), partition, "train")
    answer = RecordDict({"metrics": MetricRecord(metrics)}) if content is None else content
    made = Message(answer, reply_to=asked)
    set_source_node(made, partition)
    return made


def failure(partition, reason):
    asked = Message(RecordDict(), partition, "train")
    made = Message(Error(1, reason), reply_to=asked)
    set_source_node(made, partition)
    return made


def cohort_of(replies, metrics=METRICS, budgets=None, private=False):
    return Cohort(iter(replies), metrics, budgets or Budgets(), private)


def partitions(cohort):
    return [reply.metadata.src_node_id for reply in cohort]


def test_valid_replies_pass_one_at_a_time_and_their_metrics_are_kept():
    taken = []

    def replies():
        for partition in range(3):
            taken.append(partition)
            yield reply(partition, **GOOD)

    cohort = cohort_of(replies())
    assert next(iter(cohort)).metadata.src_node_id == 0
    assert taken == [0]
    cohort.finish()
    assert list(cohort.metrics) == [0, 1, 2]
    assert cohort.failures == {}


def test_a_failed_reply_is_left_out_with_its_reason(caplog):
    cohort = cohort_of([failure(0, "Traceback\nout of memory"), reply(1, **GOOD)])
    assert partitions(cohort) == [1]
    assert cohort.failures == {0: "out of memory"}
    assert "client 0 failed: out of memory" in caplog.text


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({**GOOD, "loss": math.nan}, "loss is not a finite number"),
        ({**GOOD, "loss": [1.0]}, "loss is not a finite number"),
        ({**GOOD, "loss": -1.0}, "loss is -1"),
        ({**GOOD, "seconds": 1e300}, "seconds is 1e+300"),
        ({**GOOD, "num-examples": -5}, "num-examples is -5"),
        ({**GOOD, "secret": 1.0}, "its metrics differ in secret"),
        ({**GOOD, "accuracy": 1.5}, "accuracy is 1.5"),
        ({**GOOD, "num-examples": 2.5}, "num-examples is 2.5"),
        ({"num-examples": 3}, "its metrics differ in accuracy, loss, seconds"),
    ],
)
def test_a_reply_with_impossible_metrics_is_invalid(metrics, reason):
    cohort = cohort_of([reply(0, **metrics), reply(1, **GOOD)])
    assert partitions(cohort) == [1]
    assert cohort.failures == {0: f"invalid reply: {reason}"}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": MetricRecord(GOOD)}),
        RecordDict({"metrics": MetricRecord(GOOD), "more": MetricRecord(GOOD)}),
        RecordDict({"metrics": ConfigRecord({"loss": 1.0})}),
    ],
    ids=["none", "another name", "two", "a config record"],
)
def test_a_reply_must_have_one_record_of_metrics(content):
    cohort = cohort_of([reply(0, content)])
    assert partitions(cohort) == []
    assert cohort.failures == {0: "invalid reply: it must have one record of metrics"}


def test_clients_out_of_budget_have_not_failed():
    spent = {"num-examples": 0, "epsilon": 8.0, "budget-spent": 1}
    left = {"num-examples": 1, "epsilon": 2.0, "budget-spent": 0}
    budgets = Budgets()
    budgets.record_messages([0, 1])
    cohort = cohort_of([reply(0, **spent), reply(1, **left)], PRIVATE_METRICS, budgets, True)
    assert partitions(cohort) == [1]
    assert (set(cohort.out_of_budget), cohort.failures) == ({0}, {})
    assert budgets.epsilon == {0: 8.0, 1: 2.0}
    assert budgets.unreported == set()


def test_epsilon_that_fell_is_invalid_and_retires_the_client():
    budgets = Budgets({0: 3.0})
    metrics = {"num-examples": 1, "epsilon": 2.0, "budget-spent": 0}
    cohort = cohort_of([reply(0, **metrics)], PRIVATE_METRICS, budgets, True)
    assert partitions(cohort) == []
    assert "its privacy ledger is lost" in cohort.failures[0]
    assert budgets.retired == {0}


def test_epsilon_of_an_invalid_reply_counts():
    budgets = Budgets()
    metrics = {"num-examples": 1, "epsilon": 2.5, "budget-spent": 0, "secret": 1.0}
    cohort = cohort_of([reply(0, **metrics)], PRIVATE_METRICS, budgets, True)
    assert partitions(cohort) == []
    assert budgets.epsilon == {0: 2.5}


def test_refused_updates_count_as_failed():
    cohort = cohort_of([reply(0, **GOOD), reply(1, **GOOD)])
    cohort.finish()
    cohort.drop({1: "too long", 7: "unknown"})
    assert set(cohort.metrics) == {0}
    assert cohort.failures == {1: "too long", 7: "unknown"}


def test_only_valid_replies_with_examples_rest_on_examples():
    cohort = cohort_of([reply(0, **GOOD), reply(1, **{**GOOD, "num-examples": 0}), failure(2, "x")])
    cohort.finish()
    assert [cohort.has_examples(partition) for partition in range(4)] == [True, False, False, False]


COUNTS = {"support-0": 2, "support-1": 1, "predicted-0": 3, "predicted-1": 0} | {
    "correct-0": 2,
    "correct-1": 0,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"support-0": 3},
        {"support-0": -2, "support-1": 5},
        {"support-0": 1.5, "support-1": 1.5},
        {"correct-0": 3},
        {"correct-1": -1},
        {"num-examples": 4},
    ],
    ids=str,
)
def test_exact_counts_must_agree_with_each_other(change):
    metrics = {**GOOD, **COUNTS, **change}
    cohort = cohort_of([reply(0, **metrics)], frozenset(metrics))
    assert partitions(cohort) == ([] if change else [0])
    assert not change or cohort.failures[0].startswith("invalid reply: ")


def test_noisy_counts_may_contradict_each_other():
    metrics = {"num-examples": 1, "epsilon": 1.0, "budget-spent": 0, **COUNTS, "support-0": -7}
    cohort = cohort_of([reply(0, **metrics)], frozenset(metrics), private=True)
    assert partitions(cohort) == [0]


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "a\nclient 2 failed: forged", "\x1b[2J", "\ud800"],
    ids=["long", "two lines", "escape", "surrogate"],
)
def test_a_clients_text_is_one_short_printable_line_in_the_log(caplog, text):
    cohort = cohort_of([failure(0, text), reply(1, **GOOD, **{text: 1.0})])
    assert partitions(cohort) == []
    for line in (*cohort.failures.values(), *caplog.messages):
        assert line.isprintable()
        assert len(line) < 1100
