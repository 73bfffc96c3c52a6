"""Refuse or clip single updates before a rule combines them.

Checks of form: a reply is refused if its arrays have other names, shapes or dtypes than were sent,
or contain NaN or infinity. One broken client must not end the federation, so every rule needs them.

Checks of size (`NormBounds`), with Δ_k = w_k − w:

    refuse if ‖Δ_k‖₂ > R;    Δ_k ← Δ_k · min(1, C / ‖Δ_k‖₂)

where the norm is over all arrays that the client shares; Sun, Kairouz, Suresh and McMahan, "Can you
really backdoor federated learning?", 2019, arXiv 1911.07963, section 4. They read the values of a
single update. A mechanism that hides single updates, such as secure aggregation, must leave them
out: `norm_bounds` None.

An update within the bounds can still be an attack; use a robust rule against those.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from strategies.wrappers.base import ReplyFilter


@dataclass(frozen=True)
class NormBounds:
    """Bounds on the L2 norm of an update.

    Args:
        drop_norm: Maximum norm. An update with a larger norm is refused. 0: no limit.
        clip_norm: Norm to which an update with a larger norm is scaled down. 0: no clipping.
        replies_are_gradients: Whether the replies contain gradients. If true, the update is the
            gradient itself. If false, it is the returned parameters minus those sent.
    """

    drop_norm: float = 0.0
    clip_norm: float = 0.0
    replies_are_gradients: bool = False

    def fault(self, reply: Message, sent: ArrayRecord) -> str | None:
        """Return why the update in `reply` is refused, or None if it is not.

        An update longer than `clip_norm` is clipped in place, unless it is refused. `reply` must
        have passed the checks of form.

        Args:
            reply: The training reply.
            sent: The arrays that its node was sent.
        """
        if not (self.drop_norm or self.clip_norm):
            return None
        arrays = reply.content.array_records["arrays"]
        origin = None if self.replies_are_gradients else sent
        norm = _norm(arrays, origin)
        if self.drop_norm and norm > self.drop_norm:
            return f"its norm is {norm:.4g}, above {self.drop_norm:g}"
        if self.clip_norm and norm > self.clip_norm:
            _replace_arrays(reply, _scaled(arrays, origin, self.clip_norm / norm))
        return None


class UpdateChecks(ReplyFilter):
    """Gives the inner strategy only the replies that pass the checks.

    Args:
        inner: The strategy that combines the replies.
        norm_bounds: The checks of size. None: only the checks of form are made.
        min_updates: Minimum number of replies to combine, at least 1. If fewer pass, the inner
            strategy sees none of them.
    """

    def __init__(
        self, inner: Strategy, norm_bounds: NormBounds | None = None, min_updates: int = 1
    ) -> None:
        super().__init__(inner)
        self.norm_bounds = norm_bounds
        self.min_updates = min_updates

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the arrays and metrics that the inner strategy combines from the passed replies.

        Either may be None. Returns (None, None) if fewer than `min_updates` replies pass the
        checks.
        """
        passed = self._accepted(replies)
        first = list(islice(passed, self.min_updates)) if self.min_updates > 1 else []
        if self.min_updates > 1 and len(first) < self.min_updates:
            return None, None
        return self.inner.aggregate_train(server_round, chain(first, passed))

    def fault(self, reply: Message, sent: ArrayRecord) -> str | None:
        """Return why `reply` fails a check, or None if it passes all of them.

        The checks of form come first, and only the first failure is returned. If the reply passes,
        its arrays are reordered in place to match `sent`, because some of Flower's rules match
        arrays by position.

        Args:
            reply: The training reply.
            sent: The arrays that its node was sent.
        """
        fault = _form_fault(reply.content, sent)
        if fault is None and self.norm_bounds is not None:
            fault = self.norm_bounds.fault(reply, sent)
        if fault is None:
            arrays = reply.content.array_records["arrays"]
            if list(arrays) != list(sent):
                _replace_arrays(reply, ArrayRecord({name: arrays[name] for name in sent}))
        return fault


def _form_fault(content: RecordDict, sent: ArrayRecord) -> str | None:
    if list(content.array_records) != ["arrays"]:
        return "it must hold one record of arrays"
    arrays = content.array_records["arrays"]
    if set(arrays) != set(sent):
        return f"its arrays differ in {', '.join(sorted(set(arrays) ^ set(sent)))}"
    for name, array in arrays.items():
        try:
            values = array.numpy()
        except Exception as error:  # numpy raises various errors for bytes that are no array
            return f"{name} cannot be read: {error}"
        if not isinstance(values, np.ndarray):  # numpy reads an archive of arrays too
            return f"{name} is not an array"
        expected = sent[name].dtype, tuple(sent[name].shape)
        # Rules rely on the values as well as on the dtype and shape that the record declares.
        for dtype, shape in ((str(values.dtype), values.shape), (array.dtype, tuple(array.shape))):
            if (dtype, shape) != expected:
                return f"{name} is {dtype} {shape}, not {expected[0]} {expected[1]}"
        if not np.isfinite(values).all():
            return f"{name} holds NaN or infinity"
    return None


def _replace_arrays(reply: Message, arrays: ArrayRecord) -> None:
    reply.content = RecordDict({**dict(reply.content.items()), "arrays": arrays})


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
