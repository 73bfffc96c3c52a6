"""The nodes as the server sees them: by partition number, in order, with every byte counted.

Flower's node ids are random, its lists of nodes are unordered, and replies come in any order, so a
seed alone does not repeat a run. `PartitionGrid` wraps any Flower `Grid` and gives the nodes their
partition numbers as ids. Anything that samples and sums in the order of ids then does the same in
every run, Flower's own strategies included.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import Run, failed, set_source_node
from fedattn_app.server.reply_checks import error_line
from fedattn_app.transport.payload import payload_size

log = logging.getLogger("fedattn")

QUERY_TIMEOUT = 120.0
POLL_SECONDS = 0.2


@dataclass
class Traffic:
    """Payload bytes: `up` from the nodes to the server, `down` from the server to the nodes."""

    up: int = 0
    down: int = 0


class PartitionGrid(Grid):
    """Presents the nodes of `inner` under their partition numbers.

    Each node is asked once for its ``partition-id``. A node that has none, or one that another node
    has already, gets the next free number.

    Attributes:
        traffic: the payload bytes so far; every message adds to it.
        retired: partitions that get no further message.
        busy: partitions that get no message for now.
    """

    def __init__(self, inner: Grid) -> None:
        self.inner = inner
        self.traffic = Traffic()
        self.retired: set[int] = set()
        self.busy: set[int] = set()
        self._node_ids: dict[int, int] = {}  # partition -> node id
        self._refused: dict[int, str] = {}  # node id -> why it cannot take part
        self._reported_sizes: dict[int, int] = {}  # node id -> its ``num-partitions``
        self._with_own_data: set[int] = set()  # node ids
        self._pushed: dict[str, int] = {}  # message id -> partition

    @property
    def num_partitions(self) -> int:
        """The ``num-partitions`` that most nodes report; 0 if none does.

        One node cannot make the server wait for clients that do not exist.
        """
        reported = Counter(size for size in self._reported_sizes.values() if size > 0)
        return min(reported, key=lambda size: (-reported[size], size), default=0)

    @property
    def num_splits(self) -> int:
        """The number of clients that split the data set of the run, or 0 if a node has its own."""
        return 0 if self._with_own_data & set(self._node_ids.values()) else self.num_partitions

    def wait_for_clients(self, minimum: int, timeout: float = math.inf) -> int:
        """Wait until `minimum` nodes are connected, and return how many there are.

        With a `minimum` of 0, wait for as many as the nodes' ``num-partitions``. Raises
        `RunFailedError` if that many nodes are connected but none can take part, and after
        `timeout` seconds.
        """
        waiting = None
        began = time.monotonic()
        while True:
            connected = len(self._refresh())
            wanted = max(1, minimum or self.num_partitions)
            if connected >= wanted:
                return connected
            if not connected and len(self._refused) >= wanted:
                reason = min(self._refused.values())
                raise RunFailedError(f"none of {len(self._refused)} nodes can take part: {reason}")
            if waiting != connected:
                log.info("waiting for clients: %d of %d connected", connected, wanted)
                waiting = connected
            if time.monotonic() - began > timeout:
                raise RunFailedError(f"{connected} of {wanted} clients connected in {timeout:g} s")
            time.sleep(POLL_SECONDS)

    def get_node_ids(self) -> Iterable[int]:
        """Return the partition numbers of the nodes that can get a message now, ascending."""
        return sorted(self._refresh().keys() - self.retired - self.busy)

    def count_left(self) -> int:
        """Return the number of connected nodes that are not retired; busy ones count."""
        return len(self._refresh().keys() - self.retired)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send at most one message per partition; yield the replies in the order of partitions.

        A reply is yielded as soon as all before it have come, if the inner grid yields replies as
        they come.
        """
        asked = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        awaited = deque(message.metadata.dst_node_id for message in asked)
        early: dict[int, Message] = {}
        inner = self.inner.send_and_receive(self._outgoing(asked), timeout=timeout)
        for reply in self._incoming(inner):
            early[reply.metadata.src_node_id] = reply
            while awaited and awaited[0] in early:
                yield early.pop(awaited.popleft())
        for partition in sorted(early):
            yield early[partition]

    def exchange(self, messages: Sequence[Message], timeout: float) -> Iterator[Message]:
        """Send `messages`, yield the replies, and log the clients that did not reply in time.

        A reply that does not belong to one of `messages` is logged and left out.
        """
        if not messages:
            return
        silent = {message.metadata.dst_node_id for message in messages}
        for reply in self.send_and_receive(messages, timeout=timeout):
            if (partition := reply.metadata.src_node_id) not in silent:
                log.warning("client %d: a reply that nobody waits for is ignored", partition)
                continue
            silent.discard(partition)
            yield reply
        for partition in sorted(silent):
            log.warning("client %d did not reply in time", partition)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to partitions and return the ids of the messages."""
        asked = list(messages)
        partitions = [message.metadata.dst_node_id for message in asked]
        ids = list(self.inner.push_messages(self._outgoing(asked)))
        self._pushed.update(zip(ids, partitions, strict=False))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, by partition.

        For a node that has left, the reply is the error that the SuperLink sends in its place.
        """
        return self._incoming(self.inner.pull_messages(message_ids))

    def set_run(self, run: Run) -> None:
        """Set the inner grid's run."""
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the inner grid."""
        return self.inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a partition."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def _refresh(self) -> dict[int, int]:
        """Update the map from partitions to nodes; ask each new node for its partition."""
        present = set(self.inner.get_node_ids())
        for partition in [p for p, node in self._node_ids.items() if node not in present]:
            log.warning("client %d has left", partition)
            del self._node_ids[partition]
        self._refused = {node: why for node, why in self._refused.items() if node in present}
        new = sorted(present - set(self._node_ids.values()) - set(self._refused))
        if new:
            empty = RecordDict()
            questions = [Message(empty, node, MessageType.QUERY) for node in new]
            self._count_down(questions)
            self._admit(self.inner.send_and_receive(questions, timeout=QUERY_TIMEOUT))
        return self._node_ids

    def _admit(self, replies: Iterable[Message]) -> None:
        answers = []
        for answer in map(self._counted, replies):
            node = answer.metadata.src_node_id
            reason = error_line(answer) if answer.has_error() else _answer_fault(answer)
            if reason:
                self._refused[node] = reason
                log.warning("a node cannot take part: %s", reason)
                continue
            record = answer.content.config_records["node"]
            self._reported_sizes[node] = int(record["num-partitions"])  # type: ignore[arg-type]
            if record.get("own-data", True):
                self._with_own_data.add(node)
            answers.append((int(record["partition-id"]), node))  # type: ignore[arg-type]
        nameless = []
        for partition, node in sorted(answers):
            if partition < 0 or partition in self._node_ids:
                nameless.append((partition, node))
            else:
                self._node_ids[partition] = node
        for partition, node in nameless:
            free = next(p for p in range(len(self._node_ids) + 1) if p not in self._node_ids)
            if partition >= 0:
                log.warning(
                    "two nodes report partition %d; one of them counts as %d", partition, free
                )
            self._node_ids[free] = node

    def _outgoing(self, messages: Iterable[Message]) -> list[Message]:
        outgoing = list(messages)
        for message in outgoing:
            message.metadata.dst_node_id = self._node_ids[message.metadata.dst_node_id]
        self._count_down(outgoing)
        return outgoing

    def _count_down(self, messages: list[Message]) -> None:
        sizes: dict[int, int] = {}  # most messages of a round share one content
        for message in messages:
            key = id(message.content)
            sizes[key] = sizes.get(key) or payload_size(message.content)
            self.traffic.down += sizes[key]

    def _incoming(self, replies: Iterable[Message]) -> Iterator[Message]:
        partition_of = {node: partition for partition, node in self._node_ids.items()}
        for reply in replies:
            pushed = self._pushed.pop(reply.metadata.reply_to_message_id, None)
            partition = partition_of.get(reply.metadata.src_node_id, pushed)
            if partition is None:
                continue
            set_source_node(reply, partition)
            yield self._counted(reply)

    def _counted(self, reply: Message) -> Message:
        """Add the bytes of a reply to the traffic; one that cannot be serialised has failed."""
        if reply.has_error():
            return reply
        try:
            self.traffic.up += payload_size(reply.content)
        except (ValueError, TypeError, OverflowError) as error:
            return failed(reply, f"invalid reply: it cannot be serialised ({error})")
        return reply


def _answer_fault(answer: Message) -> str | None:
    """Return what is wrong with a node's answer to the question which partition it is, or None."""
    record = answer.content.config_records.get("node", ConfigRecord())
    for key in ("partition-id", "num-partitions"):
        if type(record.get(key)) is not int:
            return f"it does not report its {key}"
    return None
