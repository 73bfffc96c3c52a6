import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from strategies import AttentionOnly


def test_integer_arrays_are_rounded_not_cut():
    with task_identity():
        strategy = AttentionOnly(FedAvg(), lambda name: True)
        before = ArrayRecord({"steps": Array(np.array([0, 0], dtype=np.int64))})
        strategy.configure_train(1, before, ConfigRecord(), LocalGrid(ClientApp(), 2, {}))
        replies = []
        for node, steps in enumerate(([3, 9], [4, 10])):
            content = RecordDict(
                {
                    "arrays": ArrayRecord({"steps": Array(np.array(steps))}),
                    "metrics": MetricRecord({"num-examples": 2 * node + 1}),
                }
            )
            replies.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
        merged, _ = strategy.aggregate_train(1, replies)
    assert merged["steps"].numpy().dtype == np.int64
    assert merged["steps"].numpy().tolist() == [4, 10]  # means 3.75 and 9.75
