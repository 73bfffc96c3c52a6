"""The local simulation engine: Flower's `Grid` on this machine, without a daemon or a start-up.

It hands each message to the same `ClientApp` object that a real node would run, in this process,
with one torch thread, as Flower's own engine does: one seed gives the same bits in both.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import getLogger
from uuid import uuid4

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
TASK_ID = 1
FIRST_NODE_ID = SUPERLINK_NODE_ID + 1

log = getLogger("fedattn")


class LocalGrid(Grid):
    """A `Grid` over `num_supernodes` virtual nodes that run `client_app` one after another.

    Each node sees `run_config` and a node-config of ``partition-id`` and ``num-partitions``.
    `on_reply` is called after each reply, for a progress bar. A node's `Context` lives as long as
    the grid, exceptions or not, as on a real SuperNode.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        run_config: UserConfig,
        on_reply: Callable[[Message], None] = lambda reply: None,
    ) -> None:
        self.client_app = client_app
        self.num_supernodes = num_supernodes
        self.run_config = run_config
        self.on_reply = on_reply
        self._run = Run.create_empty(RUN_ID)
        self._contexts: dict[int, Context] = {}
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Use `run` as this grid's run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid serves."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self.num_supernodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())  # Flower offers no setter
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the queued messages of `message_ids` and return their replies."""
        asked = [self._waiting.pop(key) for key in message_ids if key in self._waiting]
        return [self._process(message) for message in asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run messages in the order given; `timeout` has no meaning here."""
        return self.pull_messages(self.push_messages(messages))

    def _process(self, message: Message) -> Message:
        try:
            with one_thread():
                reply = self.client_app(message, self._context(message.metadata.dst_node_id))
        except Exception as error:  # whatever a client raises is its reply, as in Flower
            log.debug("a client raised", exc_info=error)
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, f"{type(error).__name__}: {error}"), reply_to=message)
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        self.on_reply(reply)
        return reply

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            node_config: UserConfig = {
                "partition-id": node_id - FIRST_NODE_ID,
                "num-partitions": self.num_supernodes,
            }
            self._contexts[node_id] = Context(
                RUN_ID, node_id, node_config, RecordDict(), self.run_config
            )
        return self._contexts[node_id]


@contextmanager
def task_identity() -> Iterator[None]:
    """Give this process the identity without which Flower makes no `Message`."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id = TASK_ID, RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, so that sums are taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
