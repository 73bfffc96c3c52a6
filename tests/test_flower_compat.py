"""Each function against Flower's own objects: a failure says which private part has changed."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from fedattn_app import flower_compat
from fedattn_app.flower_compat import (
    LOCAL_RUN_ID,
    SERVER_NODE_ID,
    Run,
    empty_run,
    failure_reply,
    is_simulated,
    message_with_metadata,
    protobuf_size,
    set_message_id,
    set_source_node,
    task_identity,
)


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


@pytest.fixture
def message():
    return Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, "train")


def test_a_message_takes_the_given_id_and_its_reply_refers_to_it(message):
    set_message_id(message, "number one")
    assert message.metadata.message_id == "number one"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "number one"


def test_a_reply_takes_the_given_sender(message):
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.src_node_id == 7
    set_source_node(reply, 3)
    assert reply.metadata.src_node_id == 3


def test_a_message_is_made_from_metadata_and_content(message):
    content = RecordDict({"config": ConfigRecord({"b": 2})})
    made = message_with_metadata(message.metadata, content)
    assert isinstance(made, Message)
    assert made.content is content
    assert made.metadata.dst_node_id == 7
    assert made.metadata.message_type == "train"


def test_a_failure_is_a_reply_with_flowers_error_code(message):
    set_message_id(message, "number one")
    reply = failure_reply(message, "out of memory")
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "out of memory")
    assert reply.metadata.src_node_id == 7
    assert reply.metadata.reply_to_message_id == "number one"


def test_the_protobuf_size_is_the_length_of_what_is_sent():
    array = Array(np.zeros((3, 4)))
    assert array.stype == flower_compat.NUMPY_FORMAT
    content = RecordDict({"a": ArrayRecord({"w": array}), "c": ConfigRecord({"b": 2})})
    assert protobuf_size(content) == len(recorddict_to_proto(content).SerializeToString())


def test_an_empty_run_has_the_given_id_and_the_type_that_a_grid_takes():
    run = empty_run(5)
    assert run.run_id == 5
    assert Grid.set_run.__annotations__["run"] in (Run, "Run")


def test_messages_can_be_made_inside_the_identity_only(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(flower_compat.TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 7, "train")
    with task_identity():
        metadata = Message(RecordDict(), 7, "train").metadata
        assert (metadata.run_id, metadata.src_node_id) == (LOCAL_RUN_ID, SERVER_NODE_ID)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 7, "train")


def test_the_grid_says_whether_its_clients_are_simulated():
    assert is_simulated(object.__new__(InMemoryGrid))
    assert not is_simulated(HttpGrid(token="none"))
