"""A Flower `Grid` on this machine: the local simulation engine.

It needs no daemon and starts at once. Each message goes to the same `ClientApp` object that a real
node would run, with one torch thread, in this process or in several. One seed gives the same bits
for any number of processes, and the same bits as Flower's own simulation engine.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from uuid import uuid4

import torch
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedattn_app.engine.virtual_node import VirtualContext
from fedattn_app.engine.workers import Answer, Task, Workers
from fedattn_app.flower_compat import (
    LOCAL_RUN_ID,
    SERVER_NODE_ID,
    Run,
    empty_run,
    failure_reply,
    set_message_id,
)
from fedattn_app.transport.lazy_array import with_lazy_arrays

FIRST_NODE_ID = SERVER_NODE_ID + 1

log = getLogger("fedattn")


class LocalGrid(Grid):
    """A `Grid` over virtual nodes that all run one `ClientApp`.

    A node's state lives as long as the grid, also after an exception, as on a real SuperNode.

    The grid has a simulated clock for pushed messages. `clock` is the time at which the most recent
    reply arrived, and `pull_messages` returns the replies that arrive next. No real time passes.

    Args:
        client_app: The app that answers every message.
        num_supernodes: Number of virtual nodes, at least 1.
        run_config: The run-config that every node sees. A node's node-config has ``partition-id``
            and ``num-partitions``.
        on_reply: Called with each reply, for example to advance a progress bar.
        workers: Number of processes that share the messages with arrays. With 1 this process
            answers everything. `close` ends the processes.
        training_seconds: Maps a partition to the simulated seconds that its training takes.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        run_config: UserConfig,
        on_reply: Callable[[Message], None] = lambda reply: None,
        workers: int = 1,
        training_seconds: Callable[[int], float] = lambda partition: 1.0,
    ) -> None:
        self.client_app = client_app
        self.num_supernodes = num_supernodes
        self.run_config = run_config
        self.on_reply = on_reply
        self._run = empty_run(LOCAL_RUN_ID)
        self._workers = Workers(self._answer, workers) if workers > 1 else None
        self._states: dict[int, RecordDict] = {}  # by node id, without empty states
        self.training_seconds = training_seconds
        self.clock = 0.0
        self._pushed: dict[str, tuple[float, Message]] = {}  # by message id, with its reply's time

    def set_run(self, run: Run) -> None:
        """Use `run` as this grid's run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid serves."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to the node `dst_node_id`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self.num_supernodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            set_message_id(message, str(uuid4()))
            self._pushed[message.metadata.message_id] = self.arrival_time(message), message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the messages whose replies arrive next, and return these replies.

        The clock moves to the time at which they arrive. Unknown ids are ignored.
        """
        pending = {key: self._pushed[key] for key in message_ids if key in self._pushed}
        if not pending:
            return []
        self.clock = min(time for time, _ in pending.values())
        ready = [key for key, (time, _) in pending.items() if time == self.clock]
        return self._replies([self._pushed.pop(key)[1] for key in ready])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run all messages and yield the replies in the order of the messages.

        `timeout` is ignored.
        """
        sent = list(messages)
        self.clock = max(map(self.arrival_time, sent), default=self.clock)
        for message in sent:
            set_message_id(message, str(uuid4()))
        return self._replies(sent)

    def arrival_time(self, message: Message) -> float:
        """Return the simulated time at which the reply to `message` arrives if it is sent now."""
        partition = message.metadata.dst_node_id - FIRST_NODE_ID
        return self.clock + self.training_seconds(partition) * (
            message.metadata.message_type == "train"
        )

    def close(self) -> None:
        """End the worker processes."""
        if self._workers:
            self._workers.close()

    def _replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies in the order of `messages`, which must be to different nodes."""
        if len({message.metadata.dst_node_id for message in messages}) < len(messages):
            raise ValueError("a node can be sent one message at a time")
        contents = {id(message.content): message.content for message in messages}
        lazy = {key: with_lazy_arrays(content) for key, content in contents.items()}
        for message in messages:
            message.content = lazy[id(message.content)]
        tasks = [Task(message, self._context(message.metadata.dst_node_id)) for message in messages]
        has_arrays = any(content.array_records for content in contents.values())
        run = self._workers.run if self._workers and has_arrays else self._run_in_this_process
        for task, answer in zip(tasks, run(tasks), strict=True):
            for record in answer.log_records:
                log.handle(record)
            reply = answer.reply or failure_reply(
                task.message, f"its process died: {answer.death_cause}"
            )
            set_message_id(reply, str(uuid4()))
            self._states.pop(task.context.node_id, None)
            if answer.state:
                self._states[task.context.node_id] = answer.state
            self.on_reply(reply)
            yield reply

    def _run_in_this_process(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        for task in tasks:
            with one_thread():
                reply = self._answer(task.message, task.context)
            yield Answer(reply, task.context.state)

    def _answer(self, message: Message, context: Context) -> Message:
        """Return the client's reply, or one with its exception, as Flower does."""
        try:
            return self.client_app(message, context)
        except Exception as error:
            log.debug("a client raised", exc_info=error)
            return failure_reply(message, f"{type(error).__name__}: {error}")

    def _context(self, node_id: int) -> Context:
        node_config: UserConfig = {
            "partition-id": node_id - FIRST_NODE_ID,
            "num-partitions": self.num_supernodes,
        }
        state = self._states.get(node_id) or RecordDict()
        return VirtualContext(LOCAL_RUN_ID, node_id, node_config, state, self.run_config)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, so that it adds numbers in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
