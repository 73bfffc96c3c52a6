"""What the apps, the clients and the server ask about the protection of a run.

No other module tests the name of a protection. A new one is a class derived from `Protection`,
which overrides the answers that differ, and a row of `PROTECTIONS` in `fedattn_app.config.privacy`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedattn_app.config import Config
from fedattn_app.metrics import COUNT_NAMES

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

    from strategies import ClientLevelDP


class Protection:
    """The answers of a run without protection."""

    # The node protects its examples itself. It keeps a privacy ledger, reports its ε with every
    # reply, and nothing else that depends on single examples may leave it, error messages included.
    protects_on_node = False
    # Something is spent: the summary has ε and δ, and the run folder keeps what each client spent.
    has_budget = False
    # The server adds the noise and accounts for it: a round is a release whoever answers.
    server_accounts = False
    # What clients score on their held-out examples may decide which model of a run is the best.
    best_model_by_client_scores = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings = config.privacy

    # On a node

    @property
    def client_class(self) -> str:
        """The dotted name of the client's class, ``module:class``, imported where it is used."""
        if self.config.federation.local == "personal":
            return "fedattn_app.clients.personal:PersonalClient"
        return "fedattn_app.clients.base:FrozenClient"

    @property
    def kept_by_clients(self) -> str:
        """What clients must still have from the round before, in words; empty for nothing."""
        return "personal parameters" if self.config.federation.local == "personal" else ""

    # What a reply holds

    @property
    def exact_metrics(self) -> frozenset[str]:
        """The metrics of every reply, beside the number of examples."""
        return frozenset({"loss", "accuracy", "seconds"})

    @property
    def reports_num_examples(self) -> bool:
        """Whether ``num-examples`` of a reply is the true number."""
        return True

    def train_metrics(self) -> frozenset[str]:
        """Return the names of the metrics in a reply to a training message."""
        effective = {"effective-number"} if self.weighting == "effective" else frozenset()
        return frozenset({"num-examples", *self.exact_metrics, *effective})

    def evaluate_metrics(self, num_labels: int) -> frozenset[str]:
        """Return the names of the metrics in a reply to an evaluation message."""
        counts = {f"{name}-{label}" for name in COUNT_NAMES for label in range(num_labels)}
        return frozenset({"num-examples", *self.exact_metrics, *counts})

    # On the server

    @property
    def weighting(self) -> str:
        """The weighting of replies in effect."""
        chosen = self.config.aggregation.weighting
        return self.default_weighting if chosen == "auto" else chosen

    default_weighting = "examples"

    @property
    def fraction_evaluate(self) -> float:
        """The fraction of the clients that evaluate after a round, 0 to 1."""
        return self.config.federation.fraction_evaluate

    def reports_score(self, score: str) -> bool:
        """Whether clients report `score`, a choice of the key ``score``, after each round."""
        return self.fraction_evaluate > 0

    def build_rule(
        self,
        rule_class: "type[FedAvg]",
        flower_settings: Mapping[str, Any],
        rule_settings: Mapping[str, Any],
        accountant_state: Mapping[str, Any],
        num_rounds: int,
    ) -> "FedAvg | ClientLevelDP":
        """Return the rule that combines replies, wrapped in what protects its result.

        Args:
            rule_class: the class of `strategies` that the key ``strategy`` names.
            flower_settings: the keywords of Flower's ``FedAvg``.
            rule_settings: the keywords that only this rule has.
            accountant_state: the server's accountant in the run that is resumed, else empty.
            num_rounds: the number of rounds still to run.
        """
        return rule_class(**flower_settings, **rule_settings)

    def check_settings(self) -> None:
        """Raise `UserError`, before any message, for settings that cannot work."""

    def check_num_clients(self, num_clients: int) -> None:
        """Raise `UserError` for settings that do not suit this number of clients."""

    def announce(self) -> None:
        """Log what the user of a run should know about its protection."""

    def summary_notes(self) -> dict[str, str]:
        """Return the entries of ``summary.json`` that limit what its ε means."""
        return {}


class NoProtection(Protection):
    """Updates travel as they are (``privacy = "none"``)."""
