"""``privacy = "dp-sgd"``: every node trains with DP-SGD and accounts for its own ε."""

import logging

from fedattn_app.privacy.protections.noise import NoisyProtection

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

    def announce(self) -> None:
        """Log that no client evaluates, if that is the case."""
        if not self.settings.evaluate_epsilon:
            log.info("dp-sgd: clients do not evaluate (evaluate-epsilon = 0)")
        super().announce()
