"""Asynchronous federated learning with a buffer (FedBuff).

    w_{t+1} ← w_t + η Σ_{k ∈ buffer} c_k s(τ_k) Δ_k / Σ_{k ∈ buffer} c_k,    s(τ) = (1 + τ)^−a

where Δ_k = w_k − w_{t−τ_k} is the update of client k to the model of τ_k server steps ago. Nguyen,
Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated learning with buffered asynchronous
aggregation", 2022, arXiv 2106.06639, algorithm 1. The paper weighs clients uniformly and sets
a = 1/2.

Up to M clients train at any time, and the server steps as soon as K updates have arrived, so that
no client waits for the slowest one. Use it where clients differ much in speed. If all clients get
and answer the same model, it is weighted federated averaging.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.common.arrays import RunningMean, as_dtype
from strategies.common.replies import arrays_of, metrics_of, valid_replies
from strategies.common.weighting import WEIGHTINGS


class FedBuff(FedAvg):
    """Takes one server step per round, along the updates in the buffer.

    The caller runs the asynchronous exchange. It calls `configure_train` at the start of a round
    and whenever clients become free, with a grid that lists free nodes only. It sends messages as
    long as fewer than `concurrency` clients are at work. When the buffer is full, it passes the
    replies in it to `aggregate_train`.

    Args:
        concurrency: Maximum number M of clients at work.
        buffer_size: Number K of replies per server step.
        staleness_exponent: Exponent a ≥ 0; 0 weighs late updates like fresh ones.
        server_learning_rate: Step size η ≥ 0.
        weighting: Key of `WEIGHTINGS`.
        **fedavg: Keywords of Flower's `FedAvg`.
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
        # The server step at which each node at work was sent a model, and that model.
        self._sent: dict[int, tuple[int, ArrayRecord]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make messages for up to `concurrency` of the free nodes, in random order."""
        self._global = arrays
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        free = list(grid.get_node_ids())
        for node in free:  # one that failed has left its entry
            self._sent.pop(node, None)
        sampled = random.sample(free, min(self.concurrency, len(free)))
        return self._messages(sampled, content, (server_round, arrays))

    def _messages(
        self, nodes: Iterable[int], content: RecordDict, sent: tuple[int, ArrayRecord]
    ) -> Iterator[Message]:
        for node in nodes:
            self._sent[node] = sent
            yield Message(content, node, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step along the updates; return (None, None) if no valid reply has a weight."""
        mean = RunningMean()
        weighted: list[RecordDict] = []
        for reply in valid_replies(replies):
            current = server_round, self._global
            sent, start = self._sent.pop(reply.metadata.src_node_id, current)
            metrics = metrics_of(reply.content)
            if (weight := self.weigh(metrics)) > 0:
                scale = self.server_learning_rate * self.staleness_weight(server_round - sent)
                end = arrays_of(reply.content)
                # Then `end` is the result, without rounding.
                is_fresh_full_step = sent == server_round and scale == 1.0
                mean.add(weight, end if is_fresh_full_step else self._moved(start, end, scale))
                weighted.append(RecordDict({"metrics": metrics}))
        if not weighted:
            return None, None
        return mean.arrays(), self.train_metrics_aggr_fn(weighted, self.weighted_by_key)

    def staleness_weight(self, staleness: int) -> float:
        """Return s(τ), in (0, 1], for an update that is `staleness` (τ ≥ 0) server steps late."""
        return float((1 + staleness) ** -self.staleness_exponent)

    def _moved(self, start: ArrayRecord, end: ArrayRecord, scale: float) -> ArrayRecord:
        """Return the global arrays moved by `scale` times the update from `start` to `end`."""
        moved = {}
        for name, array in self._global.items():
            update = end[name].numpy().astype(np.float64) - start[name].numpy()
            moved[name] = as_dtype(array.numpy() + scale * update, array.dtype)
        return ArrayRecord(moved)
