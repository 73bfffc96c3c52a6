"""Run configuration: the only reader of Flower's flat ``run_config`` table.

Every key of ``[tool.flwr.app.config]`` is a field of one of the sections, which are declared here
and in the modules named `…_config`. What one section cannot see, such as a protection that another
setting undoes, `Config` refuses.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from fedattn_app.config.aggregation import RULES, AggregationConfig, owners_of
from fedattn_app.config.data import DataConfig
from fedattn_app.config.model import LORA_SCOPES, LoraConfig, ModelConfig
from fedattn_app.config.privacy import PrivacyConfig
from fedattn_app.config.schema import ConfigValue, Section, key_of, setting
from fedattn_app.config.transport import TransportConfig
from fedattn_app.errors import UserError

WARM_ALREADY = ("all", *LORA_SCOPES)  # nothing is left to warm up, or no one could train it


@dataclass(frozen=True)
class FederationConfig(Section):
    """Rounds, sampling, and the choice of scope."""

    num_rounds: int = setting(15, "rounds of training, at most", minimum=1)
    warmup_rounds: int = setting(
        0, "rounds that share and train all parameters, before those that share less", minimum=0
    )
    patience: int = setting(
        0, "rounds without a better score after which a run ends; 0: it does not", minimum=0
    )
    min_delta: float = setting(0.0, "how much better a better score must be", minimum=0)
    score: str = setting(
        "accuracy",
        "which score `patience` and the best model go by",
        choices=("accuracy", "loss", "macro-f1"),
    )
    fraction_train: float = setting(
        1.0, "share of the clients that train in a round", above=0, maximum=1
    )
    fraction_evaluate: float = setting(
        1.0, "share of the clients that evaluate after a round; 0 for none", minimum=0, maximum=1
    )
    min_clients: int = setting(
        0,
        "clients to wait for before a round; 0: before the first, as many as the nodes' "
        "`num-partitions`, then one",
        minimum=0,
    )
    round_timeout: float = setting(
        3600.0, "seconds to wait for the replies of one round", above=0, maximum=43200
    )
    seed: int = setting(1, "start of every random choice of a run", minimum=0, maximum=2**32 - 1)
    shared: str = setting(
        "attention+head",
        "what travels: `all`, `attention`, `attention+head`, `head`, `all-but-attention`, the "
        "adapters `lora`, `lora-a` or `lora-b` (with the extra `pretrained`), or a regex over "
        "parameter names",
    )
    local: str = setting(
        "frozen",
        "what becomes of the rest: kept at its start, or trained and kept on the node "
        "(with `lora-a` always so)",
        choices=("frozen", "personal"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared == "lora-a":  # A alone changes nothing while B is frozen at zero
            object.__setattr__(self, "local", "personal")
        if self.local == "personal" and self.shared in ("all", "lora", "lora-b"):
            raise UserError(
                f'local = "personal": shared = "{self.shared}" leaves nothing personal; '
                'share less, for example shared = "attention"'
            )
        if self.warmup_rounds and (self.local == "personal" or self.shared in WARM_ALREADY):
            raise UserError(
                f"warmup-rounds = {self.warmup_rounds}: is for parameters that are frozen later, "
                f'not with shared = "{self.shared}" and local = "{self.local}"'
            )
        if self.min_delta and not self.patience:
            raise UserError(f"min-delta = {self.min_delta:g}: does nothing with patience = 0")

    @property
    def while_warming_up(self) -> Self:
        """The settings of the rounds that share everything."""
        return replace(self, shared="all", warmup_rounds=0)

    @property
    def uses_lora(self) -> bool:
        """Whether adapters are trained in place of the projections that they adapt."""
        return self.shared in LORA_SCOPES


@dataclass(frozen=True)
class TrainingConfig(Section):
    """One client's local training in one round."""

    local_epochs: int = setting(1, "passes over a client's examples in a round", minimum=1)
    batch_size: int = setting(16, "examples per step", minimum=1, maximum=2**31 - 1)
    physical_batch_size: int = setting(
        16, "examples per pass through the model, of similar length; bounds the memory", minimum=1
    )
    learning_rate: float = setting(3e-3, "step size of the local optimizer", above=0)
    learning_rate_schedule: str = setting(
        "constant",
        "`learning-rate` over the rounds: the same, or falling to 0 along half a cosine",
        choices=("constant", "cosine"),
    )
    optimizer: str = setting("adamw", "local optimizer", choices=("adamw", "adam", "sgd"))
    weight_decay: float = setting(0.01, "weight decay of the local optimizer", minimum=0)

    def in_round(self, server_round: int, num_rounds: int) -> Self:
        """Return the settings for one round, counted from 1, with its learning rate.

        The cosine takes η·(1 + cos(π·(t − 1) / T)) / 2 in round t of T.
        """
        if self.learning_rate_schedule == "constant":
            return self
        done = min(max(server_round - 1, 0), num_rounds - 1) / num_rounds
        factor = (1 + math.cos(math.pi * done)) / 2
        return replace(self, learning_rate=self.learning_rate * factor)


@dataclass(frozen=True)
class OutputConfig(Section):
    """Where a run's folder goes, and the folder that a run carries on from."""

    output_dir: str = setting("", "folder for the results; empty: a new one under runs/")
    resume_from: str = setting("", "folder of a run to carry on from its checkpoint")


# Rules that need what a kind of privacy does not let out, or that its accounting does not cover.
_UNIFORM_ONLY = "whose accounting knows the plain average only"
NOT_WITH_PRIVACY: Mapping[str, Mapping[str, str]] = {
    "dp-sgd": {
        "fedsgd": "which protects updates and not gradients",
        "qfedavg": "which tells no training loss",
    },
    "client-dp": {name: _UNIFORM_ONLY for name in RULES if name != "fedavg"},
}
# Settings of all rules but these.
UNUSED: Mapping[str, tuple[str, ...]] = {
    "fedbuff": ("fraction_train",),
    "fedsgd": (
        *("local_epochs", "batch_size", "learning_rate", "learning_rate_schedule"),
        *("optimizer", "weight_decay"),
    ),
}


@dataclass(frozen=True)
class Config:
    """Every setting of one run."""

    federation: FederationConfig = field(default_factory=FederationConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        equal = self.privacy.privacy != "none" and not self.privacy.num_examples_public
        if self.aggregation.weighting not in ("auto", "uniform") and (
            equal or (self.aggregation.weighting != "examples" and self.privacy.privacy != "none")
        ):
            hint = ", or num-examples-public = true" * (
                self.privacy.privacy == "dp-sgd" and self.aggregation.weighting == "examples"
            )
            raise UserError(
                f'weighting = "{self.aggregation.weighting}": with privacy = "{self.privacy.privacy}" '
                f'every reply must weigh the same; give weighting = "uniform"{hint}'
            )
        refused = NOT_WITH_PRIVACY.get(self.privacy.privacy, {}).get(self.aggregation.strategy)
        if refused:
            raise UserError(
                f'strategy = "{self.aggregation.strategy}": not with privacy = "{self.privacy.privacy}", '
                f"{refused}"
            )
        self._refuse_what_does_nothing()
        if self.aggregation.strategy == "fedbuff" and self.federation.warmup_rounds:
            raise UserError(
                f"warmup-rounds = {self.federation.warmup_rounds}: not with strategy = "
                '"fedbuff", whose clients may still be at work on all when less is shared'
            )
        if self.aggregation.strategy == "fedsgd" and self.federation.local == "personal":
            raise UserError(
                'local = "personal": with strategy = "fedsgd" no client trains anything of its own'
            )
        if self.privacy.privacy == "dp-sgd" and self.model.dropout:
            raise UserError(
                f'dropout = {self.model.dropout:g}: must be 0 with privacy = "dp-sgd", or what one '
                "example adds would depend on the others"
            )
        if self.privacy.evaluate_epsilon and not self.federation.fraction_evaluate:
            raise UserError(
                f"evaluate-epsilon = {self.privacy.evaluate_epsilon:g}: does nothing with "
                "fraction-evaluate = 0"
            )

    def _refuse_what_does_nothing(self) -> None:
        for section in (self.federation, self.training):
            for entry in fields(section):
                value = getattr(section, entry.name)
                if value != entry.default and entry.name in UNUSED.get(
                    self.aggregation.strategy, ()
                ):
                    raise UserError(
                        f"{key_of(entry)} = {value}: does nothing with strategy = "
                        f'"{self.aggregation.strategy}"'
                    )

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Self:
        """Build the configuration from flat kebab-case keys; absent keys keep their default.

        Raises `UserError` for a key that does not exist (with the nearest that does), and for a
        value of the wrong type or outside its range.
        """
        unknown = [key for key in run_config if key not in SETTINGS]
        if unknown:
            raise UserError(_unknown_key(unknown[0]))
        sections: dict[str, Any] = {
            name: section(
                **{
                    entry.name: run_config[key_of(entry)]
                    for entry in fields(section)
                    if key_of(entry) in run_config
                }
            )
            for name, section in SECTIONS.items()
        }
        return cls(**sections)

    def to_run_config(self) -> dict[str, ConfigValue]:
        """Flatten to kebab-case keys: the inverse of `from_run_config`."""
        return {
            name.replace("_", "-"): value
            for section in asdict(self).values()
            for name, value in section.items()
        }


SECTIONS: Mapping[str, type[Section]] = {
    "federation": FederationConfig,
    "aggregation": AggregationConfig,
    "privacy": PrivacyConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "transport": TransportConfig,
    "output": OutputConfig,
}


@dataclass(frozen=True)
class Setting:
    """One run-config key as documentation shows it."""

    default: ConfigValue
    allowed: str
    help: str


SETTINGS: Mapping[str, Setting] = {
    key_of(entry): Setting(
        getattr(section, entry.name),
        entry.metadata["rule"].allowed(type(entry.default)),
        entry.metadata["rule"].help,
    )
    for section in SECTIONS.values()
    for entry in fields(section)
}


def _unknown_key(key: str) -> str:
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(SETTINGS)}"
    return f"{key}: no such run-config key{hint}"


def settings_table() -> str:
    """Return the Markdown table of all run-config keys that the README shows."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, its in SETTINGS.items():
        owners = owners_of(key.replace("-", "_"))
        meaning = f"{', '.join(owners)}: {its.help}" if owners else its.help
        rows.append(f"| `{key}` | `{json.dumps(its.default)}` | {its.allowed} | {meaning} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(settings_table())
