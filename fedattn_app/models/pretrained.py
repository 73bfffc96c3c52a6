"""Pretrained encoders of the Hugging Face hub, or of a local folder, through `transformers`.

Weights are read from safetensors files only, and no code that comes with a model is ever run. A
local folder is read without asking any network.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedattn_app.config import MODEL_SIZES, ModelConfig
from fedattn_app.errors import UserError
from fedattn_app.files import folder_of
from fedattn_app.models.classifier import Classifier, real_tokens
from fedattn_app.models.families import FAMILIES
from fedattn_app.models.tokenizer import Tokenizer, pad
from fedattn_app.optional_dependency import needing_extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedConfig, PreTrainedModel

# transformers would load them into the model, under other parameter names.
ADAPTERS = "adapters lie beside its weights; merge them into the weights first"


class PretrainedClassifier(Classifier):
    """A `transformers` sequence classifier behind the built-in model's interface.

    Its parameters keep the names that they have in `transformers`.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        # The very same submodules under the same names; a tuple hides the whole from torch.
        self._modules, self._parameters = model._modules, model._parameters
        self._buffers = model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._whole = (model,)
        self.family = model.config.model_type

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration from which `untrained` builds a model of the same shape."""
        settings: dict[str, Any] = self._whole[0].config.to_dict()
        settings.pop("_name_or_path", None)  # where it lay on this machine
        settings.pop("auto_map", None)  # where code of its own would be
        return settings

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Score the labels."""
        mask = real_tokens(ids, lengths).long()
        logits: Tensor = self._whole[0](input_ids=ids, attention_mask=mask).logits
        return logits

    @property
    def token_embedding(self) -> torch.nn.Module:
        """What `transformers` calls the input embeddings."""
        embedding: torch.nn.Module = self._whole[0].get_input_embeddings()
        return embedding

    @torch.no_grad()
    def attention_maps(self, ids: Tensor, lengths: Tensor) -> Sequence[Tensor]:
        """Return what each layer attends to, by the plain implementation that keeps its maps."""
        (model,) = self._whole
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            mask = real_tokens(ids, lengths).long()
            maps: Sequence[Tensor] = model(
                input_ids=ids, attention_mask=mask, output_attentions=True
            ).attentions
        finally:
            model.set_attn_implementation(usual)
        return maps


class PretrainedTokenizer(Tokenizer):
    """A model's own tokenizer; it cuts texts as `backend` says, special tokens counted."""

    def __init__(self, backend: "Backend", padding: int) -> None:
        backend.no_padding()
        self.backend = backend
        self.padding = padding

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make the tokenizer that `to_json` described."""
        from tokenizers import Tokenizer as Backend

        about = json.loads(text)
        return cls(Backend.from_str(about["tokenizer"]), about["padding"])

    def to_json(self) -> str:
        """Describe the whole tokenizer, vocabulary included."""
        return json.dumps({"tokenizer": self.backend.to_str(), "padding": self.padding})

    def tokens(self, text: str) -> list[str]:
        """Cut `text` into tokens, special ones included."""
        tokens: list[str] = self.backend.encode(_sound(text)).tokens
        return tokens

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with the model's own token."""
        encoded = self.backend.encode_batch([_sound(text) for text in texts])
        return pad([row.ids or [self.padding] for row in encoded], self.padding)


def load_model(config: ModelConfig, num_labels: int, seed: int) -> PretrainedClassifier:
    """Load the weights that `model` names; what they lack, such as a new head, depends on `seed`.

    Dropout is as the key `dropout` says, and no layer is dropped whole. Raises `UserError` for a
    model that cannot be loaded, and for weights that lack a part of the encoder.
    """
    with _loading(_subject(config.model)):
        from transformers import AutoModelForSequenceClassification

        architecture = _architecture(config.model)
        architecture.num_labels = num_labels
        for key, value in architecture.to_dict().items():
            if "drop" in key and (value is None or type(value) in (int, float)):
                setattr(architecture, key, 0.0 if "layerdrop" in key else config.dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                config=architecture,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced by a new one
                output_loading_info=True,
                **_source(config.model),
            )
        if getattr(model, "_hf_peft_config_loaded", False):  # of a hub id
            raise ValueError(ADAPTERS)
        missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        lacking = sorted(filter(re.compile(_encoder(model)).fullmatch, missing))
        if lacking:
            raise ValueError(
                f"of the encoder's parameters {len(lacking)} are not among its weights, or have "
                f"another shape there, such as {lacking[0]}"
            )
    return PretrainedClassifier(model)


def load_tokenizer(config: ModelConfig) -> PretrainedTokenizer:
    """Load the tokenizer of the model that `model` names.

    Raises `UserError` for one that cannot be loaded or does not fit the model, and for a
    `max-length` that the model cannot take.
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
        # Without any file transformers makes a tokenizer that knows no words.
        if not architecture.vocab_size / 2 <= tokens <= architecture.vocab_size:
            raise ValueError(
                f"its tokenizer has {tokens} tokens, the model {architecture.vocab_size}: is "
                "tokenizer.json missing or another model's?"
            )
    backend = tokenizer.backend_tokenizer
    shortest = backend.num_special_tokens_to_add(False) + 1
    longest = _longest(architecture) or config.max_length
    if not shortest <= config.max_length <= longest:
        raise UserError(
            f"max-length = {config.max_length}: model = {config.model!r} takes {shortest} to "
            f"{longest} tokens"
        )
    backend.enable_truncation(config.max_length, direction=tokenizer.truncation_side)
    return PretrainedTokenizer(backend, tokenizer.pad_token_id or 0)


def untrained(architecture: dict[str, Any]) -> PretrainedClassifier:
    """Make a model of this `PretrainedClassifier.architecture`, with random parameters."""
    with _loading("the model of the run"), torch.random.fork_rng(devices=[]):
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
    """Return the arguments that say where from, and that no code comes along."""
    folder = folder_of(model)
    if folder is None:
        if model.startswith((".", "~", "/")):
            raise ValueError("there is no such folder")
        if near := difflib.get_close_matches(model.lower(), MODEL_SIZES, n=1, cutoff=0.75):
            raise ValueError(f"did you mean {near[0]}?")
        return {"pretrained_model_name_or_path": model, "trust_remote_code": False}
    if (folder / "adapter_config.json").exists():
        raise ValueError(ADAPTERS)
    return {
        "pretrained_model_name_or_path": str(folder),
        "local_files_only": True,
        "trust_remote_code": False,
    }


def _longest(architecture: "PreTrainedConfig") -> int:
    """Return how many tokens have a position, or 0 where there is no limit."""
    positions = max(getattr(architecture, "max_position_embeddings", 0), 0)
    padding = architecture.pad_token_id or 0
    family = FAMILIES.get(architecture.model_type)
    # Unknown families that pad with another token than 0 mostly count positions from the next one.
    after_padding = family.positions_after_padding if family else padding > 0
    return max(positions - (padding + 1 if after_padding else 0), 0)


def _encoder(model: "PreTrainedModel") -> str:
    """Return a regex for the parameters that a pretrained model must bring along."""
    family = FAMILIES.get(model.config.model_type)
    head = family.head if family else r".*pooler.*"
    return rf"(?!{head}){model.base_model_prefix}\..*"


def _subject(model: str) -> str:
    and_no = "" if folder_of(model) else " and no folder"
    return f"model = {model!r}: is none of {', '.join(MODEL_SIZES)}{and_no}"


@contextmanager
def _loading(subject: str) -> Iterator[None]:
    """Load quietly; whatever goes wrong is one line that begins with `subject`."""
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
    except Exception as error:  # transformers, the hub and safetensors each have their own
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{subject}, and cannot be loaded as pretrained ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()


def _sound(text: str) -> str:
    """Replace half surrogate pairs, which a JSON file may hold and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()
