"""What a run is: every run-config key, its allowed values, and what cannot be combined."""

from fedattn_app.config.aggregation import RULES, AggregationConfig, AggregationRule
from fedattn_app.config.command_line import parse_run_config
from fedattn_app.config.data import DataConfig
from fedattn_app.config.model import (
    ATTENTION_ROLES,
    LORA_SCOPES,
    MODEL_SIZES,
    LoraConfig,
    ModelConfig,
    ModelSize,
)
from fedattn_app.config.privacy import PROTECTIONS, PrivacyConfig
from fedattn_app.config.schema import ConfigValue
from fedattn_app.config.settings import (
    SETTINGS,
    Config,
    FederationConfig,
    OutputConfig,
    TrainingConfig,
    settings_table,
)
from fedattn_app.config.transport import CODECS, TransportConfig

__all__ = [
    "ATTENTION_ROLES",
    "CODECS",
    "LORA_SCOPES",
    "MODEL_SIZES",
    "PROTECTIONS",
    "RULES",
    "SETTINGS",
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
    "TrainingConfig",
    "TransportConfig",
    "parse_run_config",
    "settings_table",
]
