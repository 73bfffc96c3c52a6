"""Pretrained encoders from the Hugging Face hub or a local folder, through `transformers`.

Weights are read from safetensors files only, and code that comes with a model is never run. A
local folder is read without any network access.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedattn_app.config import MODEL_SIZES, ModelConfig, as_toml
from fedattn_app.errors import UserError
from fedattn_app.files import folder_of
from fedattn_app.models.batch import Batch
from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.models.families import FAMILIES
from fedattn_app.models.initialise import initialise_new
from fedattn_app.models.tokenizer import Tokenizer, pad
from fedattn_app.optional_dependency import needing_extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedConfig, PreTrainedModel

# transformers would load adapters into the model, under other parameter names.
ADAPTERS_MESSAGE = "its folder holds adapters; merge them into the weights first"


class PretrainedClassifier(TextClassifier):
    """A `transformers` sequence classifier as a `Classifier`.

    Its parameters keep their names from `transformers`.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        # Share the submodules under their own names. The tuple hides `model` itself from torch,
        # which would otherwise register it as one more submodule.
        self._modules, self._parameters = model._modules, model._parameters
        self._buffers = model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._wrapped = (model,)
        self.family = model.config.model_type

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration from which `build_untrained` makes a model of the same shape."""
        settings: dict[str, Any] = self._wrapped[0].config.to_dict()
        settings.pop("_name_or_path", None)  # a path on this machine
        settings.pop("auto_map", None)  # names of code that comes with the model
        return settings

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B, K)."""
        mask = real_tokens(batch["ids"], batch["lengths"]).long()
        logits: Tensor = self._wrapped[0](input_ids=batch["ids"], attention_mask=mask).logits
        return logits

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The input embeddings, as `transformers` calls them."""
        embedding: torch.nn.Module = self._wrapped[0].get_input_embeddings()
        return embedding

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> Sequence[Tensor]:
        """Return the attention probabilities of each layer, float32 (B, H, T, T).

        Only the "eager" implementation of `transformers` returns them.
        """
        (model,) = self._wrapped
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            mask = real_tokens(batch["ids"], batch["lengths"]).long()
            maps: Sequence[Tensor] = model(
                input_ids=batch["ids"], attention_mask=mask, output_attentions=True
            ).attentions
        finally:
            model.set_attn_implementation(usual)
        return maps


class PretrainedTokenizer(Tokenizer):
    """The tokenizer that belongs to a pretrained model.

    `backend` truncates the texts. `padding` is the id of the padding token.
    """

    def __init__(self, backend: "Backend", padding: int) -> None:
        backend.no_padding()
        self.backend = backend
        self.padding = padding

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make the tokenizer that `to_json` wrote."""
        from tokenizers import Tokenizer as Backend

        saved = json.loads(text)
        return cls(Backend.from_str(saved["tokenizer"]), saved["padding"])

    def to_json(self) -> str:
        """Return the whole tokenizer, vocabulary included, as JSON."""
        return json.dumps({"tokenizer": self.backend.to_str(), "padding": self.padding})

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token, added tokens included."""
        vocabulary: Mapping[str, int] = self.backend.get_vocab()
        return vocabulary

    def tokens(self, text: str) -> list[str]:
        """Split `text` into tokens, special ones included."""
        tokens: list[str] = self.backend.encode(_without_surrogates(text)).tokens
        return tokens

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with the model's padding token."""
        encoded = self.backend.encode_batch([_without_surrogates(text) for text in texts])
        return pad([row.ids or [self.padding] for row in encoded], self.padding)


def load_model(config: ModelConfig, num_labels: int, seed: int) -> PretrainedClassifier:
    """Load the model that `config.model` names, with a head for `num_labels` labels.

    Parameters that are not in the weights, such as those of a new head, depend only on `seed`. The
    dropout rate comes from `config.dropout`, and layer dropout is off. Raises `UserError` for a
    model that cannot be loaded and for weights that lack a part of the encoder.
    """
    with _loading(_subject(config.model)):
        from transformers import AutoModelForSequenceClassification

        architecture = _architecture(config.model)
        architecture.num_labels = num_labels
        for key, value in architecture.to_dict().items():
            if "drop" in key and (value is None or type(value) in (int, float)):
                setattr(architecture, key, 0.0 if "layerdrop" in key else config.dropout)
        with torch.random.fork_rng(devices=[]):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                config=architecture,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a new head replaces one for other labels
                output_loading_info=True,
                **_source(config.model),
            )
        if getattr(model, "_hf_peft_config_loaded", False):  # from the hub
            raise ValueError(ADAPTERS_MESSAGE)
        missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        lacking = sorted(filter(re.compile(_encoder_pattern(model)).fullmatch, missing))
        if lacking:
            raise ValueError(
                f"{len(lacking)} of the encoder's parameters are missing from its weights or have "
                f"another shape there, such as {lacking[0]}"
            )
        initialise_new(model, missing, getattr(model.config, "initializer_range", 0.02), seed)
    return PretrainedClassifier(model)


def load_tokenizer(config: ModelConfig) -> PretrainedTokenizer:
    """Load the tokenizer of the model that `config.model` names.

    Raises `UserError` for a tokenizer that cannot be loaded or does not fit the model, and for a
    `max-length` that the model does not support.
    """
    with _loading(_subject(config.model)):
        from transformers import AutoTokenizer

        architecture = _architecture(config.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(**_source(config.model))
        except Exception as error:
            raise ValueError(f"its tokenizer: {error}") from None
        tokens = len(tokenizer)
        if not tokenizer.is_fast:
            raise ValueError("its tokenizer has no tokenizer.json")
        # Without a tokenizer file, transformers makes a tokenizer with an empty vocabulary.
        if not architecture.vocab_size / 2 <= tokens <= architecture.vocab_size:
            raise ValueError(
                f"its tokenizer has {tokens} tokens and the model {architecture.vocab_size}: is "
                "tokenizer.json missing, or from another model?"
            )
    backend = tokenizer.backend_tokenizer
    shortest = backend.num_special_tokens_to_add(False) + 1
    longest = _max_tokens(architecture) or config.max_length
    if not shortest <= config.max_length <= longest:
        raise UserError(
            f"max-length = {config.max_length}: must be {shortest} to {longest} for "
            f"model = {as_toml(config.model)}"
        )
    backend.enable_truncation(config.max_length, direction=tokenizer.truncation_side)
    return PretrainedTokenizer(backend, tokenizer.pad_token_id or 0)


def build_untrained(architecture: dict[str, Any]) -> PretrainedClassifier:
    """Build a model of the given `PretrainedClassifier.architecture` with random parameters."""
    with _loading("the run's model"), torch.random.fork_rng(devices=[]):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        return PretrainedClassifier(
            AutoModelForSequenceClassification.from_config(
                AutoConfig.for_model(**architecture), dtype=torch.float32, trust_remote_code=False
            )
        )


def _architecture(model: str) -> "PreTrainedConfig":
    from transformers import AutoConfig

    architecture: PreTrainedConfig = AutoConfig.from_pretrained(**_source(model))
    return architecture


def _source(model: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that name the source and forbid model code."""
    folder = folder_of(model)
    if folder is None:
        if model.startswith((".", "~", "/")):
            raise ValueError("the folder does not exist")
        if near := difflib.get_close_matches(model.lower(), MODEL_SIZES, n=1, cutoff=0.75):
            raise ValueError(f"did you mean {near[0]}?")
        return {"pretrained_model_name_or_path": model, "trust_remote_code": False}
    if (folder / "adapter_config.json").exists():
        raise ValueError(ADAPTERS_MESSAGE)
    return {
        "pretrained_model_name_or_path": str(folder),
        "local_files_only": True,
        "trust_remote_code": False,
    }


def _max_tokens(architecture: "PreTrainedConfig") -> int:
    """Return the largest number of tokens that have a position, or 0 for no limit."""
    positions = max(getattr(architecture, "max_position_embeddings", 0), 0)
    padding = architecture.pad_token_id or 0
    family = FAMILIES.get(architecture.model_type)
    # Most unknown families with a padding token other than 0 count positions from the next number.
    after_padding = family.positions_after_padding if family else padding > 0
    return max(positions - (padding + 1 if after_padding else 0), 0)


def _encoder_pattern(model: "PreTrainedModel") -> str:
    """Return a regex for the parameters that must come with the weights: all but the head."""
    family = FAMILIES.get(model.config.model_type)
    head = family.head if family else r".*pooler.*"
    return rf"(?!{head}){model.base_model_prefix}\..*"


def _subject(model: str) -> str:
    not_a_folder = "" if folder_of(model) else " and not a folder"
    return f"model = {as_toml(model)}: not one of {', '.join(MODEL_SIZES)}{not_a_folder}"


@contextmanager
def _loading(subject: str) -> Iterator[None]:
    """Load without log lines, and turn every failure into one line that starts with `subject`."""
    with needing_extra(f"{subject}; a pretrained model"):
        from transformers.utils import logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.setLevel(ERROR)  # it logs every retry
    try:
        yield
    except Exception as error:  # transformers, the hub and safetensors raise many types
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{subject}, and cannot be loaded as pretrained ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON files may hold and tokenizers reject."""
    return text.encode("utf-8", "replace").decode()
