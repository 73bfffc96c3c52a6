"""The rules for combining replies by name, and the run-config keys that each of them has.

A rule is a class of `strategies` and one line of `RULES`. It is known by name only, since clients
read this too, who need no strategy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fedattn_app.config.schema import Section, setting
from fedattn_app.errors import UserError


@dataclass(frozen=True)
class AggregationRule:
    """A class of `strategies`, and which settings give which of its keywords.

    A round needs as many updates as `least` says, from the settings; with fewer the model stays.
    """

    name: str
    keywords: Mapping[str, str] = field(default_factory=dict)
    least: Callable[["AggregationConfig"], int] = lambda config: 1


_STEP = {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"}
_MEAN = {"weighting": "weighting"}
_ADAPTIVE = _MEAN | {"server_learning_rate": "eta", "tau": "tau"}
_MOMENTS = _ADAPTIVE | {"beta_1": "beta_1", "beta_2": "beta_2"}
_KRUM = {"malicious": "num_malicious_nodes"}
_BUFFER = {name: name for name in ("concurrency", "buffer_size", "staleness_exponent")}

RULES: Mapping[str, AggregationRule] = {
    "fedavg": AggregationRule("WeightedFedAvg", _MEAN),
    "fedprox": AggregationRule("FedProx", _MEAN | {"proximal_mu": "proximal_mu"}),
    "fedavgm": AggregationRule("FedAvgM", _MEAN | _STEP),
    "fedadagrad": AggregationRule("FedAdagrad", _ADAPTIVE),
    "fedadam": AggregationRule("FedAdam", _MOMENTS),
    "fedyogi": AggregationRule("FedYogi", _MOMENTS),
    "fedsgd": AggregationRule("FedSGD", _MEAN | _STEP | {"gradient_batch": "gradient_batch"}),
    "fedatt": AggregationRule("FedAtt", {"attentive_step": "step"}),
    "qfedavg": AggregationRule(
        "QFedAvg", {"fairness": "q", "server_learning_rate": "client_learning_rate"}
    ),
    "fedbuff": AggregationRule(
        "FedBuff", _MEAN | _BUFFER | {"server_learning_rate": "server_learning_rate"}
    ),
    "fedmedian": AggregationRule("FedMedian"),
    "fedtrimmedavg": AggregationRule(
        "FedTrimmedAvg",
        {"trimmed": "beta"},
        # With fewer, none is trimmed.
        least=lambda config: math.ceil(1 / config.trimmed) if config.trimmed else 1,
    ),
    "geometric-median": AggregationRule("GeometricMedian"),
    "krum": AggregationRule("Krum", _KRUM, least=lambda config: 2 * config.malicious + 3),
    "multikrum": AggregationRule(
        "MultiKrum",
        _KRUM | {"selected": "num_nodes_to_select"},
        least=lambda config: config.malicious + max(config.malicious + 3, config.selected + 2),
    ),
    "bulyan": AggregationRule("Bulyan", _KRUM, least=lambda config: 4 * config.malicious + 3),
}


@dataclass(frozen=True)
class AggregationConfig(Section):
    """How replies are combined, and which are refused."""

    strategy: str = setting("fedavg", "rule that combines the replies", choices=tuple(RULES))
    weighting: str = setting(
        "auto",
        "weight of a reply in an average: its number of examples, the same for all, the examples "
        "times the training loss, or the effective number of examples per class; `auto`: "
        "`examples`, or with privacy `uniform`",
        choices=("auto", "examples", "uniform", "loss", "effective"),
    )
    server_learning_rate: float = setting(
        0.0,
        "step size of the server, 1 / L of qfedavg; 0: as the rule has it (1; 0.1 for fedsgd, "
        "fedadagrad and fedadam, 0.01 for fedyogi)",
        minimum=0,
    )
    server_momentum: float = setting(
        0.0,
        "momentum of the server's steps, for example 0.9; without, fedavgm is fedavg",
        minimum=0,
        maximum=0.9999,
    )
    beta_1: float = setting(0.9, "decay of the first moment", minimum=0, maximum=0.9999)
    beta_2: float = setting(0.99, "decay of the second moment", minimum=0, maximum=0.99999)
    tau: float = setting(1e-3, "bounds the steps of adaptive rules", above=0)
    proximal_mu: float = setting(
        0.01, "μ of the clients' proximal term (μ/2)·‖w − w_global‖²", minimum=0
    )
    fairness: float = setting(
        0.1, "q: how much more clients with a large loss count", minimum=0, maximum=100
    )
    attentive_step: float = setting(1.0, "ε: step towards the clients", above=0, maximum=10)
    gradient_batch: int = setting(
        0, "examples of a client that its gradient is over; 0: all", minimum=0
    )
    concurrency: int = setting(10, "clients at work at any time", minimum=1)
    buffer_size: int = setting(5, "replies for one step of the server, a round", minimum=1)
    staleness_exponent: float = setting(
        0.5, "a: an update that is τ rounds late counts (1 + τ)^−a", minimum=0, maximum=10
    )
    trimmed: float = setting(
        0.2, "share of the clients left out at each end, for each number", minimum=0, maximum=0.49
    )
    malicious: int = setting(0, "clients of a round that may send anything", minimum=0)
    selected: int = setting(5, "clients whose updates are averaged", minimum=1)
    drop_norm: float = setting(
        0.0, "L2 norm above which an update is dropped; 0: none is", minimum=0
    )
    clip_norm: float = setting(0.0, "L2 norm to which an update is clipped; 0: none is", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unowned(
            "strategy", {entry.name: owners_of(entry.name) for entry in fields(self)}
        )
        if self.strategy == "fedbuff" and self.buffer_size > self.concurrency:
            raise UserError(
                f"buffer-size = {self.buffer_size}: must be at most concurrency = "
                f"{self.concurrency}"
            )

    @property
    def rule(self) -> AggregationRule:
        """The rule that `strategy` names."""
        return RULES[self.strategy]

    def rule_settings(self, weighting: str) -> dict[str, Any]:
        """Return the keywords of the rule's class; one that is left out has the class's default.

        `weighting` is the weighting in effect.
        """
        values = {**asdict(self), "weighting": weighting}
        given = {keyword: values[name] for name, keyword in self.rule.keywords.items()}
        if not self.server_learning_rate and "server_learning_rate" in self.rule.keywords:
            del given[self.rule.keywords["server_learning_rate"]]
        return given

    @property
    def size_settings(self) -> dict[str, float]:
        """The settings, by key, that decide how many updates the rule needs."""
        names = ("malicious", "selected", "trimmed")
        return {name: getattr(self, name) for name in names if name in self.rule.keywords}


def owners_of(name: str) -> list[str]:
    """Return the rules that a setting belongs to; none for one that all have."""
    return [rule for rule, its in RULES.items() if name in its.keywords]
