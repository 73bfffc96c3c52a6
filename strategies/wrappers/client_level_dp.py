"""Differential privacy of a whole client: updates are clipped, and their mean gets noise.

    w ← w + (Σ_k Δ_k · min(1, C / ‖Δ_k‖) + N(0, σ²C²)) / m,    Δ_k = w_k − w

for the m clients selected. McMahan, Ramage, Talwar and Zhang, "Learning differentially private
recurrent language models", 2018, arXiv 1710.06963. Clipping, noise and accounting are Flower's own.

Use it if clients trust the server with their updates, and want a bound on what the model reveals to
everyone else.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
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
# Norm given to an update of 0, as a fraction of the clipping norm: far below the noise.
ZERO_UPDATE_NORM = 1e-6


class ClientLevelDP(DifferentialPrivacyServerSideFixedClipping):
    """Flower's wrapper with fixed clipping on the server, made robust and accounted for.

    Flower's class fails on an update of 0 and skips a round if one client fails. Here a client that
    fails, does not answer or sends an invalid update counts as one whose update is 0, so that the
    noise is always what the accountant counts. All clients weigh the same. Their metrics carry no
    noise and are not combined.

    Args:
        strategy: Flower's `FedAvg`, which samples clients and averages.
        noise_multiplier: Noise σ > 0, in units of `clipping_norm`.
        clipping_norm: Maximum L2 norm C > 0 of an update.
        target_delta: δ at which the accountant reports ε.
        max_epsilon: Maximum ε. `configure_train` raises `PrivacyBudgetExhausted` for a round that
            would exceed it. None: no limit.
        seed: Seed of the noise. None: the operating system's randomness.
    """

    def __init__(
        self,
        strategy: FedAvg,
        noise_multiplier: float,
        clipping_norm: float,
        target_delta: float,
        max_epsilon: float | None = None,
        seed: int | None = None,
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
        self.seed = seed
        self.weight_key = strategy.weighted_by_key
        self._cohort: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's training messages, and check the privacy budget.

        Raises `PrivacyBudgetExhausted` if the round would exceed `max_epsilon`, and `ValueError`
        if an array cannot be clipped.
        """
        check_clippable({name: array.numpy() for name, array in arrays.items()})
        self.current_arrays = arrays
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._cohort = [message.metadata.dst_node_id for message in messages]
        self.num_sampled_clients = max(1, len(messages))
        return self._prepare_accounting(server_round, messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip the updates, average them, add noise, and record the release with the accountant.

        This happens even if no client answers. Returns the new global arrays and the inner
        strategy's metrics, or (None, None) if the round sent no messages.
        """
        answers = {
            reply.metadata.src_node_id: arrays
            for reply in valid_replies(replies)
            if (arrays := self._valid_arrays(reply)) is not None
        }
        unchanged = {name: array.numpy() for name, array in self.current_arrays.items()}
        complete = [
            self._reply(node, answers.get(node, unchanged)) for node in sorted(self._cohort)
        ]
        with _numpy_seeded(self.seed, server_round):
            return super().aggregate_train(server_round, complete)

    def _valid_arrays(self, reply: Message) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays of `reply` by name, in the order of the global arrays.

        Returns None if a name, shape or dtype differs from the global arrays, or if the update is
        not finite.
        """
        record = next(iter(reply.content.array_records.values()), ArrayRecord())
        if set(record) != set(self.current_arrays):
            return None
        arrays = {name: record[name].numpy() for name in self.current_arrays}
        for name, now in self.current_arrays.items():
            if arrays[name].shape != tuple(now.shape) or arrays[name].dtype != now.dtype:
                return None
            if not np.isfinite(arrays[name] - now.numpy()).all():
                return None
        return arrays

    def _reply(self, node: int, arrays: dict[str, npt.NDArray[Any]]) -> Message:
        """Return a reply of weight 1 from `node` with these `arrays`, for Flower's wrapper.

        Flower cannot clip an update of norm 0. If `arrays` equal the global arrays, one value is
        increased slightly so that the norm is above 0.
        """
        now = self.current_arrays
        if not _flower_norm([array - now[name].numpy() for name, array in arrays.items()]):
            name = next(iter(arrays))
            moved = arrays[name].copy()
            # The smallest number has the finest spacing, so that the step is not rounded away.
            smallest = np.abs(moved).argmin()
            moved.flat[smallest] += max(
                ZERO_UPDATE_NORM * self.clipping_norm,
                2 * float(np.spacing(np.abs(moved.flat[smallest]))),
            )
            arrays = {**arrays, name: moved}
        content = RecordDict({"metrics": MetricRecord({self.weight_key: 1})})
        content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(content, node, MessageType.TRAIN)


def check_clippable(arrays: dict[str, npt.NDArray[Any]]) -> None:
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


def _flower_norm(arrays: Sequence[npt.NDArray[Any]]) -> float:
    """Return the L2 norm that Flower's clipping divides by.

    The squares are computed in the arrays' own precision, so the norm of a tiny update underflows
    to 0.
    """
    norms = [np.linalg.norm(array.flat) for array in arrays]
    return float(np.sqrt(sum([norm**2 for norm in norms])))


@contextmanager
def _numpy_seeded(seed: int | None, server_round: int) -> Iterator[None]:
    """Context manager that seeds numpy's global generator and restores its state afterwards.

    Flower draws its noise from this generator. If `seed` is not None, `seed` and `server_round`
    determine the state. If it is None, the whole state comes from the operating system.
    """
    before = np.random.get_state()
    entropy: Sequence[int] | npt.NDArray[np.uint32] = (
        np.frombuffer(secrets.token_bytes(4 * 624), dtype=np.uint32)
        if seed is None
        else [seed, server_round]
    )
    np.random.seed(entropy)
    try:
        yield
    finally:
        np.random.set_state(before)
