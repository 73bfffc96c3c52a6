"""The settings of a run: every run-config key, its allowed values, and what cannot be combined."""

from fedattn_app.config.aggregation import RULES, AggregationConfig, AggregationRule
from fedattn_app.config.command_line import parse_pairs, parse_run_config
from fedattn_app.config.data import PARTITIONERS, DataConfig
from fedattn_app.config.federation import FederationConfig, num_selected
from fedattn_app.config.model import (
    ATTENTION_ROLES,
    LORA_SCOPES,
    MODEL_SIZES,
    LoraConfig,
    ModelConfig,
    ModelSize,
)
from fedattn_app.config.output import OutputConfig
from fedattn_app.config.privacy import PROTECTIONS, PrivacyConfig
from fedattn_app.config.schema import ConfigValue, Registered, as_toml
from fedattn_app.config.settings import Config, with_current_names
from fedattn_app.config.training import TrainingConfig
from fedattn_app.config.transport import CODECS, TransportConfig

__all__ = [
    "ATTENTION_ROLES",
    "CODECS",
    "LORA_SCOPES",
    "MODEL_SIZES",
    "PARTITIONERS",
    "PROTECTIONS",
    "RULES",
    "AggregationConfig",
    "AggregationRule",
    "Config",
    "ConfigValue",
    "DataConfig",
    "FederationConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelSize",
    "OutputConfig",
    "PrivacyConfig",
    "Registered",
    "TrainingConfig",
    "TransportConfig",
    "as_toml",
    "num_selected",
    "parse_pairs",
    "parse_run_config",
    "with_current_names",
]
