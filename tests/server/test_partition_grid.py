import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedattn_app.engine.local_grid import FIRST_NODE_ID, LocalGrid
from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid, error_line
from fedattn_app.transport.payload import payload_size


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


class Nodes(LocalGrid):
    """Nodes that say they are the given partitions, listed and answering in an odd order."""

    def __init__(self, partitions, num_partitions=None, present=None):
        app = ClientApp()

        @app.query()
        def describe(message, context):
            claim = partitions[context.node_config["partition-id"]]
            if claim == "broken":
                raise ValueError("torch is not installed")
            known = len(partitions) if num_partitions is None else num_partitions
            answer = ConfigRecord({"partition-id": claim, "num-partitions": known})
            return Message(RecordDict({"node": answer}), reply_to=message)

        @app.train()
        def train(message, context):
            claim = partitions[context.node_config["partition-id"]]
            metrics = MetricRecord({"claim": claim})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        super().__init__(app, len(partitions), {})
        self.present = present or (lambda: len(partitions))

    def get_node_ids(self):
        return list(super().get_node_ids())[: self.present()][::-1]

    def send_and_receive(self, messages, *, timeout=None):
        return list(super().send_and_receive(messages))[::-1]


def ask(grid, partitions):
    messages = [Message(RecordDict(), partition, "train") for partition in partitions]
    return [
        (reply.metadata.src_node_id, reply.content["metrics"]["claim"])
        for reply in grid.send_and_receive(messages)
    ]


def test_nodes_are_known_by_their_partition_and_reply_in_that_order():
    grid = PartitionGrid(Nodes([2, 0, 1]))
    assert grid.get_node_ids() == [0, 1, 2]
    assert ask(grid, [2, 0, 1]) == [(0, 0), (1, 1), (2, 2)]


def test_a_reply_is_there_before_the_next_node_has_begun():
    begun = []
    app = ClientApp()

    @app.query()
    def describe(message, context):
        about = ConfigRecord(dict(context.node_config))
        return Message(RecordDict({"node": about}), reply_to=message)

    @app.train()
    def train(message, context):
        begun.append(context.node_config["partition-id"])
        return Message(RecordDict(), reply_to=message)

    grid = PartitionGrid(LocalGrid(app, 3, {}))
    replies = grid.send_and_receive(
        [Message(RecordDict(), k, "train") for k in grid.get_node_ids()]
    )
    assert next(replies).metadata.src_node_id == 0
    assert begun == [0]
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2]


def test_pushed_messages_come_back_from_their_partition():
    grid = PartitionGrid(Nodes([1, 0]))
    grid.get_node_ids()
    ids = list(grid.push_messages([Message(RecordDict(), 1, "train")]))
    (reply,) = grid.pull_messages(ids)
    assert (reply.metadata.src_node_id, reply.content["metrics"]["claim"]) == (1, 1)


def test_nodes_without_a_number_get_the_free_ones():
    assert PartitionGrid(Nodes([-1, 0, -1])).get_node_ids() == [0, 1, 2]


def test_two_nodes_with_one_number_are_both_kept_and_named(caplog):
    grid = PartitionGrid(Nodes([0, 0, 1]))
    assert grid.get_node_ids() == [0, 1, 2]
    assert "two nodes report partition 0" in caplog.text


def test_a_node_that_cannot_answer_is_left_out(caplog):
    grid = PartitionGrid(Nodes([0, "broken", 2]))
    assert grid.wait_for_clients(2) == 2
    assert grid.get_node_ids() == [0, 2]
    assert "torch is not installed" in caplog.text


def test_nodes_that_all_cannot_answer_end_the_run():
    with pytest.raises(RunFailedError, match=r"none of 2 nodes can take part: .*torch"):
        PartitionGrid(Nodes(["broken", "broken"])).wait_for_clients(0)


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr("fedattn_app.server.partition_grid.POLL_SECONDS", 0)


@pytest.mark.usefixtures("no_pause")
def test_waiting_ends_at_the_timeout():
    grid = PartitionGrid(Nodes([0, 1]))
    with pytest.raises(RunFailedError, match="2 of 3 clients connected in 0 s"):
        grid.wait_for_clients(3, timeout=0)


@pytest.mark.usefixtures("no_pause")
def test_a_broken_node_does_not_end_the_wait_for_good_ones():
    polls = iter([1, 1, 3])
    last = []

    def present():
        last.append(next(polls, 3))
        return last[-1]

    grid = PartitionGrid(Nodes(["broken", 1, 2], present=present))
    assert grid.wait_for_clients(2) == 2


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(("minimum", "connected"), [(0, 3), (2, 2), (1, 1)])
def test_waits_for_as_many_as_asked_or_as_there_are_partitions(minimum, connected):
    polls = iter([1, 1, 2, 2, 3, 3])
    seen = []

    def present():
        seen.append(next(polls))
        return seen[-1]

    grid = PartitionGrid(Nodes([0, 1, 2], present=present))
    assert grid.wait_for_clients(minimum) == connected


def test_a_node_that_left_and_one_that_came_are_noticed(caplog):
    count = [3]
    grid = PartitionGrid(Nodes([0, 1, 2], present=lambda: count[0]))
    assert grid.get_node_ids() == [0, 1, 2]
    count[0] = 2
    assert grid.get_node_ids() == [0, 1]
    assert "client 2 has left" in caplog.text
    count[0] = 3
    assert grid.get_node_ids() == [0, 1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"node": ConfigRecord()},
        {"node": ConfigRecord({"partition-id": 1})},
        {"node": ConfigRecord({"partition-id": 1.5, "num-partitions": 3})},
        {"node": ConfigRecord({"partition-id": True, "num-partitions": 3})},
        {"node": MetricRecord({"partition-id": 1, "num-partitions": 3})},
    ],
    ids=["nothing", "empty", "half", "a fraction", "a bool", "another record"],
)
def test_a_node_that_does_not_report_its_partition_is_left_out(caplog, answer):
    app = ClientApp()

    @app.query()
    def describe(message, context):
        partition = context.node_config["partition-id"]
        honest = {"node": ConfigRecord({"partition-id": partition, "num-partitions": 3})}
        return Message(RecordDict(answer if partition == 1 else honest), reply_to=message)

    grid = PartitionGrid(LocalGrid(app, 3, {}))
    assert grid.get_node_ids() == [0, 2]
    assert "a node cannot take part: it does not report its " in caplog.text


def test_one_node_cannot_make_the_server_wait_for_others_that_do_not_exist():
    grid = PartitionGrid(Nodes([0, 1, 2]))
    grid.get_node_ids()
    assert grid.num_partitions == 3
    grid._reported_sizes[FIRST_NODE_ID] = 10**9
    assert grid.num_partitions == 3
    assert grid.wait_for_clients(0) == 3


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (10**12,), "numpy.ndarray", b""),
        Array("float32", (10**100,), "numpy.ndarray", b""),
        Array("\ud800", (1,), "numpy.ndarray", b""),
    ],
    ids=["long", "longer", "surrogate"],
)
def test_a_reply_that_cannot_be_serialised_has_failed(array):
    app = ClientApp()

    @app.query()
    def describe(message, context):
        about = ConfigRecord(dict(context.node_config))
        return Message(RecordDict({"node": about}), reply_to=message)

    @app.train()
    def train(message, context):
        arrays = ArrayRecord()
        arrays["w"] = array if context.node_config["partition-id"] else Array(np.zeros(1))
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    grid = PartitionGrid(LocalGrid(app, 2, {}))
    messages = [Message(RecordDict(), k, "train") for k in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    assert [(r.metadata.src_node_id, r.has_error()) for r in replies] == [(0, False), (1, True)]
    assert "cannot be serialised" in error_line(replies[1])


def test_all_traffic_is_counted_both_ways():
    grid = PartitionGrid(Nodes([0, 1]))
    grid.wait_for_clients(0)
    assert grid.traffic.up > 0  # the answers to the first question
    down = grid.traffic.down
    message = Message(RecordDict({"config": ConfigRecord({"note": "x" * 1000})}), 1, "train")
    size = payload_size(message.content)
    list(grid.send_and_receive([message]))
    assert grid.traffic.down - down == size > 1000


def test_ids_of_the_inner_grid_never_show():
    grid = PartitionGrid(Nodes([0]))
    assert FIRST_NODE_ID not in grid.get_node_ids()


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("Traceback\n  of it\nUserError: model: none\n\n", "UserError: model: none"),
        ("<class 'fedattn_app.errors.UserError'>:<'it's full'>", "it's full"),
        (
            "<class 'flwr.ClientAppException'>:<'\nException occurred. Message: no state-dir'>",
            "no state-dir",
        ),
        ("", "error code 2"),
    ],
)
def test_why_a_reply_failed_is_one_line_without_its_wrapping(reason, line):
    reply = Message(Error(2, reason), reply_to=Message(RecordDict(), 1, "train"))
    assert error_line(reply) == line
