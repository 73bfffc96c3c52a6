"""Decode the arrays of training replies before any other strategy reads them.

How arrays are encoded is passed in as a function, so that any codec works with any strategy. Put it
outermost, as in ``DecodedReplies(AttentionOnly(UpdateChecks(rule), ...), decode)``: the checks
then see plain arrays and refuse those that decode to something invalid.
"""

from collections.abc import Callable

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from strategies.wrappers.base import ReplyFilter

Decode = Callable[[ArrayRecord, ArrayRecord], ArrayRecord]


class DecodedReplies(ReplyFilter):
    """Gives the inner strategy decoded training replies, and drops those that cannot be decoded.

    Args:
        inner: The strategy that reads the decoded replies.
        decode: Function that takes the arrays in a reply and the arrays that its node was sent,
            and returns the decoded arrays. If it raises an exception, only that reply is dropped.
    """

    def __init__(self, inner: Strategy, decode: Decode) -> None:
        super().__init__(inner)
        self.decode = decode

    def fault(self, reply: Message, sent: ArrayRecord) -> str | None:
        """Decode the arrays of `reply` in place and return None, or return why decoding failed."""
        try:
            decoded = self.decode(reply.content.array_records["arrays"], sent)
        except Exception as error:  # one client must not end the run, whatever it sends
            return f"its arrays cannot be decoded: {type(error).__name__}: {error}"
        reply.content = RecordDict({**dict(reply.content.items()), "arrays": decoded})
        return None
