"""Clients whose replies are not as private as they must be."""

import pytest
from helpers.private_clients import changed_by, run_of, trained


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update({"epsilon": float("nan")}), "epsilon is not a finite number"),
        (lambda m: m.update({"epsilon": float("inf")}), "epsilon is not a finite number"),
        (lambda m: m.pop("epsilon"), "metrics differ in epsilon"),
        (lambda m: m.update({"loss": 1.0}), "metrics differ in loss"),
    ],
    ids=["not a number", "infinite", "none", "an exact loss"],
)
def test_a_reply_that_is_not_as_private_as_it_must_be_fails(tiny, opinions, caplog, change, reason):
    result = run_of(tiny | opinions, changed_by(change))
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert trained(result) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "client 1 failed: invalid reply" in caplog.text
    assert reason in caplog.text
    largest = [row["epsilon_max"] for row in result.history[1:]]
    assert largest == sorted(largest)


def test_a_client_whose_epsilon_fell_is_asked_no_more(tiny, opinions, caplog):
    """It forgot what it spent: all that it says of ε from now on is too little."""
    halved = changed_by(lambda m: m.update({"epsilon": 0.5 * m["epsilon"]}))
    result = run_of(tiny | opinions, halved)
    assert trained(result) == [[0, 1, 2], [0, 2], [0, 2]]
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert caplog.text.count("client 1: its privacy ledger is lost; it is asked no more") == 1
    assert result.summary["epsilon_unreported"] == [1]


def test_what_an_unsound_reply_says_of_epsilon_counts(tiny, opinions):
    spendthrift = changed_by(lambda m: m.update({"epsilon": 100.0, "loss": 1.0}))
    result = run_of(tiny | opinions, spendthrift, num_rounds=2)
    assert trained(result) == [[0, 1, 2], [0, 2]]
    assert result.summary["epsilon"] == 100


def test_a_client_that_did_not_say_what_it_spent_last_is_named(tiny, opinions):
    def fail(metrics):
        raise RuntimeError("out of order")

    result = run_of(tiny | opinions, changed_by(fail), num_rounds=2)
    assert result.summary["epsilon_unreported"] == [1]
    longer = {"output-dir": f"{tiny['output-dir']}-3"}
    assert "epsilon_unreported" not in run_of(tiny | opinions | longer, changed_by(fail)).summary
