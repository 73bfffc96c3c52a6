"""The clients: Flower `NumPyClient` subclasses that hold all local behaviour.

They need no Flower runtime: construct one, call `fit` and `evaluate`. Arrays come and go in the
order of `shared`; `client_app` puts names to them.
"""

import time
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import sha256

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedattn_app.clients.node_state import NodeState
from fedattn_app.config import Config, TrainingConfig
from fedattn_app.data.examples import ClientData
from fedattn_app.errors import UserError
from fedattn_app.metrics import Counts
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import build_classifier, files_of
from fedattn_app.models.parameters import fingerprint, get_arrays, set_arrays, view_arrays, without
from fedattn_app.models.scopes import Scope, scope_of
from fedattn_app.training.evaluation import evaluate
from fedattn_app.training.loop import TrainingResult, gradient, train
from fedattn_app.training.optimizer import Proximal
from fedattn_app.types import NDArray

EFFECTIVE_BETA = 0.999


class FrozenClient(NumPyClient):
    """Trains and returns the shared parameters; all others stay as they were at the start.

    (Or, after rounds that shared everything, as the server sends them.)

    `fit` and `evaluate` read from their config ``server-round`` (int, from 1) and
    ``frozen-fingerprint`` (SHA-256 of the server's frozen parameters; absent: not compared). The
    frozen parameters may be given too, in the order of `frozen` after the shared ones. A client
    without examples answers with what it was sent and ``num_examples`` 0.
    """

    def __init__(
        self, config: Config, labels: tuple[str, ...], data: ClientData, partition: int = 0
    ) -> None:
        self.config = config
        self.labels = labels
        self.data = data
        self.partition = partition
        self._start = _starting_point(config, len(labels), files_of(config.model))
        self.model = self._start.model
        self.shared = [name for name in self._start.arrays if name in self._start.scope.shared]
        self._present = [self._start.arrays[name] for name in self.shared]

    @property
    def frozen(self) -> list[str]:
        """Names of the parameters that stay as they were."""
        return list(without(view_arrays(self.model), self.trainable))

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that local training changes."""
        return self._start.scope.trainable

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return the shared arrays as the last `fit` left them, at first as the seed made them."""
        return [array.copy() for array in self._present]

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the global `parameters`.

        Returns the new arrays, the number of examples trained on, and ``loss``, ``accuracy``
        (over the last epoch) and ``seconds``, with `weighting` = "effective" ``effective-number``
        too. With ``proximal-mu`` in `config` the loss has that proximal term; with ``local-task`` =
        "gradient" the arrays are the gradient over ``gradient-batch`` examples, 0 for all, and the
        number is theirs. Raises `FrozenMismatchError` and `TrainingDivergedError`.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        if not len(self.data.train):
            nothing: dict[str, Scalar] = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}
            return self._sent(parameters), 0, {**nothing, **self._effective_number()}
        server_round = int(config.get("server-round", 0))
        if config.get("local-task") == "gradient":
            arrays, num_examples, result = self._gradient(config, server_round)
        else:
            result = train(
                self.model,
                self.trainable,
                self.data.train,
                self._training(server_round),
                self.seed(server_round),
                self._proximal(config),
            )
            arrays, num_examples = self._trained(), len(self.data.train)
        metrics: dict[str, Scalar] = {
            "loss": result.loss,
            "accuracy": result.accuracy,
            "seconds": time.perf_counter() - start,
        }
        return arrays, num_examples, {**metrics, **self._effective_number()}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global `parameters` on the examples held out here.

        Returns the loss, the number of examples, and ``loss``, ``accuracy``, ``seconds`` and, for
        each label k, the counts ``support-k``, ``predicted-k`` and ``correct-k``.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        result = evaluate(self.model, self.data.validation, len(self.labels))
        metrics: dict[str, Scalar] = {"loss": result.loss, "accuracy": result.accuracy}
        for k in range(len(self.labels)):
            metrics[f"support-{k}"] = int(result.support[k])
            metrics[f"predicted-{k}"] = int(result.predicted[k])
            metrics[f"correct-{k}"] = int(result.correct[k])
        metrics["seconds"] = time.perf_counter() - start
        return result.loss, result.num_examples, metrics

    def _load(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> None:
        expected = config.get("frozen-fingerprint")
        if expected is not None and expected != self._start.frozen_fingerprint:
            raise FrozenMismatchError()
        names = self.shared if len(parameters) == len(self.shared) else self.shared + self.frozen
        given = dict(zip(names, parameters, strict=True))
        set_arrays(self.model, {**self._start.arrays, **self._local_arrays(), **given})

    def _sent(self, parameters: NDArrays) -> NDArrays:
        """Return the shared ones of the `parameters` that came."""
        return parameters[: len(self.shared)]

    def _training(self, server_round: int) -> TrainingConfig:
        return self.config.training.in_round(server_round, self.config.federation.num_rounds)

    def _proximal(self, config: Mapping[str, Scalar]) -> Proximal | None:
        mu = float(config.get("proximal-mu", 0.0))
        return Proximal(mu, frozenset(self.shared)) if mu else None

    def _gradient(
        self, config: Mapping[str, Scalar], server_round: int
    ) -> tuple[NDArrays, int, TrainingResult]:
        batch = min(int(config.get("gradient-batch", 0)), len(self.data.train))
        arrays, result = gradient(
            self.model,
            self.trainable,
            self.data.train,
            self.config.training,
            self.seed(server_round),
            batch,
        )
        return [arrays[name] for name in self.shared], batch or len(self.data.train), result

    def _effective_number(self) -> dict[str, Scalar]:
        """Return the effective number of examples, where replies are weighed by it."""
        if self.config.aggregation.weighting != "effective":
            return {}
        counts = np.bincount(self.data.train.labels.numpy(), minlength=len(self.labels))
        return {"effective-number": effective_number(counts)}

    def _trained(self) -> NDArrays:
        """Take the shared arrays from the trained model, and keep the others."""
        trained = get_arrays(self.model, self.trainable)
        self._keep(trained)
        self._present = [trained[name] for name in self.shared]
        return list(self._present)

    def seed(self, server_round: int) -> int:
        """Return what local randomness of this client starts from in a round."""
        path = (self.config.federation.seed, server_round, self.partition)
        return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)

    def _local_arrays(self) -> Mapping[str, NDArray]:
        return {}

    def _keep(self, arrays: Mapping[str, NDArray]) -> None:
        """Keep what must outlive this message; called before the update is returned."""


class PersonalClient(FrozenClient):
    """Trains the personal parameters too, if there are any, and keeps them in `state`.

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
    def state_name(self) -> str:
        """Name of the personal arrays: those of another partition, model or seed have another."""
        return f"personal-{self.partition}-{self._start.identity_of_rest[:16]}"

    def _local_arrays(self) -> Mapping[str, NDArray]:
        return self.state.load(self.state_name) or {}

    def _keep(self, arrays: Mapping[str, NDArray]) -> None:
        if self._start.scope.personal:
            self.state.save(self.state_name, without(arrays, self.shared))


def effective_number(counts: Counts) -> float:
    """Return Σ_c (1 - β^{n_c}) / (1 - β) of the examples of each class, with β = 0.999.

    A class counts for less with each further example. Cui et al., "Class-balanced loss based on
    effective number of samples", 2019, arXiv 1901.05555, section 3.
    """
    return float(np.sum((1 - EFFECTIVE_BETA ** counts.astype(np.float64)) / (1 - EFFECTIVE_BETA)))


class FrozenMismatchError(UserError):
    """Raised where a node's frozen parameters are not the server's."""

    def __init__(self) -> None:
        super().__init__(
            "the frozen parameters of this node differ from the server's: model, its weights, "
            "labels, seed and the versions of torch, transformers and peft must be the same on both"
        )


class _StartingPoint:
    """A model that clients of one process take turns with, and what to set it back to.

    `arrays` are the trainable parameters at the start; the frozen ones change in the model only
    with what the server sends along, which is then in every message.
    """

    def __init__(self, config: Config, num_labels: int, files: object) -> None:
        federation = config.federation
        self.adapters = config.lora if federation.uses_lora else None
        self.model: Classifier = build_classifier(config, num_labels)
        self.scope: Scope = scope_of(
            federation.shared, federation.local, self.model.family, view_arrays(self.model)
        )
        self.arrays = get_arrays(self.model, self.scope.trainable)

    @cached_property
    def frozen_fingerprint(self) -> str:
        return fingerprint(without(view_arrays(self.model), self.scope.trainable))

    @cached_property
    def identity_of_rest(self) -> str:
        """What the parameters that do not travel start from, and what they are a part of."""
        rest = without({**view_arrays(self.model), **self.arrays}, self.scope.shared)
        return sha256(f"{fingerprint(rest)} {self.adapters}".encode()).hexdigest()


_starting_point = lru_cache(maxsize=1)(_StartingPoint)
