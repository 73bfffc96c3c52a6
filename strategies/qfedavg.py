"""q-fair federated averaging (q-FedAvg), as Flower implements it.

    w ← w − Σ_k F_k^q L (w − w_k) / Σ_k h_k,    h_k = q F_k^(q−1) ‖L (w − w_k)‖² + L F_k^q

where F_k is the training loss that client k reports. Li, Sanjabi, Beirami and Smith, "Fair resource
allocation in federated learning", 2020, arXiv 1905.10497, algorithm 2.

Use it where the worst client matters more than the mean; q = 0 averages uniformly. The paper sets
L = 1 / learning rate for clients that train with plain SGD. With Adam the learning rate says little
about the length of an update, and that L would make the server's steps far too short: the default
here is L = 1.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from strategies.common.replies import valid_replies


class QFedAvg(flower.QFedAvg):
    """Flower's q-FedAvg with the clients' metric ``loss`` as F_k.

    Args:
        client_learning_rate: 1 / L > 0.
        q: Fairness q ≥ 0; larger values give clients with a large loss more weight.
        **fedavg: Keywords of Flower's `FedAvg`.
    """

    def __init__(self, client_learning_rate: float = 1.0, q: float = 0.1, **fedavg: Any) -> None:
        super().__init__(client_learning_rate, q, "loss", **fedavg)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the valid replies; return (None, None) if there are none."""
        own = list(valid_replies(replies))
        for reply in own:
            reply.content = _copy(reply.content)  # Flower's class overwrites the replies' arrays
        return super().aggregate_train(server_round, own)


def _copy(content: RecordDict) -> RecordDict:
    arrays = {
        key: ArrayRecord({name: Array(np.array(array.numpy())) for name, array in record.items()})
        for key, record in content.array_records.items()
    }
    return RecordDict({**dict(content.items()), **arrays})
