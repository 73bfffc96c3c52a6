"""What the rules that need all replies of a round at once have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.common.replies import arrays_of, contents_of


class WholeRound(FedAvg):
    """Hands the clients' arrays to `combine`; takes the keywords of Flower's `FedAvg`."""

    _start = ArrayRecord()

    @abstractmethod
    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Return the new global arrays, from those that the round began with and the clients'.

        There is one client at least, and all have the names, shapes and dtypes of `start`.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep what the clients start from."""
        self._start = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies, or return (None, None) where none came."""
        contents = contents_of(replies, self.weighted_by_key)
        if not contents:
            return None, None
        combined = self.combine(self._start, [arrays_of(content) for content in contents])
        return combined, self.train_metrics_aggr_fn(contents, self.weighted_by_key)
