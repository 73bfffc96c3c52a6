"""Base class of the rules that need all replies of a round at once."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.common.replies import arrays_of, contents_of


class WholeRound(FedAvg):
    """A rule that is one function, `combine`. It takes the keywords of Flower's `FedAvg`.

    Every client counts the same in `combine`, whatever its number of examples.
    """

    _start = ArrayRecord()

    @abstractmethod
    def combine(self, start: ArrayRecord, clients: Sequence[ArrayRecord]) -> ArrayRecord:
        """Return the new global arrays.

        Args:
            start: The global arrays that the round began with.
            clients: The arrays of each client, in the order of node ids; at least one record. All
                have the names of `start` and, behind `UpdateChecks`, its shapes and dtypes.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the global arrays for `combine`, and sample clients as `FedAvg` does."""
        self._start = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the valid replies; return (None, None) if there are none."""
        contents = contents_of(replies, self.weighted_by_key)
        if not contents:
            return None, None
        combined = self.combine(self._start, [arrays_of(content) for content in contents])
        return combined, self.train_metrics_aggr_fn(contents, self.weighted_by_key)
