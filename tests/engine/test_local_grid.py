"""The local grid: errors, log lines and state of clients that run in worker processes."""

import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp
from helpers.worker_tasks import reply, reply_pid, tasks_for

from fedattn_app import client_app
from fedattn_app.engine import shared_memory
from fedattn_app.engine.local_grid import FIRST_NODE_ID, LocalGrid

pytestmark = pytest.mark.skipif(
    not shared_memory.AVAILABLE, reason="memfd_create exists on Linux only"
)


@pytest.fixture
def grid_of():
    """A function that makes a grid of two workers whose training is a function."""
    made = []

    def make(train, num_supernodes=4):
        app = ClientApp()
        app.train()(train)
        made.append(LocalGrid(app, num_supernodes, {}, workers=2))
        return made[-1]

    yield make
    for grid in made:
        grid.close()


def train_on(grid, partitions):
    tasks = tasks_for(FIRST_NODE_ID + partition for partition in partitions)
    return list(grid.send_and_receive([task.message for task in tasks]))


class UnusualError(Exception):
    """An exception that cannot be pickled, like many with more than one argument."""

    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")
        self.function = lambda: left


def test_an_exception_is_the_reply_of_its_client(grid_of):
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            raise UnusualError("this", "that")
        return reply(message, ok=1)

    replies = train_on(grid_of(train), range(4))
    assert [answer.has_error() for answer in replies] == [False, True, False, False]
    assert replies[1].error.reason == "UnusualError: this and that"


def test_log_lines_of_clients_are_logged_in_the_order_of_messages(grid_of, caplog):
    def train(message, context):
        node = context.node_config["partition-id"]
        time.sleep(0.02 * (4 - node))
        client_app.log.debug("below the level")
        client_app.log.info("client %d begins", node)
        client_app.log.warning("client %d ends", node)
        return reply(message, ok=1)

    caplog.set_level("INFO", "fedattn")
    train_on(grid_of(train), range(4))
    steps = [("INFO", "begins"), ("WARNING", "ends")]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [(level, f"client {k} {step}") for k in range(4) for level, step in steps]


def test_a_nodes_state_follows_it_to_any_process(grid_of):
    def train(message, context):
        before = context.state.array_records.get("count", {"count": Array(np.zeros(1))})
        count = before["count"].numpy() + 1
        context.state["count"] = ArrayRecord({"count": Array(count)})
        return reply(message, count=float(count[0]), pid=os.getpid())

    grid = grid_of(train)
    pids = {}
    # A node moves to the other process when that one has no nodes of its own to serve.
    for number, partitions in enumerate([[0, 1, 2, 3], [3, 1], [1, 0], [1, 3]]):
        for answer in train_on(grid, partitions):
            metrics = answer.content["metrics"]
            pids.setdefault(answer.metadata.src_node_id, []).append(metrics["pid"])
            assert metrics["count"] == len(pids[answer.metadata.src_node_id]), number
    assert any(len(set(mine)) == 2 for mine in pids.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_that_a_client_clears_is_empty_afterwards(workers):
    app = ClientApp()

    @app.train()
    def train(message, context):
        found = len(context.state)
        if found:
            context.state.clear()
        else:
            context.state["a"] = MetricRecord({"x": 1})
        return reply(message, found=found)

    grid = LocalGrid(app, 2, {}, workers=workers)
    found = [[a.content["metrics"]["found"] for a in train_on(grid, range(2))] for _ in range(3)]
    grid.close()
    assert found == [[0, 0], [1, 1], [0, 0]]


def test_a_node_gets_one_message_at_a_time(grid_of):
    with pytest.raises(ValueError, match="one message at a time"):
        train_on(grid_of(reply_pid), [1, 1])
