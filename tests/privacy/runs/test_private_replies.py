"""Invalid replies of clients under dp-sgd, and clients that lose their ledger."""

import pytest
from helpers.private_clients import app_with_metrics_changed_by, participants, run_with


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
def test_a_reply_with_wrong_metrics_is_a_failure(tiny, opinions, caplog, change, reason):
    result = run_with(tiny | opinions, app_with_metrics_changed_by(change))
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert participants(result) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "client 1 failed: invalid reply" in caplog.text
    assert reason in caplog.text
    largest = [row["epsilon_max"] for row in result.history[1:]]
    assert largest == sorted(largest)


def test_a_client_whose_epsilon_fell_is_not_asked_again(tiny, opinions, caplog):
    """Its ledger is lost, so every ε that it reports from now on is too small."""
    halved = app_with_metrics_changed_by(lambda m: m.update({"epsilon": 0.5 * m["epsilon"]}))
    result = run_with(tiny | opinions, halved)
    assert participants(result) == [[0, 1, 2], [0, 2], [0, 2]]
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert caplog.text.count("client 1: its privacy ledger is lost; it is not asked again") == 1
    assert result.summary["epsilon_unreported"] == [1]


def test_the_epsilon_of_an_invalid_reply_counts(tiny, opinions):
    expensive = app_with_metrics_changed_by(lambda m: m.update({"epsilon": 100.0, "loss": 1.0}))
    result = run_with(tiny | opinions, expensive, num_rounds=2)
    assert participants(result) == [[0, 1, 2], [0, 2]]
    assert result.summary["epsilon"] == 100


def test_a_client_that_did_not_report_its_last_epsilon_is_listed(tiny, opinions):
    def fail(metrics):
        raise RuntimeError("out of order")

    result = run_with(tiny | opinions, app_with_metrics_changed_by(fail), num_rounds=2)
    assert result.summary["epsilon_unreported"] == [1]
    longer = {"output-dir": f"{tiny['output-dir']}-3"}
    assert (
        "epsilon_unreported"
        not in run_with(tiny | opinions | longer, app_with_metrics_changed_by(fail)).summary
    )
