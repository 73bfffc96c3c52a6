"""The client whose replies are differentially private (``privacy = "dp-sgd"``).

The guarantee covers all rounds, runs and restarts: see docs/threat-model.md.
"""

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from flwr.common import NDArrays, Scalar

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.clients.base import count_metrics
from fedattn_app.clients.node_state import NodeState
from fedattn_app.clients.personal import PersonalClient
from fedattn_app.config import Config
from fedattn_app.data.examples import UNKNOWN_LABEL, ClientData, Examples
from fedattn_app.errors import UserError
from fedattn_app.models.classifier import Classifier
from fedattn_app.policy.owner_policy import DEFAULT_MAX_DELTA
from fedattn_app.privacy.accounting import (
    MAX_NOISE_INCREASE,
    Steps,
    epsilon_of,
    is_within,
    noise_for,
    smallest_noise,
)
from fedattn_app.privacy.dp_sgd import Noise, Sampling, train_privately
from fedattn_app.privacy.gradients.engine import GradientEngine
from fedattn_app.privacy.gradients.selection import engine_for
from fedattn_app.privacy.ledger import Entry, Ledger
from fedattn_app.privacy.privacy_filter import PrivacyFilter
from fedattn_app.privacy.protections.dp_sgd import check_delta
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.evaluation import EVALUATION_BATCH_SIZE, evaluate
from fedattn_app.training.loop import set_trainable

if TYPE_CHECKING:
    from fedattn_app.clients.node import Node

# The L2 norm of one held-out example's contribution to the counts: 1 in `support`, 1 in
# `predicted` and at most 1 in `correct`.
COUNT_SENSITIVITY = math.sqrt(3)

log = logging.getLogger("fedattn")


class PrivateClient(PersonalClient):
    """Trains every trainable parameter with DP-SGD, and reports nothing else about its examples.

    The cost of a message is written to `ledger` before anything is computed. Raises `UserError` if
    `target-delta` is not below 1 / number of examples.

    Args:
        config: the settings of the run.
        labels: the label names, in the order of the model's outputs.
        data: the examples to train on and those held out.
        partition: the number of this client, from 0.
        state: where the personal parameters are kept between messages.
        ledger: the privacy ledger of this node, for all runs.
        run: Flower's id of the run; the noise multiplier is set once per run and sample rate.
        max_epsilon: the owner's limit on ε for all runs together, above 0.
        max_delta: the δ of that limit.
    """

    def __init__(
        self,
        config: Config,
        labels: tuple[str, ...],
        data: ClientData,
        partition: int,
        state: NodeState,
        ledger: Ledger,
        run: int = 0,
        max_epsilon: float = math.inf,
        max_delta: float = DEFAULT_MAX_DELTA,
    ) -> None:
        max_length = config.model.max_length
        padded = replace(
            data,
            train=data.train.pad_independently(max_length),
            validation=data.validation.pad_independently(max_length),
        )
        super().__init__(config, labels, padded, partition, state)
        self.privacy = config.privacy
        self.ledger = ledger
        self.run = run
        self.limit: PrivacyFilter | None = None
        num_examples = len(data.train) + len(data.validation)
        check_delta(self.privacy.target_delta, num_examples)
        if max_epsilon < math.inf:
            check_delta(max_delta, num_examples, "max-delta")
            self.limit = PrivacyFilter(max_epsilon, max_delta)

    @classmethod
    def on_node(cls, node: "Node") -> Self:
        """Return the client of `node`, with its data, state and limits."""
        return cls(
            node.config,
            node.labels,
            node.data,
            node.partition,
            node.state,
            node.ledger,
            node.context.run_id,
            node.policy.epsilon_limit,
            node.policy.max_delta,
        )

    @property
    def state_name(self) -> str:
        """The name of the personal arrays; only arrays trained under this ledger have it."""
        ledger = self.ledger.path.stem if self.ledger.path else "simulated"
        return f"{super().state_name}-{ledger}"

    @property
    def epsilon(self) -> float:
        """ε at `target-delta` of all that the node has spent, in all runs; it never decreases."""
        return self._epsilon_with([])

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the global `parameters` with noise.

        Returns the new arrays, the number of examples (1 if that is not public), and the metrics
        ``epsilon`` and ``budget-spent`` (1 if the budget is too small for this round, else 0). A
        client without examples or without budget returns the arrays that it was sent, and 0
        examples. Raises `MismatchError`, `TrainingDivergedError`, and `UserError` for a
        ledger that cannot be read or written.
        """
        self._load(parameters, config)
        examples = self.data.train
        server_round = int(config.get("server-round", 1))
        if not len(examples):
            return self._shared_of(parameters), 0, self._metrics()
        public = self.privacy.num_examples_public
        sampling = Sampling.of(len(examples), self.config.training, public)
        noise = self._spend(
            "train",
            Steps(self.privacy.noise_multiplier, sampling.rate, sampling.steps),
            self.privacy.target_epsilon,
            server_round,
        )
        if noise is None:
            return self._shared_of(parameters), 0, self._metrics(budget_spent=True)
        train_privately(
            self.model,
            self.trainable,
            examples,
            self._training(server_round),
            sampling,
            Noise(noise, self.privacy.max_grad_norm),
            _engine(self.model, self.trainable, self.config.model.max_length),
            self._random(server_round, "train"),
            self._proximal(config),
        )
        return self._trained(), len(examples) if public else 1, self._metrics()

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global `parameters` on the examples held out here; add noise to the counts.

        Returns 0 for the loss, the noisy number of examples, and the metrics ``epsilon``,
        ``budget-spent`` and, for each label k, the noisy counts ``support-k``, ``predicted-k`` and
        ``correct-k``. Without held-out examples or without budget all counts are 0. Raises
        `MismatchError`, and `UserError` if `evaluate-epsilon` is 0 or the ledger cannot be
        read or written.
        """
        if not self.privacy.evaluate_epsilon:
            raise UserError('evaluate-epsilon = 0: with privacy = "dp-sgd" no node evaluates')
        self._load(parameters, config)
        server_round = int(config.get("server-round", 1))
        noise = None
        if len(self.data.validation):
            noise = self._spend(
                "evaluate", Steps(0.0, 1.0, 1), self.privacy.evaluate_epsilon, server_round
            )
        counts = np.zeros((3, len(self.labels)), dtype=np.int64)
        if noise is not None:
            random = self._random(server_round, "evaluate")
            counts = self._noisy_counts(self.data.validation, noise * COUNT_SENSITIVITY, random)
        spent = noise is None and len(self.data.validation) > 0
        metrics = self._metrics(budget_spent=spent) | count_metrics(list(counts))
        return 0.0, max(0, int(counts[0].sum())), metrics

    def _noisy_counts(
        self, examples: Examples, deviation: float, random: SecretRandom
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
        """Return the counts of `COUNT_NAMES` with noise of this `deviation`, rounded, (3, K)."""
        known = examples[(examples.labels != UNKNOWN_LABEL).nonzero()[:, 0]]
        batches = known.inputs.split_by_equal_size(torch.arange(len(known)), EVALUATION_BATCH_SIZE)
        result = evaluate(self.model, known, len(self.labels), batches)
        counts = np.stack([result.support, result.predicted, result.correct])  # (3, K)
        noisy = torch.from_numpy(counts).double().flatten()
        random.add_normal(noisy, deviation)
        return noisy.round().long().view(counts.shape).numpy()

    def _spend(self, kind: str, planned: Steps, target: float, server_round: int) -> float | None:
        """Record the cost of `planned` in the ledger, and return its noise multiplier.

        Returns None and records nothing if ε would exceed the `target` for this `kind` of message
        (0: no limit) or the owner's limit for all messages.
        """
        delta, accountant = self.privacy.target_delta, self.privacy.accountant
        with self.ledger.exclusive():
            noise = planned.noise_multiplier or self._noise(kind, planned, target, server_round)
            if noise is None:
                return None
            steps = replace(planned, noise_multiplier=float(noise))
            epsilon = self._epsilon_with([steps])
            mechanisms = [*(entry.mechanism for entry in self.ledger.entries_of(kind)), steps]
            within = is_within(epsilon_of(mechanisms, delta, accountant), target)
            if not within or not self._is_allowed(steps):
                log.warning(
                    "client %d: no budget left to %s in round %d: ε is %.4g and would become %.4g; "
                    "the limits are %g in this run and %g in all runs",
                    self.partition,
                    kind,
                    server_round,
                    self.epsilon,
                    epsilon,
                    target or math.inf,
                    self.limit.max_epsilon if self.limit else math.inf,
                )
                return None
            if not self.ledger.entries_of(kind, self.run):
                log.info(
                    "client %d: %s with noise multiplier %.3g; ε is %.4g after the first message",
                    self.partition,
                    kind,
                    noise,
                    epsilon,
                )
            self.ledger.add(
                Entry(
                    kind=kind,
                    noise_multiplier=steps.noise_multiplier,
                    sample_rate=float(steps.sample_rate),
                    steps=steps.count,
                    run=self.run,
                    server_round=server_round,
                    epsilon=epsilon,
                    delta=delta,
                )
            )
        return noise

    def _noise(self, kind: str, planned: Steps, target: float, server_round: int) -> float | None:
        """Return the noise multiplier for messages of one `kind`.

        It is that of the run's last message of this kind if the sample rate is the same. Otherwise
        it is the smallest with which the `target`, and the owner's limit if that is possible,
        suffice for all remaining rounds, or None if there is none.
        """
        of_run = self.ledger.entries_of(kind, self.run)
        if of_run and of_run[-1].sample_rate == planned.sample_rate:
            return of_run[-1].noise_multiplier
        rounds = max(1, self.config.federation.num_rounds - server_round + 1)
        whole = replace(planned, count=planned.count * rounds)
        before = [entry.mechanism for entry in self.ledger.entries_of(kind)]
        noise = noise_for(target, self.privacy.target_delta, whole, before, self.privacy.accountant)
        if noise is None:
            log.warning(
                "client %d: the rest of ε = %g is too small to %s for %d rounds",
                self.partition,
                target,
                kind,
                rounds,
            )
            return None
        return self._noise_within_limit(whole, noise)

    def _noise_within_limit(self, whole: Steps, noise: float) -> float:
        """Return a larger noise multiplier if the owner's limit suffices for `whole` only with it.

        If it would be larger by more than `MAX_NOISE_INCREASE` times, `noise` itself is returned:
        the run then ends early.
        """
        if self._is_allowed(replace(whole, noise_multiplier=noise)):
            return noise
        larger = smallest_noise(whole, self._is_allowed)
        return larger if larger and larger <= MAX_NOISE_INCREASE * noise else noise

    def _is_allowed(self, steps: Steps) -> bool:
        """Return whether the owner's limit has room for `steps` after all that was spent."""
        return not self.limit or self.limit.allows([*self.ledger.mechanisms, steps])

    def _epsilon_with(self, more: list[Steps]) -> float:
        """Return ε of the ledger and `more`, never less than was reported before at this δ."""
        delta = self.privacy.target_delta
        reported = [entry.epsilon for entry in self.ledger.entries if entry.delta == delta]
        spent = epsilon_of([*self.ledger.mechanisms, *more], delta, self.privacy.accountant)
        return max([spent, *reported])

    def _metrics(self, budget_spent: bool = False) -> dict[str, Scalar]:
        return {"epsilon": self.epsilon, "budget-spent": int(budget_spent)}

    def _random(self, server_round: int, kind: str) -> SecretRandom:
        if self.privacy.reproducible_noise:
            return SecretRandom.from_seed(self.seed(server_round), kind)
        return SecretRandom()


@PROCESS_CACHE.keep(max_entries=1)
def _engine(model: Classifier, trainable: frozenset[str], max_length: int) -> type[GradientEngine]:
    set_trainable(model, trainable)
    return engine_for(model, max_length)
