"""`Config`, all settings of a run: the only reader of Flower's flat ``run_config`` table.

Every key of ``[tool.flwr.app.config]`` is a field of one of the sections. Each section is in a
module of its own.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, cast

from fedattn_app.config.aggregation import AggregationConfig
from fedattn_app.config.combinations import refuse_combinations, refuse_unused
from fedattn_app.config.data import DataConfig
from fedattn_app.config.federation import FederationConfig
from fedattn_app.config.model import LoraConfig, ModelConfig
from fedattn_app.config.output import OutputConfig
from fedattn_app.config.privacy import PrivacyConfig
from fedattn_app.config.schema import (
    ConfigValue,
    Constraint,
    Section,
    as_toml,
    constraint_of,
    key_of,
)
from fedattn_app.config.training import TrainingConfig
from fedattn_app.config.transport import TransportConfig
from fedattn_app.errors import UserError

SECTIONS: Mapping[str, type[Section]] = {
    "federation": FederationConfig,
    "aggregation": AggregationConfig,
    "transport": TransportConfig,
    "privacy": PrivacyConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "output": OutputConfig,
}


@dataclass(frozen=True)
class Setting:
    """One run-config key: its default, its type, and its meaning and allowed values."""

    default: ConfigValue
    constraint: Constraint

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        return self.constraint.allowed(type(self.default))

    @property
    def help(self) -> str:
        """The meaning of the key."""
        return self.constraint.help


SETTINGS: Mapping[str, Setting] = {
    key_of(entry): Setting(cast(ConfigValue, entry.default), constraint_of(entry))
    for section in SECTIONS.values()
    for entry in fields(section)
}
DEFAULTS: Mapping[str, ConfigValue] = {key: its.default for key, its in SETTINGS.items()}

MAX_SHOWN_KEY = 100  # characters of an unknown key that the error repeats
# Old key → new key.
RENAMED_KEYS: Mapping[str, str] = {
    "attentive-step": "fedatt-step",
    "beta-1": "adaptive-beta-1",
    "beta-2": "adaptive-beta-2",
    "buffer-size": "fedbuff-buffer-size",
    "clip-norm": "update-clip-norm",
    "concurrency": "fedbuff-concurrency",
    "drop-norm": "update-drop-norm",
    "fairness": "qfedavg-fairness",
    "gradient-batch": "fedsgd-batch-size",
    "malicious": "malicious-clients",
    "selected": "multikrum-selected",
    "tau": "adaptive-tau",
    "trimmed": "trim-fraction",
}


def with_current_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that a run has recorded, with renamed keys under their new names."""
    return {RENAMED_KEYS.get(key, key): value for key, value in recorded.items()}


@dataclass(frozen=True)
class Config:
    """All settings of one run, one attribute per section.

    Raises `UserError` for settings that exclude each other or have no effect.
    """

    federation: FederationConfig = field(default_factory=FederationConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        settings = self.to_run_config()
        refuse_combinations(settings)
        refuse_unused(settings, DEFAULTS)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Self:
        """Build the configuration from flat kebab-case keys; missing keys have their default.

        Raises `UserError` for a key that does not exist, with the nearest one or its new name, for
        a value that is not allowed, and for settings that exclude each other or have no effect.
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
        """Return the flat table of all kebab-case keys: the inverse of `from_run_config`."""
        sections = (getattr(self, name) for name in SECTIONS)
        return {
            key_of(entry): getattr(section, entry.name)
            for section in sections
            for entry in fields(section)
        }


def _unknown_key(key: str) -> str:
    if key in RENAMED_KEYS:
        return f"{key}: was renamed; use {RENAMED_KEYS[key]}"
    if not key.isprintable() or len(key) > MAX_SHOWN_KEY:
        key = as_toml(key[:MAX_SHOWN_KEY])
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(SETTINGS)}"
    return f"{key}: no such run-config key; {hint}"
