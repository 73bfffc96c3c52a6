"""Asynchronous federated learning with a buffer.

    w_{t+1} ← w_t + η Σ_{k ∈ buffer} c_k s(τ_k) Δ_k / Σ_{k ∈ buffer} c_k,    s(τ) = (1 + τ)^−a

with Δ_k = w_k − w_{t−τ_k}, what client k made of the model that it was sent τ_k server steps ago.
Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated learning with buffered
asynchronous aggregation", 2022, arXiv 2106.06639, algorithm 1; the paper weighs clients alike
(`weighting` uniform) and takes a = 1/2.

Up to M clients train at any time, and the server steps whenever K updates have come: nobody waits
for the slowest. Use it where clients differ much in speed. Where all are sent and all answer the
same model, it is weighted federated averaging.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.common.arrays import RunningMean, as_dtype
from strategies.common.replies import arrays_of, in_order, metrics_of
from strategies.common.weighting import WEIGHTINGS


class FedBuff(FedAvg):
    """Steps after `buffer_size` (K) replies, with `concurrency` (M) clients at work.

    `staleness_exponent` is a, `server_learning_rate` η. A round is one step of the server. Who
    drives it calls `configure_train` when a round begins and whenever clients are free, with a grid
    that names no others, takes and sends the first so many of the messages that at most
    `concurrency` are out, and hands `aggregate_train` the replies of one buffer.
    """

    def __init__(
        self,
        concurrency: int = 10,
        buffer_size: int = 5,
        staleness_exponent: float = 0.5,
        server_learning_rate: float = 1.0,
        weighting: str = "examples",
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.concurrency = concurrency
        self.buffer_size = buffer_size
        self.staleness_exponent = staleness_exponent
        self.server_learning_rate = server_learning_rate
        self.weigh = WEIGHTINGS[weighting]
        self._global = ArrayRecord()
        self._sent: dict[int, tuple[int, ArrayRecord]] = {}  # node -> step, and its model

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make a message for each free client, in random order, `concurrency` at most."""
        self._global = arrays
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        free = list(grid.get_node_ids())
        chosen = random.sample(free, min(self.concurrency, len(free)))
        return self._messages(chosen, content, (server_round, arrays))

    def _messages(
        self, nodes: Iterable[int], content: RecordDict, sent: tuple[int, ArrayRecord]
    ) -> Iterator[Message]:
        for node in nodes:
            self._sent[node] = sent
            yield Message(content, node, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step along the updates of the buffer, or return (None, None) without any."""
        mean = RunningMean()
        told = []
        for reply in in_order(replies):
            newest = server_round, self._global
            sent, start = self._sent.pop(reply.metadata.src_node_id, newest)
            if reply.has_error():
                continue
            metrics = metrics_of(reply.content)
            if (weight := self.weigh(metrics)) > 0:
                scale = self.server_learning_rate * self.staleness_weight(server_round - sent)
                update_is_all = sent == server_round and scale == 1.0
                end = arrays_of(reply.content)
                mean.add(weight, end if update_is_all else self._moved(start, end, scale))
                told.append(RecordDict({"metrics": metrics}))
        if not told:
            return None, None
        return mean.arrays(), self.train_metrics_aggr_fn(told, self.weighted_by_key)

    def staleness_weight(self, staleness: int) -> float:
        """Return s(τ), in (0, 1]."""
        return float((1 + staleness) ** -self.staleness_exponent)

    def _moved(self, start: ArrayRecord, end: ArrayRecord, scale: float) -> ArrayRecord:
        """Return the global model moved by `scale` times what led from `start` to `end`."""
        moved = {}
        for name, array in self._global.items():
            update = end[name].numpy().astype(np.float64) - start[name].numpy()
            moved[name] = as_dtype(array.numpy() + scale * update, array.dtype)
        return ArrayRecord(moved)
