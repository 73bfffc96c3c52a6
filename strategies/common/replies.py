"""What rules read from replies, and in which order."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency


def in_order(replies: Iterable[Message]) -> Iterator[Message]:
    """Yield `replies` in the order of node ids, so that sums do not depend on who was first.

    Only a sequence is sorted. Any other iterable is taken to be in that order, one reply at a time,
    so that a round's replies need not all be in memory.
    """
    if isinstance(replies, Sequence):
        return iter(sorted(replies, key=lambda reply: reply.metadata.src_node_id))
    return iter(replies)


def failed_reply(reply: Message, reason: str) -> Message:
    """Return a failed reply in the place of one that cannot be used."""
    node = reply.metadata.src_node_id
    failed = Message(
        Error(ErrorCode.UNKNOWN, reason),
        reply_to=Message(RecordDict(), node, reply.metadata.message_type),
    )
    # Who drives a strategy may name nodes otherwise than Flower does.
    failed.metadata.__dict__["_src_node_id"] = node
    return failed


def contents_of(replies: Iterable[Message], weighted_by_key: str) -> list[RecordDict]:
    """Return what the replies that have not failed hold, in order.

    Raises `InconsistentMessageReplies` unless all are like the first.
    """
    contents = [reply.content for reply in in_order(replies) if not reply.has_error()]
    if contents:
        validate_message_reply_consistency(contents, weighted_by_key, check_arrayrecord=True)
    return contents


def arrays_of(content: RecordDict) -> ArrayRecord:
    """Return the one record of arrays that a reply to a training message holds."""
    return next(iter(content.array_records.values()))


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the one record of metrics that a reply holds."""
    return next(iter(content.metric_records.values()))
