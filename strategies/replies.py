"""The order in which replies are combined."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Message


def in_order(replies: Iterable[Message]) -> Iterator[Message]:
    """Yield `replies` in the order of node ids, so that sums do not depend on who was first.

    Only a sequence is sorted. Any other iterable is taken to be in that order, one reply at a time,
    so that a round's replies need not all be in memory.
    """
    if isinstance(replies, Sequence):
        return iter(sorted(replies, key=lambda reply: reply.metadata.src_node_id))
    return iter(replies)
