"""Differential privacy of a whole client: its update is clipped, their mean gets noise.

    w ← w + (Σ_k Δ_k · min(1, C / ‖Δ_k‖) + N(0, σ²C²)) / m,    Δ_k = w_k − w, for m clients asked

(McMahan, Ramage, Talwar and Zhang, "Learning differentially private recurrent language models",
2018, arXiv 1710.06963.) Clipping, noise and accounting are Flower's own. Use it where the server is
trusted with the updates, and the model with what it gives away is not for everyone.
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
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.differential_privacy import get_norm
from flwr.supercore.privacy_accounting import NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

# Without amplification by sampling the number of clients has no part in ε.
ANY_POPULATION = 10**9
# Moves a number and changes nothing else, in parts of the clipping norm.
HARDLY = 1e-6


class ClientLevelDP(DifferentialPrivacyServerSideFixedClipping):
    """Flower's wrapper with fixed clipping on the server, accounted for, on real replies.

    Flower's stops at a client whose update is zero, and gives a round up when one client fails.
    Here a client that fails, answers nothing or sends NaN counts as one that changed nothing, so
    that the noise stays what is accounted for. All replies weigh the same and none of their
    metrics is combined, as no noise is on them. `seed` None draws noise from the operating system.
    `configure_train` raises `PrivacyBudgetExhausted` where another round would pass `max_epsilon`,
    and `ValueError` for arrays that cannot be clipped.
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
            population_size=ANY_POPULATION,
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
        """Let the inner strategy send, and hold the round against the budget."""
        check_clippable({name: array.numpy() for name, array in arrays.items()})
        self.current_arrays = arrays
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._cohort = [message.metadata.dst_node_id for message in messages]
        self.num_sampled_clients = max(1, len(messages))
        return self._prepare_accounting(server_round, messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average and add noise: that is the release, whether anyone answered or not."""
        answers = {
            reply.metadata.src_node_id: arrays
            for reply in replies
            if not reply.has_error() and (arrays := self._answer(reply)) is not None
        }
        unchanged = {name: array.numpy() for name, array in self.current_arrays.items()}
        complete = [
            self._reply(node, answers.get(node, unchanged)) for node in sorted(self._cohort)
        ]
        with _numpy_seeded(self.seed, server_round):
            return super().aggregate_train(server_round, complete)

    def _answer(self, reply: Message) -> dict[str, npt.NDArray[Any]] | None:
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
        """Make the reply that Flower's wrapper gets: an update above zero, a weight of one."""
        now = self.current_arrays
        if not get_norm([array - now[name].numpy() for name, array in arrays.items()]):
            name = next(iter(arrays))
            moved = arrays[name].copy()
            least = np.abs(moved).argmin()
            step = max(
                HARDLY * self.clipping_norm, 2 * float(np.spacing(np.abs(moved.flat[least])))
            )
            moved.flat[least] += step
            arrays = {**arrays, name: moved}
        content = RecordDict({"metrics": MetricRecord({self.weight_key: 1})})
        content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(content, node, MessageType.TRAIN)


def check_clippable(arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Raise `ValueError` where an array is not float32 or float64, or has no dimension."""
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64) or not array.ndim or not array.size:
            raise ValueError(
                f"parameter {name!r} is {array.dtype} of shape {array.shape}: only float32 and "
                "float64 arrays with a dimension can be clipped"
            )


@contextmanager
def _numpy_seeded(seed: int | None, server_round: int) -> Iterator[None]:
    """Seed numpy's global generator, which Flower's noise comes from, and restore it.

    Without a `seed`, all of its state comes from the operating system, whoever seeded it before.
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
