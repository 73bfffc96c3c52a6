"""The run-config keys of the model: the Transformer, its tokenizer, and LoRA adapters."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from fedattn_app.config.schema import Section, names_in, setting
from fedattn_app.errors import UserError


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
        entries = {entry.name: entry for entry in fields(self)}
        if not self.model.strip():
            raise UserError(
                f"model = {self.model!r}: must be {entries['model'].metadata['rule'].help}"
            )
        for name in (*(entry.name for entry in fields(ModelSize)), "vocabulary"):
            value = getattr(self, name)
            if value != entries[name].default:
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
