"""Messages of asynchronous rounds, with clients that add one to every number."""

from itertools import islice

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedattn_app.client_app import describe
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import set_message_id, set_source_node, task_identity
from fedattn_app.server.async_messages import AsyncMessages
from fedattn_app.server.partition_grid import PartitionGrid
from strategies import AttentionOnly, FedBuff, UpdateChecks


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def adding_one(num_examples=lambda partition: 1):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        given = message.content.array_records["arrays"]["w"].numpy()
        metrics = {"num-examples": num_examples(context.node_config["partition-id"]), "loss": 1.0}
        content = {"arrays": record(given + 1), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    app.query()(describe)
    return app


def has_examples(reply):
    return not reply.has_error() and reply.content["metrics"]["num-examples"] > 0


def record(values):
    return ArrayRecord({"w": Array(np.asarray(values, np.float32))})


def steps(count, clients, concurrency, buffer, seconds=lambda partition: 1.0, app=None, exponent=0):
    """Run so many steps; return the number that all weights have after each, and who answered."""
    grid = PartitionGrid(LocalGrid(app or adding_one(), clients, {}, training_seconds=seconds))
    grid.wait_for_clients(clients)
    rule = FedBuff(concurrency, buffer, exponent)
    strategy = AttentionOnly(UpdateChecks(rule), lambda name: True)
    asynchronous = AsyncMessages(grid, concurrency, timeout=60.0)
    arrays, values, who = record(np.zeros(3)), [], []

    def seen(replies):
        who.append([])
        for reply in replies:
            who[-1].append(reply.metadata.src_node_id)
            yield reply

    for step in range(1, count + 1):

        def messages(limit, step=step):
            made = strategy.configure_train(step, arrays, ConfigRecord(), grid)  # noqa: B023
            return list(islice(made, limit))

        merged, _ = strategy.aggregate_train(
            step, seen(asynchronous.take(buffer, messages, has_examples))
        )
        arrays = merged or arrays
        values.append(float(arrays["w"].numpy()[0]))
    return values, who


@pytest.mark.parametrize(("concurrency", "buffer"), [(4, 4), (4, 2), (10, 5), (6, 4), (5, 1)])
def test_no_step_is_lost(concurrency, buffer):
    values, _ = steps(8, 10, concurrency, buffer)
    assert values == [1, 2, 3, 4, 5, 6, 7, 8]


def test_no_step_is_lost_where_one_is_slow():
    values, who = steps(12, 10, 10, 5, lambda partition: 7.5 if partition == 3 else 1.0)
    assert values == list(range(1, 13))
    assert any(3 in answered for answered in who)


def test_a_late_update_counts_for_less_and_moves_what_is_there_now():
    # Two clients, one at a time in the buffer; the second takes as long as three of the first.
    values, who = steps(4, 2, 2, 1, lambda partition: 3.0 if partition == 1 else 1.0, exponent=0.5)
    assert who == [[0], [0], [0], [1]] or who == [[0], [0], [1], [0]]
    late = who.index([1])  # steps that the server has taken since it was asked
    assert values[late] == pytest.approx(values[late - 1] + (1 + late) ** -0.5, rel=1e-6)


def test_clients_without_examples_fill_no_buffer():
    app = adding_one(lambda partition: 0 if partition == 0 else 1)
    values, who = steps(5, 4, 4, 2, lambda partition: 0.01 if partition == 0 else 1.0, app)
    assert values == [1, 2, 3, 4, 5]
    assert all(len(set(answered) - {0}) == 2 for answered in who)


def test_a_node_that_is_gone_frees_its_place():
    class Gone(LocalGrid):
        def pull_messages(self, message_ids):
            for reply in super().pull_messages(message_ids):
                node = reply.metadata.src_node_id
                if node == list(self.get_node_ids())[1]:
                    asked = Message(RecordDict(), node, "train")
                    set_message_id(asked, reply.metadata.reply_to_message_id)
                    reply = Message(Error(1, "node unavailable"), reply_to=asked)
                    set_source_node(reply, 1)
                yield reply

    grid = PartitionGrid(Gone(adding_one(), 3, {}))
    grid.wait_for_clients(3)
    rule = FedBuff(3, 3, weighting="uniform")
    asynchronous = AsyncMessages(grid, 3, timeout=3600.0)

    def messages(limit):
        return list(islice(rule.configure_train(1, record([0.0]), ConfigRecord(), grid), limit))

    replies = list(asynchronous.take(3, messages, has_examples))
    assert [(r.metadata.src_node_id, r.has_error()) for r in replies] == [
        (0, False),
        (1, True),
        (2, False),
    ]
    assert list(grid.get_node_ids()) == [0, 1, 2]
