"""``privacy = "dp-sgd"``: every node trains with DP-SGD and accounts for its own ε."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedattn_app.errors import UserError
from fedattn_app.privacy.accounting import Steps, epsilon_of, is_within
from fedattn_app.privacy.protections.noise import NoisyProtection
from fedattn_app.types import NDArray

if TYPE_CHECKING:
    from fedattn_app.models.classifier import Classifier

log = logging.getLogger("fedattn")


class DpSgd(NoisyProtection):
    """Protects each example of a node from everyone, the server included."""

    protects_on_node = True
    kept_by_clients = "privacy ledgers"
    client_class = "fedattn_app.clients.private:PrivateClient"
    exact_metrics = frozenset({"epsilon", "budget-spent"})

    @property
    def reports_num_examples(self) -> bool:
        """Whether the run has declared the numbers of examples public."""
        return self.settings.num_examples_public

    @property
    def fraction_evaluate(self) -> float:
        """The configured fraction, or 0 without a budget: scores depend on single examples."""
        return super().fraction_evaluate if self.settings.evaluate_epsilon else 0.0

    def reports_score(self, score: str) -> bool:
        """Return whether clients evaluate and `score` is not the loss, which counts do not give."""
        return super().reports_score(score) and score != "loss"

    def check_model(self, model: "Classifier", arrays: Mapping[str, NDArray]) -> None:
        """Raise `UserError` for a model in which the examples of a batch mix."""
        from fedattn_app.privacy.gradients.selection import refuse_batch_normalisation

        refuse_batch_normalisation(model)

    def check_examples(self, examples: Sequence[tuple[int, int]], num_needed: int) -> None:
        """Raise `UserError` if a client has too many examples, or too few clients have budget.

        A real node refuses by itself: it alone knows its examples and what it has spent before.
        """
        settings = self.settings
        check_delta(settings.target_delta, max(map(sum, examples)))
        num_able = sum(self._can_train(num_examples) for num_examples, _ in examples)
        if num_able < num_needed:
            raise UserError(
                f"target-epsilon = {settings.target_epsilon:g}: with noise-multiplier = "
                f"{settings.noise_multiplier:g} it suffices {num_able} of {len(examples)} clients "
                f"for a round, and {num_needed} are needed; raise target-epsilon or the noise"
            )

    def _can_train(self, num_examples: int) -> bool:
        """Return whether the budget of a client that has spent nothing suffices for one round."""
        from fedattn_app.privacy.dp_sgd import Sampling

        settings = self.settings
        if not num_examples or not settings.noise_multiplier or not settings.target_epsilon:
            return True  # noise that is computed from the budget fits it
        sampling = Sampling.of(num_examples, self.config.training, settings.num_examples_public)
        steps = Steps(settings.noise_multiplier, sampling.rate, sampling.steps)
        epsilon = epsilon_of([steps], settings.target_delta, settings.accountant)
        return is_within(epsilon, settings.target_epsilon)

    def announce(self) -> None:
        """Log that no client evaluates, if that is the case."""
        if not self.settings.evaluate_epsilon:
            log.info("dp-sgd: clients do not evaluate (evaluate-epsilon = 0)")
        super().announce()


def check_delta(delta: float, num_examples: int, key: str = "target-delta") -> None:
    """Raise `UserError` if δ is too large for a client with `num_examples` examples.

    `key` is the setting that gives δ.
    """
    if delta * num_examples >= 1:
        raise UserError(
            f"{key} = {delta:g}: must be below 1 / number of examples, here 1 / "
            f"{num_examples} = {1 / num_examples:.3g}"
        )
