"""Use a trained model: from a run's ``model.safetensors`` to labels for new texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fedattn_app.config import Config
from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import rebuild
from fedattn_app.models.parameters import set_arrays
from fedattn_app.models.tokenizer import Tokenizer
from fedattn_app.training.loop import EVALUATION_BATCH, by_length


@dataclass(frozen=True)
class Attention:
    """What each layer attended to in one text of T tokens.

    `tokens` has length T; `maps` holds one (H, T, T) tensor per layer: for each head, how much
    token i (row) drew from token j (column). Rows sum to 1.
    """

    tokens: Sequence[str]
    maps: Sequence[Tensor]


class Predictor:
    """A trained classifier with its tokenizer and label names."""

    def __init__(self, model: Classifier, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labels = labels

    @classmethod
    def load(cls, run: str | Path, personal: str | Path | None = None) -> Self:
        """Load the final model of a run's folder, or a ``model.safetensors`` file.

        `personal` is the file in a node's `state-dir` that holds the parameters it kept: a run
        with ``local = "personal"`` has no whole model without one. Raises `UserError` for a file
        that is missing, is not a run's model, or does not fit the other.
        """
        path = Path(run)
        path = path / "model.safetensors" if path.is_dir() else path
        arrays, about = read_arrays(path)
        if not {"labels", "config"} <= about.keys():
            raise UserError(f"{path}: is not the model of a run (no labels and config in it)")
        labels = json.loads(about["labels"])
        config = Config.from_run_config(json.loads(about["config"]))
        if personal is not None:
            arrays |= read_arrays(Path(personal))[0]
        elif config.federation.local == "personal":
            raise UserError(
                f"{path}: was trained with personal parameters; give the file that a node keeps "
                "its own in, too"
            )
        model, tokenizer = rebuild(config, len(labels), about)
        try:
            set_arrays(model, arrays)
        except ValueError as error:
            raise UserError(f"{personal or path}: {error}") from None
        return cls(model, tokenizer, labels)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the likeliest label of each text."""
        return [self.labels[k] for k in self.probabilities(texts).argmax(1).tolist()]

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the float32 (N, K) probability of each label for each text."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts, not one text")
        ids, lengths = self._encode(texts)
        probabilities = torch.zeros(len(texts), len(self.labels))
        for index in by_length(torch.arange(len(texts)), lengths, EVALUATION_BATCH):
            longest = int(lengths[index].max())
            logits = self.model(ids[index, :longest], lengths[index])
            probabilities[index] = logits.softmax(1)
        return probabilities

    def attention(self, text: str) -> Attention:
        """Return what the layers attend to in `text`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be one text, not {type(text).__name__}")
        maps = self.model.attention_maps(*self._encode([text]))
        return Attention(self.tokenizer.tokens(text), [layer[0] for layer in maps])

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, lengths = self.tokenizer.encode(texts)
        return torch.from_numpy(ids), torch.from_numpy(lengths)
