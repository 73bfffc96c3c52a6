"""Run configuration: the only reader of Flower's flat ``run_config`` table.

Every key of ``[tool.flwr.app.config]`` is a field of one of the frozen dataclasses below, with
dashes for underscores. A field declares its default, what it means and what it may be; a value
outside that raises `UserError` with one line that names key, value and what is allowed.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

from fedattn_app.errors import UserError

ConfigValue: TypeAlias = bool | int | float | str


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


@dataclass(frozen=True)
class _Rule:
    """What a value may be: one of `choices`, or a number within the bounds."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf

    def allowed(self, kind: type) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = []
        if self.above > -math.inf:
            bounds.append(f"> {self.above}")
        if self.minimum > -math.inf:
            bounds.append(f">= {self.minimum}")
        if self.maximum < math.inf:
            bounds.append(f"<= {self.maximum}")
        name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        return " ".join([name, " and ".join(bounds)]).strip()

    def admits(self, value: ConfigValue) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return True
        within = self.above < value and self.minimum <= value <= self.maximum
        return within and math.isfinite(value)


def _setting(default: Any, help: str, **rule: Any) -> Any:
    """Declare one run-config key; the keywords are the fields of `_Rule`."""
    return field(default=default, metadata={"rule": _Rule(help, **rule)})


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _key(entry: Field[Any]) -> str:
    return entry.name.replace("_", "-")


@dataclass(frozen=True)
class _Section:
    """Checks every field of a frozen dataclass against its rule when it is made."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            rule: _Rule = entry.metadata["rule"]
            kind: type = type(entry.default)
            value = getattr(self, entry.name)
            if kind is float and type(value) is int and abs(value) < 2**53:
                value = float(value)
                object.__setattr__(self, entry.name, value)
            if type(value) is not kind or not rule.admits(cast(ConfigValue, value)):
                shown = value if isinstance(value, (int, float)) else repr(value)
                raise UserError(f"{_key(entry)} = {shown}: must be {rule.allowed(kind)}")


@dataclass(frozen=True)
class FederationConfig(_Section):
    """Rounds, sampling, and the choices of scope, rule and privacy."""

    num_rounds: int = _setting(15, "rounds of training", minimum=1)
    fraction_train: float = _setting(
        1.0, "share of the clients that train in a round", above=0, maximum=1
    )
    fraction_evaluate: float = _setting(
        1.0, "share of the clients that evaluate after a round; 0 for none", minimum=0, maximum=1
    )
    min_clients: int = _setting(
        0, "clients to wait for at the start; 0: as many as the nodes' `num-partitions`", minimum=0
    )
    round_timeout: float = _setting(
        3600.0, "seconds to wait for the replies of one round", above=0, maximum=43200
    )
    seed: int = _setting(1, "start of every random choice of a run", minimum=0, maximum=2**32 - 1)
    strategy: str = _setting("fedavg", "rule that combines the replies", choices=("fedavg",))
    weighting: str = _setting(
        "examples", "weight of a reply in the average", choices=("examples", "uniform")
    )
    shared: str = _setting(
        "attention+head",
        "what travels: `all`, `attention`, `attention+head`, `head`, the adapters `lora`, "
        "`lora-a` or `lora-b`, or a regex over parameter names",
    )
    local: str = _setting(
        "frozen",
        "what becomes of the rest: kept at its start, or trained and kept on the node "
        "(with `lora-a` always so)",
        choices=("frozen", "personal"),
    )
    privacy: str = _setting("none", "protection of an update", choices=("none",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared == "lora-a":  # A alone changes nothing while B is frozen at zero
            object.__setattr__(self, "local", "personal")
        if self.local == "personal" and self.shared in ("all", "lora", "lora-b"):
            raise UserError(
                f'local = "personal": shared = "{self.shared}" leaves nothing personal; '
                'share less, for example shared = "attention"'
            )

    @property
    def uses_lora(self) -> bool:
        """Whether adapters are trained in place of the projections that they adapt."""
        return self.shared in LORA_SCOPES


@dataclass(frozen=True)
class ModelConfig(_Section):
    """The Transformer and its tokenizer. Shapes of 0 are taken from the named size."""

    model: str = _setting(
        "small",
        "size of the built-in Transformer, `tiny`, `small` or `base`; or a pretrained one: "
        "its hub id or its folder",
    )
    layers: int = _setting(0, "blocks; 0: as the size says", minimum=0, maximum=64)
    width: int = _setting(0, "features per token; 0: as the size says", minimum=0, maximum=8192)
    heads: int = _setting(0, "attention heads; 0: as the size says", minimum=0, maximum=256)
    feedforward: int = _setting(
        0, "units of the feed-forward block; 0: as the size says", minimum=0, maximum=65536
    )
    dropout: float = _setting(0.0, "dropout probability in training", minimum=0, maximum=0.9)
    vocabulary: int = _setting(8192, "hash buckets of the tokenizer", minimum=8, maximum=2**24)
    max_length: int = _setting(64, "tokens kept of a text", minimum=1, maximum=8192)

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
class LoraConfig(_Section):
    """Low-rank adapters of the attention projections, for the scopes of `LORA_SCOPES`."""

    lora_rank: int = _setting(8, "rank of the LoRA adapters", minimum=1, maximum=1024)
    lora_alpha: int = _setting(16, "a LoRA adapter is scaled by alpha / rank", minimum=1)
    lora_targets: str = _setting(
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
        return tuple(dict.fromkeys(_names(self.lora_targets)))


@dataclass(frozen=True)
class DataConfig(_Section):
    """Where the examples come from and how a simulation splits them over its clients."""

    dataset: str = _setting(
        "triage", "`triage` (built in), `file` (with `data-path`), or the id of a hub data set"
    )
    data_path: str = _setting(
        "", "CSV, JSON Lines or Parquet file, or a folder with train.* and test.*"
    )
    text_column: str = _setting("text", "column that holds the text")
    label_column: str = _setting("label", "column that holds the label")
    labels: str = _setting(
        "", "the label names, comma-separated; empty: those that the data set has"
    )
    partitioner: str = _setting(
        "auto",
        "how a simulation splits the data; `auto`: `natural` for triage, else `iid`",
        choices=("auto", "iid", "dirichlet", "pathological", "natural", "linear", "square"),
    )
    partition_by: str = _setting("", "column of the `natural` partitioner")
    alpha: float = _setting(0.5, "concentration of the `dirichlet` partitioner", above=0)
    classes_per_client: int = _setting(2, "labels of a `pathological` client", minimum=1)
    validation_fraction: float = _setting(
        0.1, "share of its examples that a client holds out", minimum=0, maximum=0.9
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names given by `labels`, or none when they come from the data."""
        return _names(self.labels)


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """One client's local training in one round."""

    local_epochs: int = _setting(1, "passes over a client's examples in a round", minimum=1)
    batch_size: int = _setting(16, "examples per step", minimum=1, maximum=2**31 - 1)
    learning_rate: float = _setting(3e-3, "step size of the local optimizer", above=0)
    optimizer: str = _setting("adamw", "local optimizer", choices=("adamw", "adam", "sgd"))
    weight_decay: float = _setting(0.01, "weight decay of the local optimizer", minimum=0)


@dataclass(frozen=True)
class OutputConfig(_Section):
    """Where a run's folder goes, and the folder that a run carries on from."""

    output_dir: str = _setting("", "folder for the results; empty: a new one under runs/")
    resume_from: str = _setting("", "folder of a run to carry on from its checkpoint")


@dataclass(frozen=True)
class Config:
    """Every setting of one run."""

    federation: FederationConfig = FederationConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

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
                    entry.name: run_config[_key(entry)]
                    for entry in fields(section)
                    if _key(entry) in run_config
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


SECTIONS: Mapping[str, type[_Section]] = {
    "federation": FederationConfig,
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
    _key(entry): Setting(
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


_PAIR = re.compile(r"""\s*([^\s=]+)\s*=\s*('[^']*'|"[^"]*"|\S+)\s*""")


def parse_run_config(items: Iterable[str]) -> dict[str, ConfigValue]:
    """Read ``--run-config`` arguments, each ``'key=value key=value'`` or the path of a TOML file.

    Later items win. Raises `UserError` for a file that cannot be read and for text that is
    neither.
    """
    merged: dict[str, Any] = {}
    for item in items:
        merged.update(_read_toml(Path(item)) if item.endswith(".toml") else _read_pairs(item))
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from None
    if table.pop("versions", None):  # a run's own config.toml, given again
        table.pop("output-dir", None)
        table.pop("resume-from", None)
    return table


def _read_pairs(text: str) -> dict[str, Any]:
    pairs: Sequence[tuple[str, str]] = _PAIR.findall(text)
    if _PAIR.sub("", text):
        raise UserError(f"{text!r}: must be key=value pairs or the path of a .toml file")
    values: dict[str, Any] = {}
    for key, value in pairs:
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise UserError(f"{key} = {value}: not a TOML value; put text in quotes") from None
    return values


def settings_table() -> str:
    """Return the Markdown table of all run-config keys that the README shows."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, setting in SETTINGS.items():
        default = json.dumps(setting.default)
        rows.append(f"| `{key}` | `{default}` | {setting.allowed} | {setting.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(settings_table())
