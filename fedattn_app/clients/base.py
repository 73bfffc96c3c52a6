"""The client that trains the shared parameters and leaves all others as they are.

Clients are Flower `NumPyClient` subclasses and hold all local behaviour. They need no Flower
runtime: construct one, then call `fit` and `evaluate`. Arrays are passed in the order of `shared`;
only `client_app` attaches names to them.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedattn_app.clients.agreement import check_agreement
from fedattn_app.clients.starting_point import starting_point
from fedattn_app.config import Config, TrainingConfig
from fedattn_app.data.examples import ClientData
from fedattn_app.metrics import COUNT_NAMES, Counts
from fedattn_app.models.parameters import copy_arrays, get_arrays, set_arrays
from fedattn_app.run_identity import RunIdentity
from fedattn_app.training.evaluation import evaluate
from fedattn_app.training.loop import TrainingResult, gradient, train
from fedattn_app.training.optimizer import Proximal
from fedattn_app.types import NDArray

if TYPE_CHECKING:
    from fedattn_app.clients.node import Node

EFFECTIVE_NUMBER_BETA = 0.999


class FrozenClient(NumPyClient):
    """Trains and returns the shared parameters; all others stay frozen.

    `fit` and `evaluate` read ``server-round`` (int, from 1) and the server's fingerprints from
    their config: of the labels, the tokenizer, the training data and the frozen parameters, each
    under a key that `agreement.REASONS` lists. They must equal this client's; one that is absent is
    not compared. After warm-up rounds, which train all
    parameters, the server also sends the frozen ones, after the shared ones, in the order of
    `frozen`.

    Args:
        config: the settings of the run.
        labels: the label names, in the order of the model's outputs.
        data: the examples to train on and those held out; either may be empty.
        partition: the number of this client, from 0; its random choices depend on it.
    """

    def __init__(
        self, config: Config, labels: tuple[str, ...], data: ClientData, partition: int = 0
    ) -> None:
        self.config = config
        self.labels = labels
        self.data = data
        self.partition = partition
        self._start = starting_point(config, labels)
        self.model = self._start.model
        scope = self._start.scope
        self.trainable = scope.trainable
        self.shared = [name for name in self._start.arrays if name in scope.shared]
        self._returned = [self._start.arrays[name] for name in self.shared]

    @classmethod
    def on_node(cls, node: "Node") -> Self:
        """Return a client with the settings and data of `node`."""
        return cls(node.config, node.labels, node.data, node.partition)

    @property
    def frozen(self) -> list[str]:
        """The names of the frozen parameters, in the model's order."""
        return self._start.frozen_names

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return copies of the shared arrays that training last produced, in the order of `shared`.

        Before any training these are the initial arrays. `config` is not used.
        """
        return [array.copy() for array in self._returned]

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the global `parameters`.

        With ``proximal-mu`` in `config` the loss has a proximal term with this μ. With
        ``local-task`` = "gradient" the returned arrays are the gradient of the mean loss over
        ``gradient-batch`` examples (0: all examples). A client without examples returns the arrays
        that it was sent.

        Returns the new arrays, the number of examples used, and the metrics ``loss`` and
        ``accuracy`` (means over the last local epoch) and ``seconds``; with `weighting` =
        "effective" also ``effective-number``. Raises `MismatchError` and `TrainingDivergedError`.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        if not len(self.data.train):
            zeros: dict[str, Scalar] = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}
            return self._shared_of(parameters), 0, {**zeros, **self._effective_number()}
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
        """Evaluate the global `parameters` on this client's held-out examples.

        Returns the mean loss in nats, the number of examples, and the metrics ``loss``,
        ``accuracy`` (0 to 1), ``seconds`` and, for each label k, the counts ``support-k``,
        ``predicted-k`` and ``correct-k``. Without held-out examples all of these are 0 except
        ``seconds``. Raises `MismatchError`, and `ValueError` if an array has the wrong shape.
        """
        start = time.perf_counter()
        self._load(parameters, config)
        result = evaluate(self.model, self.data.validation, len(self.labels))
        metrics: dict[str, Scalar] = {"loss": result.loss, "accuracy": result.accuracy}
        metrics |= count_metrics([getattr(result, name) for name in COUNT_NAMES])
        metrics["seconds"] = time.perf_counter() - start
        return result.loss, result.num_examples, metrics

    def seed(self, server_round: int) -> int:
        """Return the seed, 0 to 2⁶³ - 1, for this client's random choices in `server_round`."""
        path = (self.config.federation.seed, server_round, self.partition)
        return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)

    def _load(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> None:
        """Copy the personal parameters and the global `parameters` into the model.

        Personal parameters that have never been saved get their initial values. `parameters` holds
        the shared arrays, optionally followed by the frozen ones. Raises `MismatchError` if a
        fingerprint in `config` differs from this client's, and `ValueError` if the number of arrays
        or a shape is wrong.
        """
        check_agreement(config, self._identity(config))
        set_arrays(self.model, {**self._start.personal, **self._personal_arrays()})
        sent = self.shared if len(parameters) == len(self.shared) else self.shared + self.frozen
        copy_arrays(parameters, self._start.views(sent), sent)

    def _identity(self, config: Mapping[str, Scalar]) -> RunIdentity:
        """Return what this client has, to be compared with what `config` says of the server's."""
        frozen = self._start.frozen_fingerprint if "frozen-fingerprint" in config else ""
        tokenizer, source = self.data.tokenizer_fingerprint, self.data.source_fingerprint
        return RunIdentity(self.labels, frozen, tokenizer, source)

    def _shared_of(self, parameters: NDArrays) -> NDArrays:
        """Return the shared arrays, which come first in the `parameters` that the server sent."""
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
        """Return the metric ``effective-number`` if `weighting` is "effective", else {}."""
        if self.config.aggregation.weighting != "effective":
            return {}
        counts = np.bincount(self.data.train.labels.numpy(), minlength=len(self.labels))
        return {"effective-number": effective_number(counts)}

    def _trained(self) -> NDArrays:
        """Save the personal arrays of the trained model, then return its shared arrays."""
        trained = get_arrays(self.model, self.trainable)
        self._save_personal(trained)
        self._returned = [trained[name] for name in self.shared]
        return list(self._returned)

    def _personal_arrays(self) -> Mapping[str, NDArray]:
        """Return the personal parameters saved in earlier rounds, by name; {} if there are none."""
        return {}

    def _save_personal(self, trained: Mapping[str, NDArray]) -> None:
        """Save the personal parameters in `trained`. Called before `fit` returns the update."""


def count_metrics(counts: "list[Counts]") -> dict[str, Scalar]:
    """Return the metrics ``support-k``, ``predicted-k`` and ``correct-k`` for each label k.

    Args:
        counts: one integer array of shape (K,) for each name in `COUNT_NAMES`, in that order.
    """
    return {
        f"{name}-{label}": int(counts_of_name[label])
        for label in range(len(counts[0]))
        for name, counts_of_name in zip(COUNT_NAMES, counts, strict=True)
    }


def effective_number(counts: Counts) -> float:
    """Return Σ_c (1 - β^{n_c}) / (1 - β) for the `counts` n_c of examples per class, (K,).

    β is 0.999, so each further example of a class adds less. Cui et al., "Class-balanced loss based
    on effective number of samples", 2019, arXiv 1901.05555, section 3.
    """
    beta = EFFECTIVE_NUMBER_BETA
    return float(np.sum((1 - beta ** counts.astype(np.float64)) / (1 - beta)))
