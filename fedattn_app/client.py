"""The clients: Flower `NumPyClient` subclasses that hold all local behaviour.

They need no Flower runtime: construct one, call `fit` and `evaluate`. Arrays come and go in the
order of `shared`; `client_app` puts names to them.
"""

import time
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedattn_app.config import Config, ModelConfig
from fedattn_app.data import ClientData
from fedattn_app.errors import UserError
from fedattn_app.model import TransformerClassifier, build_model
from fedattn_app.parameters import (
    NDArray,
    fingerprint,
    get_arrays,
    set_arrays,
    shared_names,
    without,
)
from fedattn_app.state import NodeState
from fedattn_app.training import evaluate, train


class FrozenClient(NumPyClient):
    """Trains and returns the shared parameters; all others stay as the seed made them.

    `fit` and `evaluate` read from their config ``server-round`` (int, from 1) and
    ``frozen-fingerprint`` (SHA-256 of the server's frozen parameters; absent: not compared). A
    client without examples answers with what it was sent and ``num_examples`` 0.
    """

    def __init__(
        self, config: Config, labels: tuple[str, ...], data: ClientData, partition: int = 0
    ) -> None:
        self.config = config
        self.labels = labels
        self.data = data
        self.partition = partition
        self.model, self.initial = _initial_model(config.model, len(labels), config.federation.seed)
        selected = shared_names(config.federation.shared, self.initial)
        self.shared = [name for name in self.initial if name in selected]
        self._present = [self.initial[name] for name in self.shared]

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that local training changes."""
        return frozenset(self.shared)

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return the shared arrays as the last `fit` left them, at first as the seed made them."""
        return [array.copy() for array in self._present]

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the global `parameters`.

        Returns the new arrays, the number of examples trained on, and ``loss``, ``accuracy``
        (over the last epoch) and ``seconds``. Raises `FrozenMismatchError` and
        `TrainingDivergedError`.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        if not len(self.data.train):
            return parameters, 0, {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}
        server_round = int(config.get("server-round", 0))
        result = train(
            self.model,
            self.trainable,
            self.data.train,
            self.config.training,
            seed=_seed(self.config.federation.seed, server_round, self.partition),
        )
        trained = get_arrays(self.model)
        self._keep(trained)
        self._present = [trained[name] for name in self.shared]
        metrics: dict[str, Scalar] = {
            "loss": result.loss,
            "accuracy": result.accuracy,
            "seconds": time.perf_counter() - start,
        }
        return list(self._present), len(self.data.train), metrics

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global `parameters` on the examples held out here.

        Returns the loss, the number of examples, and ``accuracy``, ``seconds`` and, for each
        label k, the counts ``support-k``, ``predicted-k`` and ``correct-k``.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        result = evaluate(self.model, self.data.validation, len(self.labels))
        metrics: dict[str, Scalar] = {"accuracy": result.accuracy}
        for k in range(len(self.labels)):
            metrics[f"support-{k}"] = int(result.support[k])
            metrics[f"predicted-{k}"] = int(result.predicted[k])
            metrics[f"correct-{k}"] = int(result.correct[k])
        metrics["seconds"] = time.perf_counter() - start
        return result.loss, result.num_examples, metrics

    def _load(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> None:
        expected = config.get("frozen-fingerprint")
        if expected is not None and expected != self._frozen_fingerprint():
            raise FrozenMismatchError()
        shared = dict(zip(self.shared, parameters, strict=True))
        set_arrays(self.model, {**self.initial, **self._local_arrays(), **shared})

    def _frozen_fingerprint(self) -> str:
        federation = self.config.federation
        return _fingerprint_of_rest(
            self.config.model, len(self.labels), federation.seed, federation.shared
        )

    def _local_arrays(self) -> Mapping[str, NDArray]:
        return {}

    def _keep(self, arrays: Mapping[str, NDArray]) -> None:
        """Keep what must outlive this message; called before the update is returned."""


class PersonalClient(FrozenClient):
    """Trains all parameters, returns the shared ones and keeps the others in `state`.

    They are kept for every later run with the same model, labels, scope and seed.
    """

    def __init__(
        self,
        config: Config,
        labels: tuple[str, ...],
        data: ClientData,
        partition: int,
        state: NodeState,
    ) -> None:
        super().__init__(config, labels, data, partition)
        self.state = state

    @property
    def trainable(self) -> frozenset[str]:
        """All names."""
        return frozenset(self.initial)

    @property
    def state_name(self) -> str:
        """Name of the personal arrays: those of another partition, model or seed have another."""
        return f"personal-{self.partition}-{self._frozen_fingerprint()[:16]}"

    def _local_arrays(self) -> Mapping[str, NDArray]:
        return self.state.load(self.state_name) or {}

    def _keep(self, arrays: Mapping[str, NDArray]) -> None:
        self.state.save(self.state_name, without(arrays, self.shared))


class FrozenMismatchError(UserError):
    """Raised where a node's frozen parameters are not the server's."""

    def __init__(self) -> None:
        super().__init__(
            "the frozen parameters of this node differ from the server's: model, labels, seed "
            "and torch version must be the same on both"
        )


@lru_cache(maxsize=1)
def _initial_model(
    config: ModelConfig, num_labels: int, seed: int
) -> tuple[TransformerClassifier, Mapping[str, NDArray]]:
    """Build the model once per process; clients of one process take turns with it."""
    model = build_model(config, num_labels, seed)
    return model, get_arrays(model)


@lru_cache(maxsize=1)
def _fingerprint_of_rest(config: ModelConfig, num_labels: int, seed: int, shared: str) -> str:
    _, initial = _initial_model(config, num_labels, seed)
    return fingerprint(without(initial, shared_names(shared, initial)))


def _seed(*path: int) -> int:
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)
