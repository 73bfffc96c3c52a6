"""``privacy = "dp-sgd"``: every node trains with DP-SGD and accounts for what it spends."""

import logging

from fedattn_app.privacy.protections.noise import NoisyProtection

log = logging.getLogger("fedattn")


class DpSgd(NoisyProtection):
    """Protects each example of a node, whoever the server is."""

    protects_on_node = True
    kept_by_clients = "privacy ledgers"
    client_class = "fedattn_app.clients.private:PrivateClient"
    exact_metrics = frozenset({"epsilon", "budget-spent"})

    @property
    def reports_num_examples(self) -> bool:
        """Whether the owner of the run made the numbers public."""
        return self.settings.num_examples_public

    @property
    def fraction_evaluate(self) -> float:
        """None of the clients without a budget for it: scores depend on single examples."""
        return super().fraction_evaluate if self.settings.evaluate_epsilon else 0.0

    def reports_score(self, score: str) -> bool:
        """Noisy counts give every score but the loss."""
        return super().reports_score(score) and score != "loss"

    def announce(self) -> None:
        """Log that no client evaluates, where that is so."""
        if not self.settings.evaluate_epsilon:
            log.info("dp-sgd: clients do not evaluate (evaluate-epsilon = 0)")
        super().announce()
