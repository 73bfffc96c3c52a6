"""Weighted federated averaging.

    w ← Σ_k c_k w_k / Σ_k c_k

over the clients k that replied, where the `weighting` computes c_k from the reply's metrics; by
default c_k is the number of examples. McMahan, Moore, Ramage, Hampson and Agüera y Arcas,
"Communication-efficient learning of deep networks from decentralized data", 2017, arXiv 1602.05629,
algorithm 1.

Use it by default, and weigh uniformly if the size of a client should not matter. Unlike Flower's
FedAvg it sums in float64 in the order of node ids, so that the same replies give the same bits in
whatever order they arrive, and it returns arrays of the dtype that the clients sent.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency

from strategies.common.arrays import RunningMean
from strategies.common.replies import valid_replies
from strategies.common.weighting import WEIGHTINGS


class WeightedFedAvg(FedAvg):
    """FedAvg with a choice of weights that keeps only two replies in memory.

    A reply without examples has weight 0. The averaged metrics are weighted by examples, whatever
    weighs the arrays. `train_metrics_aggr_fn` gets the metrics of the replies without their arrays.

    Args:
        weighting: Key of `WEIGHTINGS`.
        **fedavg: Keywords of Flower's `FedAvg`.
    """

    def __init__(self, weighting: str = "examples", **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.weigh = WEIGHTINGS[weighting]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average arrays and metrics; return (None, None) if no valid reply has a weight.

        Raises Flower's `InconsistentMessageReplies` if a reply has other names than the first.
        """
        mean = RunningMean()
        weighted: list[RecordDict] = []
        first: RecordDict | None = None
        for reply in valid_replies(replies):
            first = first or reply.content
            validate_message_reply_consistency([first, reply.content], self.weighted_by_key, True)
            ((name, metrics),) = reply.content.metric_records.items()
            ((_, arrays),) = reply.content.array_records.items()
            weight = self.weigh(metrics)
            if weight > 0:
                mean.add(weight, arrays)
                weighted.append(RecordDict({name: metrics}))
        if not weighted:
            return None, None
        return mean.arrays(), self.train_metrics_aggr_fn(weighted, self.weighted_by_key)
