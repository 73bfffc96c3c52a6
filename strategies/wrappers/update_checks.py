"""Refuse or clip updates before any rule sees them.

    Δ_k = w_k − w;    refused where ‖Δ_k‖₂ > R;    Δ_k ← Δ_k · min(1, C / ‖Δ_k‖₂)

with the norm over all arrays that travel, as in Sun, Kairouz, Suresh and McMahan, "Can you really
backdoor federated learning?", 2019, arXiv 1911.07963, section 4. A reply is refused too whose
arrays have other names, shapes or dtypes than were sent, or hold NaN or infinity.

Wrap any rule in it: one broken client must not end the federation. What is within the bounds can
be an attack all the same; for that there are the robust rules.
"""

import logging
from collections.abc import Iterable, Iterator

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.common.replies import failed_reply, in_order

log = logging.getLogger("fedattn")


class UpdateChecks(Strategy):
    """Wraps `inner`, to which a refused reply is one that has failed.

    `drop_norm` (R) and `clip_norm` (C) bound the L2 norm of an update, or of a gradient where those
    are what `inner` asks for; 0: no bound. With fewer than `at_least` updates left, nothing is
    combined. `dropped` tells why, by node, for the last round.
    """

    def __init__(
        self,
        inner: Strategy,
        drop_norm: float = 0.0,
        clip_norm: float = 0.0,
        at_least: int = 1,
    ) -> None:
        self.inner = inner
        self.drop_norm = drop_norm
        self.clip_norm = clip_norm
        self.at_least = at_least
        self.dropped: dict[int, str] = {}
        self._sent: dict[int, ArrayRecord] = {}

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what each node is sent."""
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        return self._noted(messages, arrays)

    def _noted(self, messages: Iterable[Message], arrays: ArrayRecord) -> Iterator[Message]:
        for message in messages:
            self._sent[message.metadata.dst_node_id] = arrays
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy combine what passes, or return (None, None) for too little."""
        self.dropped = {}
        passed: Iterable[Message] = self._checked(replies)
        if self.at_least > 1:
            passed = list(passed)
            left = sum(not reply.has_error() for reply in passed)
            if left < self.at_least:
                log.warning(
                    "round %d: the rule needs %d updates, there are %d",
                    server_round,
                    self.at_least,
                    left,
                )
                return None, None
        return self.inner.aggregate_train(server_round, passed)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def _checked(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in in_order(replies):
            node = reply.metadata.src_node_id
            sent = self._sent.pop(node, None)
            if reply.has_error() or sent is None:
                yield reply
                continue
            fault = _fault(sent, reply.content) or self._bound(sent, reply)
            if fault is None:
                _sort(sent, reply)
                yield reply
                continue
            log.warning("client %d: its update is dropped: %s", node, fault)
            self.dropped[node] = fault
            yield failed_reply(reply, f"unsound reply: {fault}")

    def _bound(self, sent: ArrayRecord, reply: Message) -> str | None:
        """Clip the update in place where it is too long, or say why it is refused."""
        if not (self.drop_norm or self.clip_norm):
            return None
        arrays = reply.content.array_records["arrays"]
        origin = None if getattr(self.inner, "replies_are_gradients", False) else sent
        norm = _norm(arrays, origin)
        if self.drop_norm and norm > self.drop_norm:
            return f"its norm is {norm:.4g}, above {self.drop_norm:g}"
        if self.clip_norm and norm > self.clip_norm:
            clipped = _scaled(arrays, origin, self.clip_norm / norm)
            reply.content = RecordDict({**dict(reply.content.items()), "arrays": clipped})
        return None


def _fault(sent: ArrayRecord, content: RecordDict) -> str | None:
    if list(content.array_records) != ["arrays"]:
        return "it must hold one record of arrays"
    got = content.array_records["arrays"]
    if set(got) != set(sent):
        return f"its arrays differ in {', '.join(sorted(set(got) ^ set(sent)))}"
    for name, array in got.items():
        try:
            values = array.numpy()
        except Exception as error:  # whatever numpy makes of bytes that are no array
            return f"{name} cannot be read: {error}"
        wanted = sent[name].dtype, tuple(sent[name].shape)
        # What it holds and what it says of that: both are relied on.
        for dtype, shape in ((str(values.dtype), values.shape), (array.dtype, tuple(array.shape))):
            if (dtype, shape) != wanted:
                return f"{name} is {dtype} {shape}, not {wanted[0]} {wanted[1]}"
        if not np.isfinite(values).all():
            return f"{name} holds NaN or infinity"
    return None


def _sort(sent: ArrayRecord, reply: Message) -> None:
    """Put the arrays in the order of those that were `sent`: some rules go by place."""
    got = reply.content.array_records["arrays"]
    if list(got) != list(sent):
        sorted_ = ArrayRecord({name: got[name] for name in sent})
        reply.content = RecordDict({**dict(reply.content.items()), "arrays": sorted_})


def _norm(arrays: ArrayRecord, origin: ArrayRecord | None) -> float:
    squares = 0.0
    for name, array in arrays.items():
        moved = array.numpy().astype(np.float64)
        if origin is not None:
            moved = moved - origin[name].numpy()
        squares += float(np.sum(np.square(moved)))
    return float(np.sqrt(squares))


def _scaled(arrays: ArrayRecord, origin: ArrayRecord | None, factor: float) -> ArrayRecord:
    scaled = {}
    for name, array in arrays.items():
        start = np.zeros(()) if origin is None else origin[name].numpy()
        moved = start + factor * (array.numpy().astype(np.float64) - start)
        scaled[name] = Array(np.asarray(moved.astype(array.dtype)))
    return ArrayRecord(scaled)
