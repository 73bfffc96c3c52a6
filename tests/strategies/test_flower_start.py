"""The strategies under Flower's own `Strategy.start`, with clients that fail."""

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from helpers.replying import record

from fedattn_app.engine.local_grid import LocalGrid
from strategies import AttentionOnly, DecodedReplies, FedAvgM, UpdateChecks, WeightedFedAvg

CLIENTS = 4


def app():
    """Return clients that add 1; client 1 raises, and client 2 sends NaN."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        if partition == 1:
            raise RuntimeError("out of order")
        given = message.content.array_records["arrays"]["shared"].numpy()
        trained = given + (np.nan if partition == 2 else 1)
        metrics = MetricRecord({"num-examples": 10, "loss": 1.0})
        content = RecordDict({"arrays": record(shared=trained), "metrics": metrics})
        return Message(content, reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("out of order")
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


@pytest.mark.parametrize("rule", [WeightedFedAvg, FedAvgM])
def test_failing_clients_do_not_end_the_run(rule):
    checks = UpdateChecks(rule())
    strategy = DecodedReplies(
        AttentionOnly(checks, lambda name: name == "shared"), lambda encoded, sent: encoded
    )
    grid = LocalGrid(app(), CLIENTS, {})
    start = record(shared=np.zeros(3, np.float32), rest=np.ones(2, np.float32))
    result = strategy.start(grid, start, num_rounds=3)
    assert result.arrays["shared"].numpy().tolist() == [3, 3, 3]
    assert result.arrays["rest"].numpy().tolist() == [1, 1]
    assert checks.dropped == {list(grid.get_node_ids())[2]: "shared holds NaN or infinity"}
    assert strategy.dropped == {}
    assert result.evaluate_metrics_clientapp[3]["accuracy"] == 0.5
