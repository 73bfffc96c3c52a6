"""The run-config keys of aggregation, and the registry of rules that combine replies.

A rule is a class of `strategies` and one row of `RULES`. The row has the name of the class and not
the class itself, because clients read the configuration too and must not import any strategy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from fedattn_app.config.schema import ConfigValue, Section, key_named, setting


@dataclass(frozen=True)
class AggregationRule:
    """A rule that combines the replies of a round.

    `class_name` is a class of `strategies`. `keywords` maps the fields of `AggregationConfig` that
    the rule uses to the keywords of that class. `unused` are fields of other sections that have no
    effect with this rule. `min_updates` returns how many updates the rule needs to combine any:
    a round with fewer ends the run.
    """

    class_name: str
    keywords: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    min_updates: Callable[["AggregationConfig"], int] = lambda config: 1


_WEIGHTING = {"weighting": "weighting"}
_SERVER_STEP = {
    "server_learning_rate": "server_learning_rate",
    "server_momentum": "server_momentum",
}
_ADAPTIVE = _WEIGHTING | {"server_learning_rate": "eta", "adaptive_tau": "tau"}
_MOMENTS = _ADAPTIVE | {"adaptive_beta_1": "beta_1", "adaptive_beta_2": "beta_2"}
_MALICIOUS = {"malicious_clients": "num_malicious_nodes"}

RULES: Mapping[str, AggregationRule] = {
    "fedavg": AggregationRule("WeightedFedAvg", _WEIGHTING),
    "fedprox": AggregationRule("FedProx", _WEIGHTING | {"proximal_mu": "proximal_mu"}),
    "fedavgm": AggregationRule("FedAvgM", _WEIGHTING | _SERVER_STEP),
    "fedadagrad": AggregationRule("FedAdagrad", _ADAPTIVE),
    "fedadam": AggregationRule("FedAdam", _MOMENTS),
    "fedyogi": AggregationRule("FedYogi", _MOMENTS),
    "fedsgd": AggregationRule(
        "FedSGD",
        _WEIGHTING | _SERVER_STEP | {"fedsgd_batch_size": "gradient_batch"},
        unused=(
            *("local_epochs", "batch_size", "learning_rate", "learning_rate_schedule"),
            *("optimizer", "weight_decay"),
        ),
    ),
    "fedatt": AggregationRule("FedAtt", {"fedatt_step": "step"}),
    "qfedavg": AggregationRule(
        "QFedAvg", {"qfedavg_fairness": "q", "server_learning_rate": "client_learning_rate"}
    ),
    "fedbuff": AggregationRule(
        "FedBuff",
        _WEIGHTING
        | {
            "fedbuff_concurrency": "concurrency",
            "fedbuff_buffer_size": "buffer_size",
            "staleness_exponent": "staleness_exponent",
            "server_learning_rate": "server_learning_rate",
        },
        unused=("fraction_train",),
    ),
    "fedmedian": AggregationRule("FedMedian"),
    "fedtrimmedavg": AggregationRule(
        "FedTrimmedAvg",
        {"trim_fraction": "beta"},
        # With fewer updates, the class trims none.
        min_updates=lambda config: (
            math.ceil(1 / config.trim_fraction) if config.trim_fraction else 1
        ),
    ),
    "geometric-median": AggregationRule("GeometricMedian"),
    "krum": AggregationRule(
        "Krum", _MALICIOUS, min_updates=lambda config: 2 * config.malicious_clients + 3
    ),
    "multikrum": AggregationRule(
        "MultiKrum",
        _MALICIOUS | {"multikrum_selected": "num_nodes_to_select"},
        min_updates=lambda config: (
            config.malicious_clients
            + max(config.malicious_clients + 3, config.multikrum_selected + 2)
        ),
    ),
    "bulyan": AggregationRule(
        "Bulyan", _MALICIOUS, min_updates=lambda config: 4 * config.malicious_clients + 3
    ),
}

# The fields on which `AggregationRule.min_updates` may depend.
_MIN_UPDATES_FIELDS = ("malicious_clients", "multikrum_selected", "trim_fraction")


@dataclass(frozen=True)
class AggregationConfig(Section):
    """The rule by which the server combines replies, and which replies it refuses."""

    title: ClassVar[str] = "Aggregation"

    strategy: str = setting("fedavg", "rule that combines the replies of a round", choices=RULES)
    weighting: str = setting(
        "auto",
        "weight of a reply in an average: `examples`, its number of examples; `uniform`, the same "
        "for every client; `loss`, the number of examples times the training loss; `effective`, "
        "the effective number of examples over the classes; `auto`, `uniform` with privacy and "
        "`examples` without",
        choices=("auto", "examples", "uniform", "loss", "effective"),
    )
    server_learning_rate: float = setting(
        0.0,
        "step size of the server (1 / L for qfedavg); 0: the rule's own, which is 0.1 for fedsgd, "
        "fedadagrad and fedadam, 0.01 for fedyogi, and 1 for the others",
        minimum=0,
    )
    server_momentum: float = setting(
        0.0,
        "momentum of the server's steps, for example 0.9; 0: no momentum, which makes fedavgm the "
        "same as fedavg",
        minimum=0,
        maximum=0.9999,
    )
    adaptive_beta_1: float = setting(
        0.9, "decay rate of the server's first moment", minimum=0, maximum=0.9999
    )
    adaptive_beta_2: float = setting(
        0.99, "decay rate of the server's second moment", minimum=0, maximum=0.99999
    )
    adaptive_tau: float = setting(
        1e-3,
        "τ, added to the denominator of the server's adaptive step: the larger, the less adaptive",
        above=0,
    )
    proximal_mu: float = setting(
        0.01,
        "μ of the term (μ/2)·‖w − w_global‖² in the clients' loss; 0: no such term",
        minimum=0,
    )
    qfedavg_fairness: float = setting(
        0.1,
        "q: the larger, the more weight clients with a large loss have; 0: uniform weights",
        minimum=0,
        maximum=100,
    )
    fedatt_step: float = setting(
        1.0, "ε: step size from the global model towards the clients' models", above=0, maximum=10
    )
    fedsgd_batch_size: int = setting(
        0, "number of a client's examples in its gradient; 0: all its examples", minimum=0
    )
    fedbuff_concurrency: int = setting(
        10, "maximum number of clients that train at the same time", minimum=1
    )
    fedbuff_buffer_size: int = setting(
        5, "number of replies that the server collects for one step, which is one round", minimum=1
    )
    staleness_exponent: float = setting(
        0.5,
        "a: an update that is τ rounds late has the weight (1 + τ)^−a; 0: lateness does not matter",
        minimum=0,
        maximum=10,
    )
    trim_fraction: float = setting(
        0.2,
        "fraction of the clients that is left out at each end, for each parameter on its own",
        minimum=0,
        maximum=0.49,
    )
    malicious_clients: int = setting(
        0, "number of clients in a round that may send anything", minimum=0
    )
    multikrum_selected: int = setting(5, "number of clients whose updates are averaged", minimum=1)
    update_drop_norm: float = setting(
        0.0, "L2 norm above which an update is dropped; 0: no limit", minimum=0
    )
    update_clip_norm: float = setting(
        0.0, "L2 norm to which longer updates are scaled down; 0: no limit", minimum=0
    )

    @property
    def rule(self) -> AggregationRule:
        """The row of `RULES` for the configured strategy."""
        return RULES[self.strategy]

    def rule_settings(self, weighting: str) -> dict[str, ConfigValue]:
        """Return the keywords for the class of the rule; `weighting` is the one in effect.

        A server learning rate of 0 is left out: the class then uses its own default.
        """
        values = {**asdict(self), "weighting": weighting}
        settings = {keyword: values[name] for name, keyword in self.rule.keywords.items()}
        if not self.server_learning_rate and "server_learning_rate" in self.rule.keywords:
            del settings[self.rule.keywords["server_learning_rate"]]
        return settings

    @property
    def min_updates(self) -> int:
        """The number of updates that the rule needs in a round."""
        return self.rule.min_updates(self)

    @property
    def min_updates_settings(self) -> dict[str, ConfigValue]:
        """The settings, by key, that `min_updates` depends on with this rule."""
        names = [name for name in _MIN_UPDATES_FIELDS if name in self.rule.keywords]
        return {key_named(name): getattr(self, name) for name in names}
