"""The run-config keys of the model: the Transformer, its tokenizer, and LoRA adapters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fedattn_app.config.schema import Registered, Section, as_toml, setting, split_names
from fedattn_app.errors import UserError

TRANSFORMER_BUILDER = Registered("fedattn_app.models.transformer:build_model")


@dataclass(frozen=True)
class ModelSize:
    """Shape of the encoder: `layers` blocks of `width` features, `heads` heads each.

    `feedforward` is the number of hidden units of a block's feed-forward layer. `builder` is the
    function that builds the model, from a `ModelConfig`, the number of labels and the seed.
    """

    layers: int
    width: int
    heads: int
    feedforward: int
    builder: Registered = TRANSFORMER_BUILDER


MODEL_SIZES: Mapping[str, ModelSize] = {
    "tiny": ModelSize(layers=1, width=64, heads=2, feedforward=256),
    "small": ModelSize(layers=2, width=128, heads=4, feedforward=512),
    "base": ModelSize(layers=4, width=256, heads=8, feedforward=1024),
}

# The fields of `ModelConfig` that have no effect with a pretrained model: its shape, and more.
SHAPE_FIELDS = ("layers", "width", "heads", "feedforward")
BUILT_IN_ONLY = (*SHAPE_FIELDS, "vocabulary")

ATTENTION_ROLES = ("query", "key", "value", "output")
LORA_SCOPES = ("lora", "lora-a", "lora-b")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The Transformer and its tokenizer."""

    title: ClassVar[str] = "Model"

    model: str = setting(
        "small",
        "size of the built-in Transformer, `tiny`, `small` or `base`; or a pretrained model (with "
        "the extra `pretrained`): its id on the Hugging Face hub or its folder",
    )
    layers: int = setting(0, "number of blocks; 0: that of the named size", minimum=0, maximum=64)
    width: int = setting(
        0,
        "number of features per token, a multiple of 2 × `heads`; 0: that of the named size",
        minimum=0,
        maximum=8192,
    )
    heads: int = setting(
        0, "number of attention heads; 0: that of the named size", minimum=0, maximum=256
    )
    feedforward: int = setting(
        0,
        "number of hidden units of the feed-forward layers; 0: that of the named size",
        minimum=0,
        maximum=65536,
    )
    dropout: float = setting(
        0.0, "dropout probability in training; 0: no dropout", minimum=0, maximum=0.9
    )
    vocabulary: int = setting(
        8192,
        "number of token ids of the built-in tokenizer, which hashes words to them",
        minimum=8,
        maximum=2**24,
    )
    max_length: int = setting(
        64,
        "maximum number of tokens of a text; the rest of a longer text is cut off",
        minimum=1,
        maximum=8192,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.strip():
            sizes = ", ".join(MODEL_SIZES)
            raise UserError(
                f"model = {as_toml(self.model)}: must be {sizes}, or the hub id or the folder of a "
                "pretrained model"
            )
        if not self.pretrained and self.size.width % (2 * self.size.heads):
            raise UserError(
                f"width = {self.size.width}: must be a multiple of 2 × heads = "
                f"{2 * self.size.heads}"
            )

    @property
    def pretrained(self) -> bool:
        """Whether the model is loaded through transformers."""
        return self.model not in MODEL_SIZES

    @property
    def size(self) -> ModelSize:
        """The shape of the built-in model.

        It is the shape of the size that `model` names, except that each shape key other than 0
        overrides its part.
        """
        named = MODEL_SIZES[self.model]
        given = {name: getattr(self, name) for name in SHAPE_FIELDS if getattr(self, name)}
        return replace(named, **given)


@dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters of the attention projections: `shared` = `lora`, `lora-a` or `lora-b`."""

    title: ClassVar[str] = "LoRA"

    lora_rank: int = setting(8, "rank r of each adapter", minimum=1, maximum=1024)
    lora_alpha: int = setting(16, "α: the output of an adapter is scaled by α / r", minimum=1)
    lora_targets: str = setting(
        ",".join(ATTENTION_ROLES),
        f"attention projections with an adapter, some of {', '.join(ATTENTION_ROLES)}, separated "
        "by commas",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.roles or not set(self.roles) <= set(ATTENTION_ROLES):
            raise UserError(
                f"lora-targets = {as_toml(self.lora_targets)}: must be some of "
                f"{', '.join(ATTENTION_ROLES)}, separated by commas"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """The projections with an adapter, without repetition."""
        return tuple(dict.fromkeys(split_names(self.lora_targets)))
