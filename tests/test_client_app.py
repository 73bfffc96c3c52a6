"""The ClientApp's translation of messages: what each reply holds."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from helpers.nodes import OPEN, PRIVATE, SETTINGS, context, ledger_of, message, train

from fedattn_app import client_app
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.policy.reasons import Reason
from fedattn_app.privacy.ledger import Ledger

pytestmark = pytest.mark.usefixtures("task_id")


def test_a_training_reply_has_the_shared_arrays_by_name(site):
    request = message()
    reply = client_app.app(request, context(data_path=site, **OPEN))
    sent = request.content["arrays"]
    assert list(reply.content["arrays"]) != []
    assert set(reply.content["arrays"]) == set(sent)
    for name, array in reply.content["arrays"].items():
        assert (array.dtype, array.shape) == (sent[name].dtype, sent[name].shape)
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == 36
    assert set(metrics) == {"num-examples", "loss", "accuracy", "seconds"}


def test_an_evaluation_reply_has_no_arrays(site):
    reply = client_app.app(message("evaluate"), context(data_path=site, **OPEN))
    assert not reply.content.array_records
    assert reply.content["metrics"]["num-examples"] == 4


def test_a_private_training_reply_has_only_epsilon_and_whether_the_budget_is_spent(
    private_node, tmp_path
):
    node = private_node()
    reply = train(node)
    metrics = reply.content["metrics"]
    assert set(metrics) == {"num-examples", "epsilon", "budget-spent"}
    assert metrics["num-examples"] == 1
    assert set(reply.content) == {"arrays", "metrics"}
    (entry,) = ledger_of(tmp_path).entries
    assert (entry.run, entry.server_round, entry.epsilon) == (1, 1, metrics["epsilon"])
    assert Ledger(node.state).entries == [entry]
    for name, array in reply.content["arrays"].items():
        assert np.isfinite(array.numpy()).all(), name


def test_a_private_evaluation_reply_has_only_counts_and_epsilon(private_node, tmp_path):
    run_config = PRIVATE | {"evaluate-epsilon": 1.0}
    reply = client_app.app(message("evaluate", run_config), private_node(run_config))
    counts = {f"{kind}-{k}" for kind in ("support", "predicted", "correct") for k in range(2)}
    assert set(reply.content["metrics"]) == {"num-examples", "epsilon", "budget-spent", *counts}
    assert set(reply.content) == {"metrics"}
    assert [entry.kind for entry in ledger_of(tmp_path).entries] == ["evaluate"]


def test_arrays_that_this_node_does_not_share_are_refused(site):
    request = message(run_config=SETTINGS | {"shared": "head"})
    reply = client_app.app(request, context(data_path=site, **OPEN))
    assert reply.error.reason == Reason.SHARED


@pytest.mark.parametrize(
    ("node_config", "answer"),
    [
        ({"partition_id": 4, "num_partitions": 9}, (4, 9, False)),
        ({}, (-1, 0, False)),
        ({"state_dir": "/somewhere", "partition_id": 2}, (2, 0, False)),
        ({"data_path": "/not/read/here.csv", "num_partitions": 3}, (-1, 3, True)),
    ],
)
def test_a_reply_to_a_query_names_the_partition(node_config, answer):
    reply = client_app.app(Message(RecordDict(), 2, "query"), context(**node_config))
    names = ("partition-id", "num-partitions", "own-data")
    assert reply.content["node"] == dict(zip(names, answer, strict=True))


def test_a_local_grid_reports_what_a_client_raised(site):
    grid = LocalGrid(client_app.app, 1, {"batch-size": 0})
    (reply,) = grid.send_and_receive([message()])
    assert reply.has_error()
    assert "batch-size = 0" in reply.error.reason
