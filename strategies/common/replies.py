"""Read a round's replies: which of them are valid, in which order, and what they contain."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency

MAX_TEXT_LENGTH = 1000  # characters of a client's text in a log line


def printable(text: str) -> str:
    """Return `text`, which a client may have written, as one printable line of limited length."""
    start = text[:MAX_TEXT_LENGTH]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in start)
    return shown if start == text else f"{shown}…"


def valid_replies(replies: Iterable[Message]) -> Iterator[Message]:
    """Yield the replies that carry no error, in the order of node ids.

    A sequence is sorted, so that a sum over replies does not depend on which client answered first.
    Any other iterable is taken to be in order already and is read one reply at a time, so that the
    replies of a round need not fit in memory together.
    """
    if isinstance(replies, Sequence):
        replies = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
    return (reply for reply in replies if not reply.has_error())


def contents_of(replies: Iterable[Message], weighted_by_key: str) -> list[RecordDict]:
    """Return the contents of the valid replies, in the order of node ids.

    Raises Flower's `InconsistentMessageReplies` unless each content has one record of arrays and
    one of metrics, the names are the same in all of them, and `weighted_by_key` is one of the
    metrics.
    """
    contents = [reply.content for reply in valid_replies(replies)]
    if contents:
        validate_message_reply_consistency(contents, weighted_by_key, check_arrayrecord=True)
    return contents


def arrays_of(content: RecordDict) -> ArrayRecord:
    """Return the first record of arrays in the content of a reply."""
    return next(iter(content.array_records.values()))


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the first record of metrics in the content of a reply."""
    return next(iter(content.metric_records.values()))
