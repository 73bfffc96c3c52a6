"""The local simulation engine: Flower's `Grid` on this machine, without a daemon or a start-up.

It hands each message to the same `ClientApp` object that a real node would run, with one torch
thread, in this process or in several: one seed gives the same bits everywhere, as it does in
Flower's own engine.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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

from fedattn_app.engine.workers import Answer, Task, Workers
from fedattn_app.transport.lazy_array import held

RUN_ID = 1
TASK_ID = 1
FIRST_NODE_ID = SUPERLINK_NODE_ID + 1

log = getLogger("fedattn")


class LocalGrid(Grid):
    """A `Grid` over `num_supernodes` virtual nodes that run `client_app`.

    Each node sees `run_config` and a node-config of ``partition-id`` and ``num-partitions``.
    `on_reply` is called after each reply, for a progress bar. A node's state lives as long as the
    grid, exceptions or not, as on a real SuperNode. With `workers` above 1 so many processes share
    the messages that carry arrays; `close` ends them.

    `seconds` says how long a node, by its partition, takes to answer, on a clock of the grid's own:
    a reply to a pushed message can be pulled when no other comes before it, and `clock` is the time
    when the last one came. Nobody waits for it to pass.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        run_config: UserConfig,
        on_reply: Callable[[Message], None] = lambda reply: None,
        workers: int = 1,
        seconds: Callable[[int], float] = lambda partition: 1.0,
    ) -> None:
        self.client_app = client_app
        self.num_supernodes = num_supernodes
        self.run_config = run_config
        self.on_reply = on_reply
        self._run = Run.create_empty(RUN_ID)
        self._workers = Workers(self._answer, workers) if workers > 1 else None
        self._states: dict[int, RecordDict] = {}  # of the nodes that keep anything
        self.seconds = seconds
        self.clock = 0.0
        self._waiting: dict[str, tuple[float, Message]] = {}  # when the reply comes

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
            self._waiting[message.metadata.message_id] = self._comes(message), message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run those of the queued messages that are answered next, and return their replies."""
        asked = {key: self._waiting[key] for key in message_ids if key in self._waiting}
        if not asked:
            return []
        self.clock = min(comes for comes, _ in asked.values())
        ready = [key for key, (comes, _) in asked.items() if comes == self.clock]
        return self._replies([self._waiting.pop(key)[1] for key in ready])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Yield the replies in the order of the messages; `timeout` has no meaning here."""
        asked = list(messages)
        self.clock = max(map(self._comes, asked), default=self.clock)
        for message in asked:
            message.metadata.__dict__["_message_id"] = str(uuid4())
        return self._replies(asked)

    def _comes(self, message: Message) -> float:
        """Return when the reply to a message that is sent now comes."""
        partition = message.metadata.dst_node_id - FIRST_NODE_ID
        return self.clock + self.seconds(partition) * (message.metadata.message_type == "train")

    def close(self) -> None:
        """End the processes of this grid."""
        if self._workers:
            self._workers.close()

    def _replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        if len({message.metadata.dst_node_id for message in messages}) < len(messages):
            raise ValueError("a node can be sent one message at a time")
        contents = {id(message.content): message.content for message in messages}
        readable = {key: held(content) for key, content in contents.items()}
        for message in messages:
            message.content = readable[id(message.content)]
        tasks = [Task(message, self._context(message.metadata.dst_node_id)) for message in messages]
        carry_arrays = any(content.array_records for content in contents.values())
        run = self._workers.run if self._workers and carry_arrays else self._run_here
        for task, answer in zip(tasks, run(tasks), strict=True):
            for record in answer.lines:
                log.handle(record)
            reply = answer.reply or _failed(task.message, f"its process died: {answer.died}")
            reply.metadata.__dict__["_message_id"] = str(uuid4())
            self._states.pop(task.context.node_id, None)
            if answer.state:
                self._states[task.context.node_id] = answer.state
            self.on_reply(reply)
            yield reply

    def _run_here(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        for task in tasks:
            with one_thread():
                reply = self._answer(task.message, task.context)
            yield Answer(reply, task.context.state)

    def _answer(self, message: Message, context: Context) -> Message:
        try:
            return self.client_app(message, context)
        except Exception as error:  # whatever a client raises is its reply, as in Flower
            log.debug("a client raised", exc_info=error)
            return _failed(message, f"{type(error).__name__}: {error}")

    def _context(self, node_id: int) -> Context:
        node_config: UserConfig = {
            "partition-id": node_id - FIRST_NODE_ID,
            "num-partitions": self.num_supernodes,
        }
        state = self._states.get(node_id) or RecordDict()
        return Context(RUN_ID, node_id, node_config, state, self.run_config)


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


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
