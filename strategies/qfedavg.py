"""q-fair federated averaging, as Flower has it.

    w ← w − Σ_k F_k^q L (w − w_k) / Σ_k h_k,    h_k = q F_k^(q−1) ‖L (w − w_k)‖² + L F_k^q

with F_k the training loss that client k tells. Li, Sanjabi, Beirami
and Smith, "Fair resource allocation in federated learning", 2020, arXiv 1905.10497, algorithm 2.

Use it where the worst client matters more than the mean; with q = 0 it averages uniformly. The
paper takes L = 1 / the learning rate of clients that step by plain gradients. Where they step by
Adam that says nothing of how long their updates are, and would all but stop the server: here L is
1.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from strategies.common.replies import in_order


class QFedAvg(flower.QFedAvg):
    """Takes `client_learning_rate` (1 / L) and `q`.

    Flower's class computes in the replies' own arrays, so that it is given copies.
    """

    def __init__(self, client_learning_rate: float = 1.0, q: float = 0.1, **fedavg: Any) -> None:
        super().__init__(client_learning_rate, q, "loss", **fedavg)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine copies of the replies, or return (None, None) where none came."""
        mine = list(in_order(replies))
        for reply in mine:
            if not reply.has_error():
                reply.content = _copy(reply.content)
        return super().aggregate_train(server_round, mine)


def _copy(content: RecordDict) -> RecordDict:
    arrays = {
        key: ArrayRecord({name: Array(np.array(array.numpy())) for name, array in record.items()})
        for key, record in content.array_records.items()
    }
    return RecordDict({**dict(content.items()), **arrays})
