"""Make the strategy that a run's settings name, with all that is wrapped around it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.serverapp.strategy import FedAvg

import strategies
from fedattn_app.config import Config
from fedattn_app.errors import UserError
from fedattn_app.privacy.accounting import Steps, noise_for
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.types import NDArray
from strategies import AttentionOnly, ClientLevelDP, UpdateChecks
from strategies.common.memory import memory_of, remember


@dataclass(frozen=True)
class Phase:
    """The rounds from `first` on, in which one `strategy` combines the same parameters.

    `message_config` goes with every message. `rule` is the innermost strategy.
    """

    first: int
    rule: FedAvg | ClientLevelDP
    strategy: AttentionOnly
    checks: UpdateChecks
    message_config: Mapping[str, str]

    @classmethod
    def of(
        cls,
        rule: FedAvg | ClientLevelDP,
        config: Config,
        shared: Collection[str],
        message_config: Mapping[str, str],
        first: int = 1,
        with_rest: bool = False,
    ) -> "Phase":
        """Wrap `rule` for the parameters `shared` alone and for updates that pass the checks.

        `with_rest`: clients are sent the other parameters too.
        """
        chosen = config.aggregation
        least = chosen.min_updates
        checks = UpdateChecks(rule, chosen.update_drop_norm, chosen.update_clip_norm, least)
        # Noise goes out whoever answers: that nobody had anything to say is private too.
        noisy = isinstance(rule, ClientLevelDP)
        strategy = AttentionOnly(checks, shared.__contains__, noisy, with_rest)
        return cls(first, rule, strategy, checks, message_config)

    @property
    def memory(self) -> dict[str, NDArray]:
        """What the rule keeps from round to round."""
        return memory_of(self.rule)

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Give the rule back what it kept in the run that is carried on."""
        remember(self.rule, memory)


def make_rule(config: Config) -> FedAvg:
    """Make the rule that combines the replies."""
    settings: dict[str, Any] = {
        "fraction_train": config.federation.fraction_train,
        "fraction_evaluate": config.fraction_evaluate,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    if config.privacy.privacy == "client-dp":
        return FedAvg(**settings)  # Flower's accounting knows no other; it averages uniformly
    kind = getattr(strategies, config.aggregation.rule.class_name)
    rule: FedAvg = kind(**settings, **config.rule_settings)
    return rule


def check_cohort(config: Config, clients: int) -> None:
    """Raise `UserError` where a round has too few of the `clients` for the rule."""
    cohort = max(1, int(clients * config.federation.fraction_train))
    buffer_size = config.aggregation.fedbuff_buffer_size
    if config.aggregation.strategy == "fedbuff" and buffer_size > clients:
        raise UserError(
            f"fedbuff-buffer-size = {buffer_size}: must be at most the number of clients = "
            f"{clients}, each of which answers once for a step"
        )
    needed = config.aggregation.min_updates
    if cohort < needed:
        given = [f"{k} = {v}" for k, v in config.aggregation.min_updates_settings.items()]
        raise UserError(
            f'strategy = "{config.aggregation.strategy}": needs {needed} clients in a round with '
            f"{' and '.join(given)}, there are {cohort}"
        )


def with_noise(config: Config, folder: RunFolder) -> ClientLevelDP:
    """Return the plain average with the server's noise, as far as that has been spent.

    Raises `UserError` where too little of the budget is left, or nobody knows how much is.
    """
    privacy = config.privacy
    try:
        before = [
            Steps(float(release["event"]["noise_multiplier"]), 1.0, release["count"])
            for release in folder.accountant.get("compositions", [])
        ]
    except (ValueError, TypeError, LookupError) as error:
        raise _unknown_spending(config, error) from None
    planned = Steps(0.0, 1.0, config.federation.num_rounds - folder.start_round)
    noise = privacy.noise_multiplier or noise_for(
        privacy.target_epsilon, privacy.target_delta, planned, before
    )
    if noise is None:
        raise UserError(
            f"target-epsilon = {privacy.target_epsilon:g}: too little of it is left for num-rounds "
            f"= {config.federation.num_rounds} at target-delta = {privacy.target_delta:g}; raise it"
        )
    wrapper = ClientLevelDP(
        make_rule(config),
        noise,
        privacy.max_update_norm,
        privacy.target_delta,
        privacy.target_epsilon or None,
        config.federation.seed if privacy.reproducible_noise else None,
    )
    if folder.accountant:
        assert wrapper.accountant
        try:
            limit = {"max_epsilon": privacy.target_epsilon or None}  # may have been raised
            its_config = {**folder.accountant["config"], **limit}
            wrapper.accountant.load_state_dict({**folder.accountant, "config": its_config})
        except (ValueError, TypeError, LookupError) as error:
            raise _unknown_spending(config, error) from None
    return wrapper


def _unknown_spending(config: Config, error: Exception) -> UserError:
    return UserError(
        f"resume-from = {config.output.resume_from}: its accountant does not say what was spent "
        f"({error})"
    )
