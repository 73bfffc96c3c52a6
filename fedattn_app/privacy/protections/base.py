"""The interface of a protection, for the apps, the clients and the server.

No other module tests the name of a protection. To add one, derive a class from `Protection`,
override what differs, and add a row to `PROTECTIONS` in `fedattn_app.config.privacy`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedattn_app.config import Config
from fedattn_app.metrics import COUNT_NAMES
from fedattn_app.types import NDArray

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

    from fedattn_app.models.classifier import Classifier
    from strategies import ClientLevelDP


class Protection:
    """A protection; the defaults are those of a run without any.

    Args:
        config: the settings of the run.
    """

    # The node protects its own examples. It keeps a privacy ledger and reports ε with every reply.
    # Nothing else that depends on single examples may leave it, error messages included.
    protects_on_node = False
    # The run has a privacy budget: the summary has ε and δ, and the run folder has the ε of each
    # client.
    has_budget = False
    # The server adds the noise and accounts for it: every round is a release, whichever clients
    # reply.
    server_accounts = False
    # Scores on the clients' held-out examples may select the best model of a run.
    best_model_by_client_scores = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings = config.privacy

    # On a node

    @property
    def client_class(self) -> str:
        """The client's class as ``module:class``; it is imported where it is used."""
        if self.config.federation.local == "personal":
            return "fedattn_app.clients.personal:PersonalClient"
        return "fedattn_app.clients.base:FrozenClient"

    @property
    def kept_by_clients(self) -> str:
        """A phrase that names what clients must keep between rounds; empty if nothing."""
        return "personal parameters" if self.config.federation.local == "personal" else ""

    # The content of a reply

    @property
    def exact_metrics(self) -> frozenset[str]:
        """The names of the metrics in every reply, except ``num-examples``."""
        return frozenset({"loss", "accuracy", "seconds"})

    @property
    def reports_num_examples(self) -> bool:
        """Whether ``num-examples`` in a reply is the true number of examples."""
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
        """How replies are weighted: ``examples``, ``uniform``, ``loss`` or ``effective``.

        This is the setting `weighting`, or the protection's default if the setting is ``auto``.
        """
        weighting = self.config.aggregation.weighting
        return self.default_weighting if weighting == "auto" else weighting

    default_weighting = "examples"

    @property
    def fraction_evaluate(self) -> float:
        """The fraction of clients that evaluate after a round, 0 to 1."""
        return self.config.federation.fraction_evaluate

    def reports_score(self, score: str) -> bool:
        """Return whether clients report the score named `score` when they evaluate.

        Args:
            score: a value of the setting `score`.
        """
        return self.fraction_evaluate > 0

    def build_rule(
        self,
        rule_class: "type[FedAvg]",
        flower_settings: Mapping[str, Any],
        rule_settings: Mapping[str, Any],
        accountant_state: Mapping[str, Any],
        num_rounds: int,
    ) -> "FedAvg | ClientLevelDP":
        """Return the rule that combines replies, wrapped in the server's part of the protection.

        Args:
            rule_class: the class in `strategies` that the key ``strategy`` selects.
            flower_settings: keyword arguments of Flower's ``FedAvg``.
            rule_settings: keyword arguments of this rule alone.
            accountant_state: the state of the resumed run's accountant, empty for a new run.
            num_rounds: the number of rounds still to run.
        """
        return rule_class(**flower_settings, **rule_settings)

    def check_settings(self) -> None:
        """Raise `UserError` if the settings cannot work. Called before any message is sent."""

    def check_model(self, model: "Classifier", arrays: Mapping[str, NDArray]) -> None:
        """Raise `UserError` for a `model`, or `arrays` of it that travel, that do not allow it."""

    def check_num_clients(self, num_clients: int) -> None:
        """Raise `UserError` if the settings do not allow a run with `num_clients` clients."""

    def check_examples(self, examples: Sequence[tuple[int, int]], num_needed: int) -> None:
        """Raise `UserError` if the settings do not suit the numbers of examples.

        Args:
            examples: how many examples each client trains on and how many it holds out.
            num_needed: the number of clients that must be able to train.
        """

    def announce(self) -> None:
        """Log messages about this run's protection for the user. Some protections log none."""

    def summary_notes(self) -> dict[str, str]:
        """Return the entries, by key, that limit the meaning of ε in ``summary.json``.

        The dict is empty if there are none.
        """
        return {}


class NoProtection(Protection):
    """No protection: updates are sent unchanged (``privacy = "none"``)."""
