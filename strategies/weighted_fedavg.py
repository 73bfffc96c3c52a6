"""Weighted federated averaging.

    w ← Σ_k n_k w_k / Σ_k n_k

over the clients k that replied, with n_k the number of examples (``weighting="examples"``) or 1
(``"uniform"``). McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient
learning of deep networks from decentralized data", 2017, arXiv 1602.05629, algorithm 1.

Use it by default; weigh uniformly where a client's size should not decide.
Unlike Flower's FedAvg it sums in float64 in the order of node ids, so that the same replies give
the same bits in whatever order they come, and returns arrays of the dtype it was given.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from strategies.arrays import as_dtype

WEIGHTINGS: Mapping[str, Callable[[int], float]] = {
    "examples": float,
    "uniform": lambda num_examples: float(num_examples > 0),
}


class WeightedFedAvg(FedAvg):
    """FedAvg with a choice of weights.

    `weighting` is a key of `WEIGHTINGS`; the other keywords are those of Flower's `FedAvg`. A
    reply with no examples weighs nothing; when all weigh nothing, or none came, the global model
    stays.
    """

    def __init__(self, weighting: str = "examples", **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.weigh = WEIGHTINGS[weighting]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies' arrays and metrics, or return (None, None) without any weight."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        counted = [
            (self.weigh(int(self._metrics(reply)[self.weighted_by_key])), reply)  # type: ignore[arg-type]
            for reply in sorted(valid, key=lambda reply: reply.metadata.src_node_id)
        ]
        weighted = [(weight, reply) for weight, reply in counted if weight > 0]
        if not weighted:
            return None, None
        arrays = _average([(w, next(iter(r.content.array_records.values()))) for w, r in weighted])
        metrics = self.train_metrics_aggr_fn(
            [reply.content for _, reply in weighted], self.weighted_by_key
        )
        return arrays, metrics

    @staticmethod
    def _metrics(reply: Message) -> MetricRecord:
        return next(iter(reply.content.metric_records.values()))


def _average(weighted: list[tuple[float, ArrayRecord]]) -> ArrayRecord:
    total = sum(weight for weight, _ in weighted)
    sums: dict[str, Any] = {}
    dtypes = {name: array.dtype for name, array in weighted[0][1].items()}
    for weight, record in weighted:
        for name, array in record.items():
            term = array.numpy().astype(np.float64) * weight
            sums[name] = sums[name] + term if name in sums else term
    return ArrayRecord(
        {name: as_dtype(sums[name] / total, dtype) for name, dtype in dtypes.items()}
    )
