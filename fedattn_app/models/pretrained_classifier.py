"""A `transformers` sequence classifier behind the interface of this app."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedattn_app.models.batch import Batch
from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.models.published.padding import PaddingSide, padding_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PretrainedClassifier(TextClassifier):
    """A `transformers` sequence classifier as a `Classifier`.

    Its parameters keep their names from `transformers`.

    Attributes:
        padding_side: Where the model expects the padding of a text. Batches have it on the right;
            `forward` moves it.
        load_messages: See `Classifier`.
    """

    def __init__(self, model: "PreTrainedModel", padding_side: PaddingSide = "right") -> None:
        super().__init__()
        # Share the submodules under their own names. The tuple hides `model` itself from torch,
        # which would otherwise register it as one more submodule.
        self._modules, self._parameters = model._modules, model._parameters
        self._buffers = model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._wrapped = (model,)
        self.family = model.config.model_type
        self.padding_side = padding_side
        # Decoders look for this id to find the last token of a text.
        self._padding = padding_id_of(model.config)
        model.config.get_text_config().pad_token_id = self._padding

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration from which `build_untrained` makes a model of the same shape."""
        settings: dict[str, Any] = self._wrapped[0].config.to_dict()
        settings.pop("_name_or_path", None)  # a path on this machine
        settings.pop("auto_map", None)  # names of code that comes with the model
        return settings | {"padding_side": self.padding_side}

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B, K)."""
        logits: Tensor = self._wrapped[0](**self._inputs(batch)).logits
        return logits

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The input embeddings, as `transformers` calls them."""
        embedding: torch.nn.Module = self._wrapped[0].get_input_embeddings()
        return embedding

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> Sequence[Tensor]:
        """Return the attention probabilities of each layer, float32 (B, H, T, T).

        Only the "eager" implementation of `transformers` returns them. Of an encoder with a
        decoder, return those of the encoder.
        """
        (model,) = self._wrapped
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            output = model(**self._inputs(batch), output_attentions=True)
        finally:
            model.set_attn_implementation(usual)
        maps = output.get("attentions") or output.get("encoder_attentions") or ()
        if self.padding_side == "right":
            return tuple(maps)
        positions = torch.arange(batch["ids"].shape[1])
        back = (positions - batch["lengths"][:, None]) % len(positions)  # (B, T)
        texts = torch.arange(len(back))[:, None, None]
        return tuple(
            layer[texts, :, back[:, :, None], back[:, None, :]].permute(0, 3, 1, 2)
            for layer in maps
        )

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the model is called with: the padding has the model's id, on its side."""
        ids, lengths = batch["ids"], batch["lengths"]
        real = real_tokens(ids, lengths)
        ids = ids.masked_fill(~real, self._padding)
        if self.padding_side == "left":
            width = ids.shape[1]
            moved = (torch.arange(width) + lengths[:, None]) % width  # (B, T)
            ids, real = ids.gather(1, moved), real.gather(1, moved)
        return {"input_ids": ids, "attention_mask": real.long()}
