"""The parts of Flower that are not its public API, but for those of a SuperNode.

`bundles.flower_supernode` has the others, and no third file uses any.

Each was seen in flwr 1.41.0 and 1.42.0, under the same name and with the same meaning. When a new
version of flwr breaks one, the repair is here, and ``tests/test_flower_compat.py`` says which one
broke. `strategies/` uses none of them.

=======================================  ==========================================================
private part                             why the public API is not enough
=======================================  ==========================================================
``Metadata.__dict__["_message_id"]``     A `Grid` must number its messages, but there is no setter.
``Metadata.__dict__["_src_node_id"]``    A wrapping `Grid` must rename senders; again no setter.
``flwr.app.message.make_message``        `Message` takes no metadata.
``flwr.common.constant``                 Error codes, array formats and the SuperLink's node id.
``flwr.common.serde``                    The size of a record needs its protocol buffer.
``flwr.supercore.run.Run``               The abstract `Grid` has it in its signatures.
``flwr.superlink.grid``                  Only a grid's class says whether its clients are simulated.
``flwr.supercore.task_identity``         Without an identity no process can make a `Message`.
=======================================  ==========================================================
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

NUMPY_FORMAT = SType.NUMPY  # how Flower names the serialisation of a numpy array
SERVER_NODE_ID = SUPERLINK_NODE_ID  # the node id of the server; all others are larger
LOCAL_RUN_ID = 1
LOCAL_TASK_ID = 1


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of `message` to `message_id`."""
    message.metadata.__dict__["_message_id"] = message_id


def set_source_node(message: Message, node_id: int) -> None:
    """Make `node_id` the sender of `message`."""
    message.metadata.__dict__["_src_node_id"] = node_id


def message_with_metadata(metadata: Metadata, content: RecordDict) -> Message:
    """Return a message with the given metadata and content."""
    return make_message(metadata, content)


def failure_reply(message: Message, reason: str) -> Message:
    """Return a reply to `message` that says the client failed, with the text `reason`."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def failed(reply: Message, reason: str) -> Message:
    """Return a failed reply in place of `reply`, with its metadata and `reason` as its text."""
    return make_message(reply.metadata, error=Error(ErrorCode.UNKNOWN, reason))


def protobuf_size(content: RecordDict) -> int:
    """Return the size of `content` in bytes as Flower's protocol buffer.

    This copies all array data: see `fedattn_app.transport.payload` for a size without copies.
    """
    return int(recorddict_to_proto(content).ByteSize())


def empty_run(run_id: int) -> Run:
    """Return Flower's record of a run, with an id and nothing else."""
    return Run.create_empty(run_id)


def in_simulation_engine() -> bool:
    """Return whether Flower's simulation engine runs this process, which is then a worker of Ray.

    A node's own process never starts Ray.
    """
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def is_simulated(grid: Grid) -> bool:
    """Return whether the clients behind `grid` are simulated by Flower in this process.

    A ServerApp of a SuperLink with real nodes has another grid. So has what is unknown here, which
    counts as real.
    """
    from flwr.superlink.grid import InMemoryGrid  # slow to import, and of no use on a node

    return isinstance(grid, InMemoryGrid)


@contextmanager
def task_identity() -> Iterator[None]:
    """Let this process create messages as the server of a local run.

    Flower sets the identity in the processes that it starts itself, and `Message` raises
    `RuntimeError` without one. The previous identity is restored at the end.
    """
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id = LOCAL_TASK_ID, LOCAL_RUN_ID
    TaskIdentity.node_id = SERVER_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@contextmanager
def seeded_sampling(*seed: int | str) -> Iterator[None]:
    """Seed Python's global generator, from which Flower's strategies sample, and restore it."""
    before = random.getstate()
    random.seed("/".join(map(str, seed)))
    try:
        yield
    finally:
        random.setstate(before)
