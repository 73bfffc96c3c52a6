"""Messages that outlive the round they were sent in: the traffic of an asynchronous federation."""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message

from fedattn_app.server.partition_grid import PartitionGrid

POLL_SECONDS = 0.2


class Stream:
    """Keeps up to `concurrency` partitions of `grid` at work, each on one message.

    A partition is asked once at most between two steps of the server: the second time it would
    train the same model on the same examples. One that has not answered within `timeout` seconds is
    given up, and may be asked again in the next step.
    """

    def __init__(self, grid: PartitionGrid, concurrency: int, timeout: float) -> None:
        self.grid = grid
        self.concurrency = concurrency
        self.timeout = timeout
        self._out: dict[str, tuple[int, float]] = {}  # message id -> partition, when it was sent
        self._early: list[Message] = []  # came with others and are still to be taken
        self._done: set[int] = set()  # what came from them belongs to this step

    def take(
        self,
        count: int,
        messages: Callable[[int], Sequence[Message]],
        counts: Callable[[Message], bool],
    ) -> Iterator[Message]:
        """Yield replies as they come, until `count` of them are such as `counts` says.

        It ends before where nobody is at work any more. `messages(limit)` is asked for `limit`
        messages at most to free partitions when it begins, and again whenever some have answered;
        `counts(reply)` after what took the reply comes for the next.
        """
        self._done = set()
        taken, begun = 0, False
        while taken < count:
            if not (begun and self._early):
                self._send(messages)
                begun = True
            if not self._early and not self._out:
                break
            if not self._early:
                self._pull()
            if self._early:
                reply = self._early.pop(0)
                self._done.add(reply.metadata.src_node_id)
                yield reply
                taken += counts(reply)
        self._done = set()
        self._tell()

    def close(self) -> None:
        """Forget who is at work."""
        self._out, self._early, self._done = {}, [], set()
        self._tell()

    def _send(self, messages: Callable[[int], Sequence[Message]]) -> None:
        self._tell()
        asked = messages(max(0, self.concurrency - len(self._out)))
        partitions = [message.metadata.dst_node_id for message in asked]
        for key, partition in zip(self.grid.push_messages(asked), partitions, strict=False):
            if key:  # else Flower could not send it
                self._out[key] = partition, time.monotonic()
        self._tell()

    def _pull(self) -> None:
        replies = list(self.grid.pull_messages(list(self._out)))
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        late = time.monotonic() - self.timeout
        waiting = {key: its for key, its in self._out.items() if key not in answered}
        self._out = {
            key: (partition, since) for key, (partition, since) in waiting.items() if since > late
        }
        self._done |= {partition for partition, since in waiting.values() if since <= late}
        self._early = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        self._tell()
        if not replies:
            time.sleep(POLL_SECONDS)

    def _tell(self) -> None:
        """Tell the grid whom not to ask."""
        waiting = {reply.metadata.src_node_id for reply in self._early}
        at_work = {partition for partition, _ in self._out.values()}
        self.grid.busy = at_work | waiting | self._done
