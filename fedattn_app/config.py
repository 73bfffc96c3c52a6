"""Run configuration: the only reader of Flower's flat ``run_config`` table.

Every key of ``[tool.flwr.app.config]`` is a field of one of the sections below. What one section
cannot see, such as a protection that another setting undoes, `Config` refuses.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from fedattn_app.errors import UserError
from fedattn_app.rule_config import RULES, RuleConfig, owners_of
from fedattn_app.settings import ConfigValue, Section, key_of, names_in, setting


@dataclass(frozen=True)
class ModelSize:
    """Encoder shape: `layers` blocks of `width` features, `heads` heads, `feedforward` units."""

    layers: int
    width: int
    heads: int
    feedforward: int


MODEL_SIZES: Mapping[str, ModelSize] = {
    "tiny": ModelSize(layers=1, width=64, heads=2, feedforward=256),
    "small": ModelSize(layers=2, width=128, heads=4, feedforward=512),
    "base": ModelSize(layers=4, width=256, heads=8, feedforward=1024),
}

ATTENTION_ROLES = ("query", "key", "value", "output")
LORA_SCOPES = ("lora", "lora-a", "lora-b")
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
        "adapters `lora`, `lora-a` or `lora-b`, or a regex over parameter names",
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
class PrivacyConfig(Section):
    """Differential privacy: of an example on its node, or of a client on the server."""

    privacy: str = setting(
        "none",
        "protection of an update: `dp-sgd` on the node, for each of its examples; `client-dp` on "
        "the server, for each client",
        choices=("none", "dp-sgd", "client-dp"),
    )
    target_epsilon: float = setting(
        0.0, "ε that may be spent; 0: no limit, `noise-multiplier` decides", minimum=0
    )
    target_delta: float = setting(
        1e-5, "δ of the guarantee, below 1 / number of examples", above=0, maximum=0.999
    )
    noise_multiplier: float = setting(
        0.0, "noise per clipping norm; 0: worked out from `target-epsilon`", minimum=0
    )
    max_grad_norm: float = setting(
        1.0, "L2 norm to which `dp-sgd` clips the gradient of an example", above=0
    )
    max_update_norm: float = setting(
        1.0, "L2 norm to which `client-dp` clips the update of a client", above=0
    )
    accountant: str = setting("rdp", "how `dp-sgd` adds ε up", choices=("rdp", "prv"))
    evaluate_epsilon: float = setting(
        0.0,
        "ε beside `target-epsilon` for noisy scores on what clients hold out; 0: with `dp-sgd` "
        "they do not evaluate",
        minimum=0,
    )
    num_examples_public: bool = setting(
        False, "with `dp-sgd`, clients may tell how many examples they have"
    )
    reproducible_noise: bool = setting(
        False, "noise from `seed`, for simulations only: it protects nobody"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in fields(self):
            value = getattr(self, entry.name)
            owners = _PRIVACY_OF.get(entry.name, ("dp-sgd", "client-dp"))
            if self.privacy not in owners and entry.name != "privacy" and value != entry.default:
                needed = " or ".join(f'"{owner}"' for owner in owners)
                raise UserError(
                    f"{key_of(entry)} = {value}: does nothing with privacy = "
                    f'"{self.privacy}"; it needs privacy = {needed}'
                )
        if self.privacy != "none" and not self.target_epsilon and not self.noise_multiplier:
            raise UserError(
                f'privacy = "{self.privacy}": needs target-epsilon or noise-multiplier above 0'
            )


# Settings that only one kind of privacy has.
_PRIVACY_OF = {
    "max_grad_norm": ("dp-sgd",),
    "max_update_norm": ("client-dp",),
    "accountant": ("dp-sgd",),
    "evaluate_epsilon": ("dp-sgd",),
    "num_examples_public": ("dp-sgd",),
}


@dataclass(frozen=True)
class ModelConfig(Section):
    """The Transformer and its tokenizer. Shapes of 0 are taken from the named size."""

    model: str = setting(
        "small",
        "size of the built-in Transformer, `tiny`, `small` or `base`; or a pretrained one: "
        "its hub id or its folder",
    )
    layers: int = setting(0, "blocks; 0: as the size says", minimum=0, maximum=64)
    width: int = setting(0, "features per token; 0: as the size says", minimum=0, maximum=8192)
    heads: int = setting(0, "attention heads; 0: as the size says", minimum=0, maximum=256)
    feedforward: int = setting(
        0, "units of the feed-forward block; 0: as the size says", minimum=0, maximum=65536
    )
    dropout: float = setting(0.0, "dropout probability in training", minimum=0, maximum=0.9)
    vocabulary: int = setting(8192, "hash buckets of the tokenizer", minimum=8, maximum=2**24)
    max_length: int = setting(64, "tokens kept of a text", minimum=1, maximum=8192)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained:
            self._refuse_shapes()
            return
        size = self.size
        if size.width % (2 * size.heads):
            raise UserError(
                f"width = {size.width}: must be a multiple of 2 × heads = {2 * size.heads}"
            )

    def _refuse_shapes(self) -> None:
        if not self.model.strip():
            raise UserError(f"model = {self.model!r}: must be {SETTINGS['model'].help}")
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name in (*(entry.name for entry in fields(ModelSize)), "vocabulary"):
            value = getattr(self, name)
            if value != defaults[name]:
                raise UserError(
                    f"{name} = {value}: belongs to the built-in model, "
                    f"model = {self.model!r} has its own"
                )

    @property
    def pretrained(self) -> bool:
        """Whether the model is loaded through transformers."""
        return self.model not in MODEL_SIZES

    @property
    def size(self) -> ModelSize:
        """The built-in model's shape: the named size with every explicit key that is not 0."""
        explicit = {
            entry.name: getattr(self, entry.name) or getattr(MODEL_SIZES[self.model], entry.name)
            for entry in fields(ModelSize)
        }
        return ModelSize(**explicit)


@dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters of the attention projections, for the scopes of `LORA_SCOPES`."""

    lora_rank: int = setting(8, "rank of the LoRA adapters", minimum=1, maximum=1024)
    lora_alpha: int = setting(16, "a LoRA adapter is scaled by alpha / rank", minimum=1)
    lora_targets: str = setting(
        ",".join(ATTENTION_ROLES), "projections that get a LoRA adapter, comma-separated"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.roles or not set(self.roles) <= set(ATTENTION_ROLES):
            raise UserError(
                f"lora-targets = {self.lora_targets!r}: must be some of "
                f"{', '.join(ATTENTION_ROLES)}, comma-separated"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """The targets, without repetition."""
        return tuple(dict.fromkeys(names_in(self.lora_targets)))


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the examples come from and how a simulation splits them over its clients."""

    dataset: str = setting(
        "triage", "`triage` (built in), `file` (with `data-path`), or the id of a hub data set"
    )
    data_path: str = setting(
        "", "CSV, JSON Lines or Parquet file, or a folder with train.* and test.*"
    )
    text_column: str = setting("text", "column that holds the text")
    label_column: str = setting("label", "column that holds the label")
    labels: str = setting(
        "", "the label names, comma-separated; empty: those that the data set has"
    )
    partitioner: str = setting(
        "auto",
        "how a simulation splits the data; `auto`: `natural` for triage, else `iid`",
        choices=(
            "auto",
            "iid",
            "dirichlet",
            "pathological",
            "natural",
            "linear",
            "square",
            "label-shares",
        ),
    )
    partition_by: str = setting("", "column of the `natural` partitioner")
    alpha: float = setting(0.5, "concentration of the `dirichlet` partitioner", above=0)
    classes_per_client: int = setting(2, "labels of a `pathological` client", minimum=1)
    label_shares: str = setting(
        "50/50, 30/70, 20/80",
        "for each `label-shares` client the shares of the labels in per cent, comma-separated",
    )
    examples_per_client: int = setting(
        100, "examples of a `label-shares` client, held out ones included", minimum=1
    )
    validation_fraction: float = setting(
        0.1, "share of its examples that a client holds out", minimum=0, maximum=0.9
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partitioner == "label-shares":
            self._check_shares()
        if self.partitioner == "natural" and not self.partition_by and self.dataset != "triage":
            raise UserError(
                'partition-by = "": partitioner = "natural" needs the name of a column here'
            )
        twice = [name for name in self.label_names if self.label_names.count(name) > 1]
        if twice:
            raise UserError(f"labels = {self.labels!r}: names {twice[0]!r} twice")
        if not self.dataset:
            raise UserError('dataset = "": must be triage, file, or the id of a hub data set')
        if self.data_path and self.dataset != "file":
            raise UserError(
                f'data-path = {self.data_path!r}: is read with dataset = "file" only, '
                f"not with dataset = {self.dataset!r}"
            )

    def _check_shares(self) -> None:
        for shares in self.shares_per_client or [()]:
            if not shares or abs(sum(shares) - 100) > 1e-6 or min(shares) < 0:
                raise UserError(
                    f"label-shares = {self.label_shares!r}: must give each client shares of the "
                    "labels that sum to 100, such as 50/50, 20/80"
                )

    @property
    def shares_per_client(self) -> list[tuple[float, ...]]:
        """For each `label-shares` client the shares in per cent; none where they are no numbers."""
        try:
            return [tuple(map(float, of.split("/"))) for of in names_in(self.label_shares)]
        except ValueError:
            return []

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names given by `labels`, or none when they come from the data."""
        return names_in(self.labels)


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

    federation: FederationConfig = FederationConfig()
    rule: RuleConfig = field(default_factory=RuleConfig)
    privacy: PrivacyConfig = PrivacyConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

    def __post_init__(self) -> None:
        equal = self.privacy.privacy != "none" and not self.privacy.num_examples_public
        if self.rule.weighting not in ("auto", "uniform") and (
            equal or (self.rule.weighting != "examples" and self.privacy.privacy != "none")
        ):
            hint = ", or num-examples-public = true" * (
                self.privacy.privacy == "dp-sgd" and self.rule.weighting == "examples"
            )
            raise UserError(
                f'weighting = "{self.rule.weighting}": with privacy = "{self.privacy.privacy}" '
                f'every reply must weigh the same; give weighting = "uniform"{hint}'
            )
        refused = NOT_WITH_PRIVACY.get(self.privacy.privacy, {}).get(self.rule.strategy)
        if refused:
            raise UserError(
                f'strategy = "{self.rule.strategy}": not with privacy = "{self.privacy.privacy}", '
                f"{refused}"
            )
        self._refuse_what_does_nothing()
        if self.rule.strategy == "fedbuff" and self.federation.warmup_rounds:
            raise UserError(
                f"warmup-rounds = {self.federation.warmup_rounds}: not with strategy = "
                '"fedbuff", whose clients may still be at work on all when less is shared'
            )
        if self.rule.strategy == "fedsgd" and self.federation.local == "personal":
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

    @property
    def weighting(self) -> str:
        """The weighting in effect."""
        if self.rule.weighting != "auto":
            return self.rule.weighting
        return "examples" if self.privacy.privacy == "none" else "uniform"

    def _refuse_what_does_nothing(self) -> None:
        for section in (self.federation, self.training):
            for entry in fields(section):
                value = getattr(section, entry.name)
                if value != entry.default and entry.name in UNUSED.get(self.rule.strategy, ()):
                    raise UserError(
                        f"{key_of(entry)} = {value}: does nothing with strategy = "
                        f'"{self.rule.strategy}"'
                    )

    @property
    def rule_settings(self) -> Mapping[str, Any]:
        """The keywords of the rule's class; those that the class decides are left out."""
        values = {**asdict(self.rule), "weighting": self.weighting}
        chosen = self.rule.rule
        given = {keyword: values[name] for name, keyword in chosen.keywords.items()}
        if not self.rule.server_learning_rate and "server_learning_rate" in chosen.keywords:
            del given[chosen.keywords["server_learning_rate"]]
        return given

    @property
    def fraction_evaluate(self) -> float:
        """The share of the clients that evaluate: none where that would tell of private data."""
        if self.privacy.privacy == "dp-sgd" and not self.privacy.evaluate_epsilon:
            return 0.0
        return self.federation.fraction_evaluate

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
    "rule": RuleConfig,
    "privacy": PrivacyConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "training": TrainingConfig,
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
