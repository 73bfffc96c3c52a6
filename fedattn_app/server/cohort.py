"""Who takes part in a round, and what is kept of their replies."""

from collections import deque
from collections.abc import Iterator, Mapping

from flwr.app import Message, MetricRecord

from fedattn_app.server.partition_grid import error_line
from fedattn_app.server.reply_checks import metrics_of


class Cohort:
    """The replies of those that train in a round, one at a time, and what is kept of them.

    Of those that took part it passes on all replies but those that tell of a spent budget.
    """

    def __init__(self, replies: Iterator[Message]) -> None:
        self.good: dict[int, MetricRecord] = {}
        self.updates = 0
        self.failed = 0
        self.spent: set[int] = set()
        self.reasons: set[str] = set()
        self._replies = self._usable(replies)

    def __iter__(self) -> Iterator[Message]:
        return self._replies

    def finish(self) -> None:
        """Take the replies that the strategy left."""
        deque(self._replies, maxlen=0)

    def drop(self, refused: Mapping[int, str]) -> None:
        """Count those as failed whose updates were refused."""
        for partition, reason in refused.items():
            self.updates -= self.good.pop(partition, None) is not None
            self.failed += 1
            self.reasons.add(reason)

    def _usable(self, replies: Iterator[Message]) -> Iterator[Message]:
        for reply in replies:
            partition = reply.metadata.src_node_id
            if reply.has_error():
                self.reasons.add(error_line(reply))
                self.failed += 1
            elif metrics_of(reply).get("budget-spent"):
                self.spent.add(partition)
                continue
            else:
                self.good[partition] = metrics_of(reply)
                self.updates += 1
            yield reply


def is_update(reply: Message) -> bool:
    """Whether a reply to a training message brings something to combine."""
    if reply.has_error():
        return False
    metrics = reply.content.metric_records.get("metrics", MetricRecord())
    return bool(metrics.get("num-examples", 0)) and not metrics.get("budget-spent")
