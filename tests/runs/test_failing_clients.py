"""Runs with clients that fail or whose replies are invalid."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, Message
from flwr.clientapp import ClientApp
from helpers.runs import CLIENTS, run_app

from fedattn_app import client_app
from fedattn_app.errors import RunFailedError
from fedattn_app.results.run_result import RunResult
from fedattn_app.simulation import simulate


def altered(change):
    """Our ClientApp, but `change` modifies the training replies of client 1."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context):
        reply = client_app.app(message, context)
        if context.node_config["partition-id"] == 1:
            change(reply.content)
        return reply

    app.evaluate()(client_app.app)
    app.query()(client_app.describe)
    return app


def replace_bias(value):
    def change(content):
        content["arrays"]["head.bias"] = Array(np.asarray(value))

    return change


INVALID_REPLIES = {
    "another shape": (replace_bias(np.zeros(9, np.float32)), "head.bias is float32 (9,)"),
    "a shape that broadcasts": (replace_bias(np.zeros(1, np.float32)), "head.bias is float32 (1,)"),
    "another dtype": (replace_bias(np.zeros(6)), "head.bias is float64"),
    "not a number": (replace_bias(np.full(6, np.nan, np.float32)), "head.bias holds NaN"),
    "a missing array": (lambda c: c["arrays"].pop("head.bias"), "arrays differ in head.bias"),
    "a missing metric": (lambda c: c["metrics"].pop("loss"), "metrics differ in loss"),
    "an extra metric": (lambda c: c["metrics"].update(extra=1), "metrics differ in extra"),
    "an infinite metric": (lambda c: c["metrics"].update(loss=np.inf), "loss is not"),
    "a negative loss": (lambda c: c["metrics"].update(loss=-1.0), "loss is -1"),
    "a negative number of examples": (
        lambda c: c["metrics"].update({"num-examples": -3}),
        "num-examples is -3",
    ),
    "a loss too large to sum": (lambda c: c["metrics"].update(loss=1e308), "loss is 1e+308"),
    "no metrics": (lambda c: c.pop("metrics"), "one record of metrics"),
}


@pytest.mark.parametrize("name", INVALID_REPLIES)
def test_an_invalid_reply_counts_as_a_failure(tiny, caplog, name):
    change, reason = INVALID_REPLIES[name]
    result = run_app(altered(change), tiny)
    assert [row["failures"] for row in result.history] == [0, 1, 1]
    dropped = "client 1: its update is dropped" in caplog.text
    assert dropped != ("client 1 failed: invalid reply" in caplog.text)
    assert [row["dropped"] for row in result.history] == [0, int(dropped), int(dropped)]
    assert reason in caplog.text
    assert all(np.isfinite(array).all() for array in result.arrays.values())


def app_where(partition, change):
    """Our ClientApp, but `change` maps the context of client `partition` to another."""
    app = ClientApp()

    def passing(message: Message, context):
        if context.node_config["partition-id"] == partition:
            context = change(context)
        return client_app.app(message, context)

    for register in (app.train, app.evaluate):
        register()(passing)
    app.query()(client_app.describe)
    return app


def with_run_config(**settings):
    return lambda context: replace(context, run_config={**context.run_config, **settings})


# A client that fails in training can still evaluate; a misconfigured one can do neither.
FAILURES = {"not finite": (1, 1)}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seed": 9}, "frozen parameters of this node differ"),
        ({"shared": "head"}, "shares other parameters"),
        ({"learning-rate": 1e30}, "not finite"),
        ({"dataset": "file", "data-path": "/nowhere.csv"}, "does not exist"),
    ],
)
def test_a_failing_client_is_named_and_the_others_continue(tiny, caplog, settings, reason):
    result = run_app(app_where(1, with_run_config(**settings)), tiny)
    assert [row["failures"] for row in result.history] == [0, *FAILURES.get(reason, (2, 2))]
    trained = {row["partition"] for row in result.clients if row["num_examples"] is not None}
    assert trained == {0, 2}
    assert "client 1 failed" in caplog.text
    assert reason in caplog.text


def test_a_round_in_which_all_clients_fail_ends_the_run_and_keeps_earlier_results(tiny):
    with pytest.raises(RunFailedError, match=r"round 1: all 3 clients failed: .*not finite"):
        simulate(tiny | {"learning-rate": 1e30}, CLIENTS, quiet=True)


def test_a_diverging_global_model_ends_the_run_and_keeps_earlier_results(tiny, tmp_path):
    more = {"optimizer": "sgd", "learning-rate": 1e6, "shared": "all", "num-rounds": 3}
    with pytest.raises(RunFailedError, match=r"round \d: .*not finite; lower learning-rate"):
        simulate(tiny | more, CLIENTS, quiet=True)
    rounds = {row["round"] for row in RunResult(tmp_path / "run").history}
    assert {row["round"] for row in RunResult(tmp_path / "run").clients} == rounds - {0}
