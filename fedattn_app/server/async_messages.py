"""Messages that outlive the round in which they were sent, for asynchronous rounds."""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message

from fedattn_app.server.partition_grid import PartitionGrid

POLL_SECONDS = 0.2


class AsyncMessages:
    """Keeps up to `concurrency` clients of `grid` at work, each on one message.

    A client gets at most one message between two steps of the server: a second time it would train
    the same model on the same examples. The server stops waiting for a client that has not answered
    within `timeout` seconds; the client may get a message again in the next step.
    """

    def __init__(self, grid: PartitionGrid, concurrency: int, timeout: float) -> None:
        self.grid = grid
        self.concurrency = concurrency
        self.timeout = timeout
        self._sent: dict[str, tuple[int, float]] = {}  # message id -> partition, time of sending
        self._waiting: list[Message] = []  # replies that came together with others
        self._answered: set[int] = set()  # partitions whose replies belong to the present step

    def take(
        self,
        count: int,
        make_messages: Callable[[int], Sequence[Message]],
        fills_buffer: Callable[[Message], bool],
    ) -> Iterator[Message]:
        """Yield replies as they come, until `count` of them have filled a place in the buffer.

        Ends earlier if no client is at work any more.

        Args:
            count: the size of the buffer.
            make_messages: given a limit, returns up to that number of messages to free clients;
                called at the start and whenever clients have answered.
            fills_buffer: whether a reply filled a place; called once the caller asks for the next.
        """
        self._answered = set()
        num_filled, begun = 0, False
        while num_filled < count:
            if not (begun and self._waiting):
                self._send(make_messages)
                begun = True
            if not self._waiting and not self._sent:
                break
            if not self._waiting:
                self._pull()
            if self._waiting:
                reply = self._waiting.pop(0)
                self._answered.add(reply.metadata.src_node_id)
                yield reply
                num_filled += fills_buffer(reply)
        self._answered = set()
        self._update_busy()

    def close(self) -> None:
        """Forget all messages that have not been answered."""
        self._sent, self._waiting, self._answered = {}, [], set()
        self._update_busy()

    def _send(self, make_messages: Callable[[int], Sequence[Message]]) -> None:
        self._update_busy()
        messages = make_messages(max(0, self.concurrency - len(self._sent)))
        partitions = [message.metadata.dst_node_id for message in messages]
        for key, partition in zip(self.grid.push_messages(messages), partitions, strict=False):
            if key:  # empty where Flower could not send the message
                self._sent[key] = partition, time.monotonic()
        self._update_busy()

    def _pull(self) -> None:
        replies = {
            reply.metadata.reply_to_message_id: reply
            for reply in self.grid.pull_messages(list(self._sent))
            if reply.metadata.reply_to_message_id in self._sent
        }
        deadline = time.monotonic() - self.timeout
        open_messages = {key: sent for key, sent in self._sent.items() if key not in replies}
        self._sent = {key: sent for key, sent in open_messages.items() if sent[1] > deadline}
        self._answered |= {
            partition for partition, sent_at in open_messages.values() if sent_at <= deadline
        }
        self._waiting = sorted(replies.values(), key=lambda reply: reply.metadata.src_node_id)
        self._update_busy()
        if not replies:
            time.sleep(POLL_SECONDS)

    def _update_busy(self) -> None:
        """Set `grid.busy` to the clients that are not free for a new message."""
        waiting = {reply.metadata.src_node_id for reply in self._waiting}
        at_work = {partition for partition, _ in self._sent.values()}
        self.grid.busy = at_work | waiting | self._answered
