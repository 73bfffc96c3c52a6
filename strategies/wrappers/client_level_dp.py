"""Differential privacy of a whole client: updates are clipped, and their mean gets noise.

    w ← w + (Σ_k Δ_k · min(1, C / ‖Δ_k‖) + N(0, σ²C²)) / m,    Δ_k = w_k − w

for the m clients selected. McMahan, Ramage, Talwar and Zhang, "Learning differentially private
recurrent language models", 2018, arXiv 1710.06963. The accounting is Flower's own.

All of this is computed in float64, from the updates and not from the models. Only the result is
rounded to the precision of w, after the noise, so that rounding cannot make a client count for more
than C. A C that is not far above the spacing of the numbers of w is refused nevertheless: the model
could not hold such updates.

Use it if clients trust the server with their updates, and want a bound on what the model reveals to
everyone else.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import (
    Grid,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from strategies.common.replies import valid_replies

# Flower asks for it; without amplification by sampling it does not affect ε.
POPULATION_SIZE = 10**9
# Rounding may change the difference that an update of norm C makes to a model by this fraction.
MAX_ROUNDING = 0.01

NDArray = npt.NDArray[Any]
# Returns independent standard normal numbers, (count,) float64, for the round and the count that it
# is given. They must be secret: whoever can predict them can take the noise away.
StandardNormal = Callable[[int, int], npt.NDArray[np.float64]]


class ClippingNormError(ValueError):
    """The clipping norm is too small for the arrays; the text begins with its value."""


class ClientLevelDP(DifferentialPrivacyServerSideFixedClipping):
    """Flower's accounting around clipping on the server, noise, and a plain average.

    A client that fails, does not answer or sends an invalid update counts as one whose update is 0,
    so that the noise is always what the accountant counts. All clients weigh the same. Their
    metrics carry no noise and are not combined.

    Args:
        strategy: Flower's `FedAvg`, which samples clients.
        noise_multiplier: Noise σ > 0, in units of `clipping_norm`.
        clipping_norm: Maximum L2 norm C > 0 of an update.
        target_delta: δ at which the accountant reports ε.
        normal: The source of the noise.
        max_epsilon: Maximum ε. `configure_train` raises `PrivacyBudgetExhausted` for a round that
            would exceed it. None: no limit.
    """

    def __init__(
        self,
        strategy: FedAvg,
        noise_multiplier: float,
        clipping_norm: float,
        target_delta: float,
        normal: StandardNormal,
        max_epsilon: float | None = None,
    ) -> None:
        config = PrivacyConfig(
            target_delta=target_delta,
            population_size=POPULATION_SIZE,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
            max_epsilon=max_epsilon,
        )
        super().__init__(
            strategy, noise_multiplier, clipping_norm, 1, accountant=RdpAccountant(config)
        )
        self.normal = normal
        self._cohort: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's training messages, and check the privacy budget.

        Raises `PrivacyBudgetExhausted` if the round would exceed `max_epsilon`, `ValueError` if an
        array cannot be clipped, and `ClippingNormError` if the arrays have grown too large for the
        clipping norm.
        """
        values = {name: array.numpy() for name, array in arrays.items()}
        check_clippable(values)
        check_clipping_norm(values, self.clipping_norm)
        self.current_arrays = arrays
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._cohort = [message.metadata.dst_node_id for message in messages]
        self.num_sampled_clients = max(1, len(messages))
        return self._prepare_accounting(server_round, messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip the updates, average them, add noise, and record the release with the accountant.

        This happens even if no client answers. Returns the new global arrays and no metrics, or
        (None, None) if the round sent no messages.
        """
        event = self._pop_pending_event(server_round)
        if event is None:
            return None, None
        answers = {reply.metadata.src_node_id: reply for reply in valid_replies(replies)}
        before = {name: array.numpy() for name, array in self.current_arrays.items()}
        size = sum(array.size for array in before.values())
        total = self.normal(server_round, size) * (self.noise_multiplier * self.clipping_norm)
        for node in sorted(answers.keys() & set(self._cohort)):
            update = self._update(answers[node], before)
            if update is not None:
                norm = float(np.linalg.norm(update))
                total += update * (min(1.0, self.clipping_norm / norm) if norm else 1.0)
        total /= len(self._cohort)
        self._compose_release(event)
        return _moved(before, total), None

    def _update(
        self, reply: Message, before: Mapping[str, NDArray]
    ) -> npt.NDArray[np.float64] | None:
        """Return what `reply` adds to the arrays `before`, as one vector in their order.

        Returns None if a name, shape or dtype differs, or if the update's norm is not finite.
        """
        record = next(iter(reply.content.array_records.values()), ArrayRecord())
        if set(record) != set(before):
            return None
        parts = []
        for name, now in before.items():
            array = record[name].numpy()
            if array.shape != now.shape or array.dtype != now.dtype:
                return None
            parts.append(np.subtract(array, now, dtype=np.float64).ravel())
        update = np.concatenate(parts)
        return update if np.isfinite(np.linalg.norm(update)) else None


def check_clippable(arrays: Mapping[str, NDArray]) -> None:
    """Raise `ValueError` if any array cannot be clipped.

    An array can be clipped if it is float32 or float64, has at least one dimension, and is not
    empty.
    """
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64) or not array.ndim or not array.size:
            raise ValueError(
                f"parameter {name!r} is {array.dtype} of shape {array.shape}: only float32 and "
                "float64 arrays with a dimension can be clipped"
            )


def smallest_clipping_norm(arrays: Mapping[str, NDArray]) -> float:
    """Return the smallest norm of an update of `arrays` that rounding changes by `MAX_ROUNDING`.

    The arrays with the update and those without it are rounded, each number by at most half the
    distance to the next one.
    """
    distances = [np.spacing(np.abs(array)).astype(np.float64) for array in arrays.values()]
    return math.sqrt(sum(float(np.sum(each**2)) for each in distances)) / MAX_ROUNDING


def check_clipping_norm(arrays: Mapping[str, NDArray], clipping_norm: float) -> None:
    """Raise `ClippingNormError` if `clipping_norm` is below the smallest for these `arrays`."""
    smallest = smallest_clipping_norm(arrays)
    if clipping_norm < smallest:
        raise ClippingNormError(
            f"{clipping_norm:g}: must be at least {smallest:.3g}, because the shared parameters "
            "are too large to hold smaller updates"
        )


def _moved(before: Mapping[str, NDArray], update: npt.NDArray[np.float64]) -> ArrayRecord:
    """Return the arrays `before` plus `update`, which has their numbers as one vector."""
    ends = np.cumsum([array.size for array in before.values()])
    parts = np.split(update, ends[:-1])
    moved = {
        name: (array + part.reshape(array.shape)).astype(array.dtype)
        for (name, array), part in zip(before.items(), parts, strict=True)
    }
    return ArrayRecord({name: Array(array) for name, array in moved.items()})
