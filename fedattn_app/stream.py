"""Messages that outlive the round they were sent in: the traffic of an asynchronous federation."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from flwr.app import Message

from fedattn_app.grid import PartitionGrid

POLL_SECONDS = 0.05


class Stream:
    """Keeps up to `concurrency` partitions of `grid` at work, each on one message.

    One that has not answered within `timeout` seconds is given up, and may be asked again.
    """

    def __init__(self, grid: PartitionGrid, concurrency: int, timeout: float) -> None:
        self.grid = grid
        self.concurrency = concurrency
        self.timeout = timeout
        self._out: dict[str, tuple[int, float]] = {}  # message id -> partition, when it was sent
        self._early: list[Message] = []  # came with the last ones that were taken

    def take(self, count: int, messages: Callable[[], Iterable[Message]]) -> Iterator[Message]:
        """Yield `count` replies as they come; fewer where nobody is at work any more.

        Whenever all that came have been taken, `messages` is asked for some to free partitions, and
        so many of them are sent as are needed.
        """
        taken = 0
        while taken < count:
            if not self._early:
                self._send(messages)
                if not self._out:
                    return
                self._pull()
            if self._early:
                taken += 1
                yield self._early.pop(0)
                self._tell()  # only now may who made it be asked again

    def _send(self, messages: Callable[[], Iterable[Message]]) -> None:
        missing = self.concurrency - len(self._out)
        if missing <= 0:
            return
        asked = list(islice(messages(), missing))
        partitions = [message.metadata.dst_node_id for message in asked]
        for key, partition in zip(self.grid.push_messages(asked), partitions, strict=True):
            self._out[key] = partition, time.monotonic()
        self._tell()

    def _pull(self) -> None:
        replies = list(self.grid.pull_messages(list(self._out)))
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        late = time.monotonic() - self.timeout
        self._out = {
            key: (partition, since)
            for key, (partition, since) in self._out.items()
            if key not in answered and since > late
        }
        self._early = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        self._tell()
        if not replies:
            time.sleep(POLL_SECONDS)

    def _tell(self) -> None:
        waiting = {reply.metadata.src_node_id for reply in self._early}
        self.grid.busy = {partition for partition, _ in self._out.values()} | waiting
