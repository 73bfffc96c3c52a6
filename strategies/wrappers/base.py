"""Base classes of the strategies that wrap another strategy."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.common.replies import printable, valid_replies

log = logging.getLogger("fedattn")


class StrategyWrapper(Strategy):
    """Passes every call on to the strategy `inner`. Subclasses override what they change."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner

    def summary(self) -> None:
        """Log the settings of the inner strategy."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the training messages of the inner strategy."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the arrays and metrics that the inner strategy combines; either may be None."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the evaluation messages of the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the metrics that the inner strategy combines, or None if it returns none."""
        return self.inner.aggregate_evaluate(server_round, replies)


class ReplyFilter(StrategyWrapper):
    """Drops the training replies for which `fault` returns a reason, one at a time.

    Subclasses define `fault`. A reply is also dropped if its node was sent no message. `dropped`
    maps the node id of each reply dropped in the current round to the reason.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner)
        self.dropped: dict[int, str] = {}
        self._sent: dict[int, ArrayRecord] = {}

    @abstractmethod
    def fault(self, reply: Message, sent: ArrayRecord) -> str | None:
        """Return why `reply` is dropped, or None to pass it to the inner strategy.

        This method may change the reply in place.

        Args:
            reply: The training reply.
            sent: The arrays that its node was sent.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's training messages, and keep the arrays sent to each node.

        The arrays kept earlier for the nodes in `grid` are deleted. `grid` must therefore list only
        nodes that are not working on an earlier message.
        """
        for node in grid.get_node_ids():
            self._sent.pop(node, None)
        return self._recorded(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the arrays and metrics that the inner strategy combines from the accepted replies.

        Either may be None. Each refused reply is dropped with a warning.
        """
        return self.inner.aggregate_train(server_round, self._accepted(replies))

    def _recorded(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            self._sent[message.metadata.dst_node_id] = message.content.array_records["arrays"]
            yield message

    def _accepted(self, replies: Iterable[Message]) -> Iterator[Message]:
        self.dropped = {}
        return self._filtered(replies)

    def _filtered(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in valid_replies(replies):
            node = reply.metadata.src_node_id
            sent = self._sent.pop(node, None)
            fault = "it was sent no message" if sent is None else self.fault(reply, sent)
            if fault is None:
                yield reply
            else:
                self.dropped[node] = printable(fault)
                log.warning("client %d: its update is dropped: %s", node, self.dropped[node])
