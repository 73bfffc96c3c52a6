"""Weighted federated averaging.

    w ← Σ_k c_k w_k / Σ_k c_k

over the clients k that replied, with c_k what the `weighting` makes of the reply, by default its
number of examples. McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient
learning of deep networks from decentralized data", 2017, arXiv 1602.05629, algorithm 1.

Use it by default; weigh uniformly where a client's size should not decide.
Unlike Flower's FedAvg it sums in float64 in the order of node ids, so that the same replies give
the same bits in whatever order they come, and returns arrays of the dtype it was given.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency

from strategies.common.arrays import RunningMean
from strategies.common.replies import in_order
from strategies.common.weighting import WEIGHTINGS


class WeightedFedAvg(FedAvg):
    """FedAvg with a choice of weights.

    `weighting` is a key of `WEIGHTINGS`; the other keywords are those of Flower's `FedAvg`. A
    reply with no examples weighs nothing; when all weigh nothing, or none came, the global model
    stays. It holds one reply at a time beside the first, which all others must be like, or
    `InconsistentMessageReplies` is raised. `train_metrics_aggr_fn` gets the metrics only.
    """

    def __init__(self, weighting: str = "examples", **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.weigh = WEIGHTINGS[weighting]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies' arrays and metrics, or return (None, None) without any weight."""
        mean = RunningMean()
        told = []
        first: RecordDict | None = None
        for reply in in_order(replies):
            if reply.has_error():
                continue
            first = first or reply.content
            validate_message_reply_consistency([first, reply.content], self.weighted_by_key, True)
            ((name, metrics),) = reply.content.metric_records.items()
            ((_, arrays),) = reply.content.array_records.items()
            weight = self.weigh(metrics)
            if weight > 0:
                mean.add(weight, arrays)
                told.append(RecordDict({name: metrics}))
        if not told:
            return None, None
        return mean.arrays(), self.train_metrics_aggr_fn(told, self.weighted_by_key)
