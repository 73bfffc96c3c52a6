"""Pretrained encoders from the Hugging Face hub or a local folder, through `transformers`.

Weights are read from safetensors files only, and code that comes with a model is never run. A
local folder is read without any network access.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedattn_app.config import ModelConfig, as_toml
from fedattn_app.errors import UserError
from fedattn_app.label_text import without_surrogates
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.families import FAMILIES
from fedattn_app.models.initialise import initialise_new
from fedattn_app.models.parameters import non_finite, view_arrays
from fedattn_app.models.pretrained_classifier import PretrainedClassifier
from fedattn_app.models.published.head import (
    checkpoint_labels,
    label_axes,
    label_order,
    listed,
    reorder_outputs,
    set_labels,
)
from fedattn_app.models.published.long_text import shortened
from fedattn_app.models.published.padding import (
    PaddingSide,
    Scorer,
    padding_id_of,
    padding_side_of,
)
from fedattn_app.models.published.source import (
    ADAPTERS_MESSAGE,
    architecture_of,
    loading,
    source_of,
    subject_of,
)
from fedattn_app.models.tokenizer import Tokenizer, pad

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedConfig, PreTrainedModel


class PretrainedTokenizer(Tokenizer):
    """The tokenizer that belongs to a pretrained model.

    `backend` truncates the texts. `padding` is the id of the padding token. With `specials_as_text`
    the name of a special token in a text, such as ``</s>``, is text like any other.
    """

    def __init__(self, backend: "Backend", padding: int, specials_as_text: bool = False) -> None:
        backend.no_padding()
        backend.encode_special_tokens = specials_as_text
        self.backend = backend
        self.padding = padding

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make the tokenizer that `to_json` wrote."""
        from tokenizers import Tokenizer as Backend

        saved = json.loads(text)
        backend = Backend.from_str(saved["tokenizer"])
        return cls(backend, saved["padding"], saved.get("specials-as-text", False))

    def to_json(self) -> str:
        """Return the whole tokenizer, vocabulary included, as JSON."""
        saved = {"tokenizer": self.backend.to_str(), "padding": self.padding}
        return json.dumps(saved | {"specials-as-text": self.backend.encode_special_tokens})

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token, added tokens included."""
        vocabulary: Mapping[str, int] = self.backend.get_vocab()
        return vocabulary

    def tokens(self, text: str) -> list[str]:
        """Split `text` into tokens, special ones included."""
        tokens: list[str] = self.backend.encode(self._prepared(text)).tokens
        return tokens

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with the model's padding token."""
        encoded = self.backend.encode_batch([self._prepared(text) for text in texts])
        return pad([row.ids or [self.padding] for row in encoded], self.padding)

    def _prepared(self, text: str) -> str:
        return shortened(without_surrogates(text), self.backend)


def load_model(config: ModelConfig, labels: Sequence[str], seed: int) -> PretrainedClassifier:
    """Load the model that `config.model` names, with one output for each of `labels`.

    The head of the checkpoint is kept if it has the same labels, and then its outputs are brought
    into the order of `labels`. Otherwise the model gets a new head. Parameters that are not in the
    weights, such as those of a new head, depend only on `seed`. The dropout rate comes from
    `config.dropout`, and layer dropout is off. Raises `UserError` for a model that cannot be
    loaded, for weights that lack a part of the encoder or are not finite, and for a model whose
    scores depend on padding.
    """
    with loading(subject_of(config.model)):
        architecture = architecture_of(config.model)
        if padding_id_of(architecture) != getattr(architecture, "pad_token_id", None):
            architecture.pad_token_id = None  # such as -1, which is no row of the embedding
        order, published = label_order(architecture, labels), checkpoint_labels(architecture)
        set_labels(architecture, labels)
        for key, value in architecture.to_dict().items():
            if "drop" in key and (value is None or type(value) in (int, float)):
                setattr(architecture, key, 0.0 if "layerdrop" in key else config.dropout)
        model, absent, misfits = _load_weights(config.model, architecture)
        outputs, new = label_axes(model), absent | misfits
        if order is not None and not new:
            reorder_outputs(model, outputs, order)
        else:
            new |= outputs.keys()
        _reset(model, new)
        initialise_new(model, new, getattr(model.config, "initializer_range", 0.02), seed)
        if infinite := non_finite(view_arrays(model)):
            raise ValueError(
                f"its weights hold NaN or infinite values in {len(infinite)} parameters, such as "
                f"{infinite[0]}"
            )
        longest = min(config.max_length, _max_tokens(model.config) or config.max_length)
        classifier = PretrainedClassifier(model)
        classifier.padding_side = padding_side_of(_scorer(classifier), model.config, longest)
    if not outputs.keys() <= absent:  # the checkpoint has a head
        subject = f"model = {as_toml(config.model)}"
        if not new:
            text = "its head is kept, and its outputs are matched with the labels by name"
        elif order is None:
            theirs = listed(published) or "not named"
            text = f"its labels are {theirs}, not {listed(labels)}: a new head is trained"
        else:
            text = "its head lacks a part or has not one output per label: a new head is trained"
        level = logging.WARNING if new else logging.INFO
        classifier.load_messages = [(level, f"{subject}: {text}")]
    return classifier


def load_tokenizer(config: ModelConfig) -> PretrainedTokenizer:
    """Load the tokenizer of the model that `config.model` names.

    Raises `UserError` for a tokenizer that cannot be loaded or does not fit the model, and for a
    `max-length` that the model does not support.
    """
    with loading(subject_of(config.model)):
        from transformers import AutoTokenizer

        architecture = architecture_of(config.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source_of(config.model))
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
    # These find the end of a text by its token, of which each text must have one.
    return PretrainedTokenizer(
        backend, padding_id_of(architecture), architecture.is_encoder_decoder
    )


def build_untrained(architecture: Mapping[str, Any]) -> PretrainedClassifier:
    """Build a model of the given `PretrainedClassifier.architecture` with random parameters."""
    settings = {**architecture}
    side = settings.pop("padding_side", "right")  # runs of earlier versions have none
    with loading("the run's model"), torch.random.fork_rng(devices=[]):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        return PretrainedClassifier(
            AutoModelForSequenceClassification.from_config(
                AutoConfig.for_model(**settings), dtype=torch.float32, trust_remote_code=False
            ),
            side,
        )


def _scorer(model: PretrainedClassifier) -> Scorer:
    def score(ids: Tensor, lengths: Tensor, side: PaddingSide) -> Tensor:
        model.padding_side = side
        logits: Tensor = model(TextBatch.of(ids, lengths))
        return logits

    return score


def _load_weights(
    name: str, architecture: "PreTrainedConfig"
) -> tuple["PreTrainedModel", set[str], set[str]]:
    """Return the model, and the names of the parameters that the weights do not have.

    The first set has those that are absent, the second those that have another shape. All are
    parameters of the head, or the function raises `ValueError`.
    """
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            config=architecture,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a new head replaces one for other labels
            output_loading_info=True,
            **source_of(name),
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # from the hub
        raise ValueError(ADAPTERS_MESSAGE)
    absent, misfits = set(report["missing_keys"]), {key for key, *_ in report["mismatched_keys"]}
    lacking = sorted(filter(re.compile(_encoder_pattern(model)).fullmatch, absent | misfits))
    if lacking:
        raise ValueError(
            f"{len(lacking)} of the encoder's parameters are missing from its weights or have "
            f"another shape there, such as {lacking[0]}"
        )
    return model, absent, misfits


def _reset(model: "PreTrainedModel", names: Collection[str]) -> None:
    """Set the parameters `names` of the head as the model's own rules do, at random or not."""
    with torch.random.fork_rng(devices=[]):
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            new = [p for key, p in module.named_parameters(recurse=False) if prefix + key in names]
            for parameter in new:
                parameter._is_hf_initialized = False
            if new:
                model._init_weights(module)


def _max_tokens(architecture: "PreTrainedConfig") -> int:
    """Return the largest number of tokens that have a position, or 0 for no limit."""
    positions = max(getattr(architecture, "max_position_embeddings", 0), 0)
    padding = architecture.pad_token_id or 0
    family = FAMILIES.get(architecture.model_type)
    # Most unknown families with a padding token other than 0 count positions from the next number.
    # Decoders, whose padding is often the last token of all, do not.
    after_padding = family.positions_after_padding if family else 0 < padding < positions
    return max(positions - (padding + 1 if after_padding else 0), 0)


def _encoder_pattern(model: "PreTrainedModel") -> str:
    """Return a regex for the parameters that must come with the weights: all but the head."""
    family = FAMILIES.get(model.config.model_type)
    head = family.head if family else r".*pooler.*"
    return rf"(?!{head}){model.base_model_prefix}\..*"
