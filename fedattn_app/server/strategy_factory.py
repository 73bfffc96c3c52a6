"""Make the strategy of a run: the rule that its settings name, inside its wrappers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp import PrivacyAccountant
from flwr.serverapp.strategy import FedAvg

import strategies
from fedattn_app.config import Config
from fedattn_app.models.scopes import Scope
from fedattn_app.privacy.protections import Protection
from fedattn_app.run_identity import RunIdentity
from fedattn_app.transport.codec import codec_of
from fedattn_app.types import NDArray
from strategies import (
    AttentionOnly,
    ClientLevelDP,
    DecodedReplies,
    FedSGD,
    NormBounds,
    UpdateChecks,
)
from strategies.common.state import load_state, state_of


@dataclass(frozen=True)
class Phase:
    """The rounds from `first_round` on, in which the same parameters travel.

    Attributes:
        first_round: the first round, from 1.
        rule: combines the replies; it is inside all wrappers.
        strategy: the rule in all wrappers; the server calls this one.
        checks: the wrapper around the rule, which sees the updates that enter a combination.
        message_config: the config that goes with every message.
    """

    first_round: int
    rule: FedAvg | ClientLevelDP
    strategy: DecodedReplies
    checks: UpdateChecks
    message_config: Mapping[str, str]

    @property
    def accountant(self) -> PrivacyAccountant | None:
        """The accountant of the server's noise; None if the server adds no noise."""
        return self.rule.accountant if isinstance(self.rule, ClientLevelDP) else None

    @property
    def refused(self) -> dict[int, str]:
        """The reason for each refused reply of this round, by partition."""
        return {**self.strategy.dropped, **self.checks.dropped}

    def begin_round(self, min_updates: int) -> None:
        """Forget what was refused before, and let the rule combine `min_updates` or more only."""
        self.strategy.dropped.clear()
        self.checks.dropped.clear()
        self.checks.min_updates = min_updates

    def state(self) -> dict[str, NDArray]:
        """Return the arrays that the rule keeps from round to round."""
        return state_of(self.rule)

    def load_state(self, state: Mapping[str, NDArray]) -> None:
        """Restore the arrays that `state` returned in the run that is resumed."""
        load_state(self.rule, state)


def build_phases(
    config: Config,
    protection: Protection,
    scope: Scope,
    identity: RunIdentity,
    accountant_state: Mapping[str, Any],
    num_rounds: int,
) -> list[Phase]:
    """Return the warm-up phase, if there is one, and the main phase; a warm-up shares everything.

    Args:
        config: the settings of the run.
        protection: the protection of the run.
        scope: which parameters are shared.
        identity: the labels and fingerprints, which every client compares with its own.
        accountant_state: the server's accountant in the run that is resumed, else empty.
        num_rounds: the number of rounds still to run.
    """
    rule = make_rule(config, protection, accountant_state, num_rounds)
    warmup_rounds = config.federation.warmup_rounds
    if not warmup_rounds:
        return [build_pipeline(config, rule, scope.shared, identity.to_message_config())]
    checked = replace(identity, frozen="").to_message_config()  # they change in the warm-up
    # One accountant must count the noise of all rounds; any other rule begins anew.
    second_rule = rule
    if not isinstance(rule, ClientLevelDP):
        second_rule = make_rule(config, protection, accountant_state, num_rounds)
    return [
        build_pipeline(config, rule, scope.shared | scope.frozen, checked),
        # Clients that join after the warm-up have not seen the warmed-up parameters, so the server
        # sends them too.
        build_pipeline(
            config, second_rule, scope.shared, checked, warmup_rounds + 1, sends_rest=True
        ),
    ]


def build_pipeline(
    config: Config,
    rule: FedAvg | ClientLevelDP,
    shared: Collection[str],
    message_config: Mapping[str, str] | None = None,
    first_round: int = 1,
    sends_rest: bool = False,
) -> Phase:
    """Return `rule` inside all its wrappers.

    The code adds the wrappers from the innermost to the outermost. A reply passes them the other
    way, from the bottom of this function to its top:

    1. decoded: what cannot be decoded is refused;
    2. scope: replies without examples are left out, and the result is merged into the model;
    3. checked: an update of another form is refused; one that is too long is refused or clipped;
    4. rule: the updates are combined, under ``client-dp`` with noise.

    The metrics of a reply were checked before it comes here (`Cohort`). A mechanism that hides
    single updates belongs between 2 and 4, in place of the checks, which must see them.

    Args:
        config: the settings of the run.
        rule: combines the replies.
        shared: the names of the parameters that travel.
        message_config: the config that goes with every message.
        first_round: the first round of the phase, from 1.
        sends_rest: whether clients are sent all other parameters too.
    """
    settings = config.aggregation
    # Noise must be released whoever answers: that nobody answered is private too.
    needs_no_replies = isinstance(rule, ClientLevelDP)

    norm_bounds = NormBounds(
        settings.update_drop_norm,
        settings.update_clip_norm,
        replies_are_gradients=isinstance(rule, FedSGD),
    )
    checked = UpdateChecks(rule, norm_bounds)
    scoped = AttentionOnly(checked, shared.__contains__, needs_no_replies, sends_rest)
    decoded = DecodedReplies(scoped, codec_of(config).decode)
    return Phase(first_round, rule, decoded, checked, message_config or {})


def make_rule(
    config: Config,
    protection: Protection,
    accountant_state: Mapping[str, Any] | None = None,
    num_rounds: int = 1,
) -> FedAvg | ClientLevelDP:
    """Make the rule that the key ``strategy`` names, in the form that the protection requires.

    Args:
        config: the settings of the run.
        protection: the protection of the run.
        accountant_state: the server's accountant in the run that is resumed, else empty.
        num_rounds: the number of rounds still to run.
    """
    flower_settings: dict[str, Any] = {
        "fraction_train": config.federation.fraction_train,
        "fraction_evaluate": protection.fraction_evaluate,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    return protection.build_rule(
        getattr(strategies, config.aggregation.rule.class_name),
        flower_settings,
        config.aggregation.rule_settings(protection.weighting),
        accountant_state or {},
        num_rounds,
    )
