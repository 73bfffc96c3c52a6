"""Use a trained model: load it from a run's folder and predict the labels of new texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fedattn_app.config import Config, with_current_names
from fedattn_app.errors import UserError
from fedattn_app.files import read_arrays
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import rebuild
from fedattn_app.models.parameters import set_arrays
from fedattn_app.models.tokenizer import Tokenizer
from fedattn_app.training.evaluation import EVALUATION_BATCH_SIZE


@dataclass(frozen=True)
class Attention:
    """The attention of every layer over one text of T tokens.

    Args:
        tokens: The T tokens.
        maps: One float32 tensor (H, T, T) per layer. For each of H heads, row i holds the
            attention of token i to every token j, and sums to 1.
    """

    tokens: Sequence[str]
    maps: Sequence[Tensor]


class Predictor:
    """A trained classifier with its tokenizer and its label names.

    `labels` are in the order of the model's outputs.
    """

    def __init__(self, model: Classifier, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labels = labels

    @classmethod
    def load(cls, run: str | Path, personal: str | Path | None = None) -> Self:
        """Load the final model of a run.

        Args:
            run: The run's folder, or a ``model.safetensors`` file.
            personal: The file with a node's personal parameters, from its `state-dir`. A run with
                ``local = "personal"`` needs one, because its own model is incomplete.

        Raises:
            UserError: If a file is missing or is not the model of a run, or if the two files do not
                belong together.
        """
        path = Path(run)
        path = path / "model.safetensors" if path.is_dir() else path
        arrays, metadata = read_arrays(path)
        if not {"labels", "config"} <= metadata.keys():
            raise UserError(f"{path}: is not the model of a run (it has no labels and no config)")
        labels = json.loads(metadata["labels"])
        config = Config.from_run_config(with_current_names(json.loads(metadata["config"])))
        if personal is not None:
            arrays |= read_arrays(Path(personal))[0]
        elif config.federation.local == "personal":
            raise UserError(
                f"{path}: was trained with personal parameters; also pass the file in which a node "
                "keeps its own"
            )
        model, tokenizer = rebuild(config, labels, metadata)
        try:
            set_arrays(model, arrays)
        except ValueError as error:
            raise UserError(f"{personal or path}: {error}") from None
        return cls(model, tokenizer, labels)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable label of each text."""
        return [self.labels[k] for k in self.probabilities(texts).argmax(1).tolist()]

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the probability of each of K labels for each of N texts, float32 (N, K)."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts, not one text")
        inputs = self.tokenizer.batch(texts)
        probabilities = torch.zeros(len(texts), len(self.labels))
        for index in inputs.split_by_size(torch.arange(len(texts)), EVALUATION_BATCH_SIZE):
            probabilities[index] = self.model(inputs.select(index)).softmax(1)
        return probabilities

    def attention(self, text: str) -> Attention:
        """Return the attention of every layer over `text`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be one text, not {type(text).__name__}")
        maps = self.model.attention_maps(self.tokenizer.batch([text]))
        return Attention(self.tokenizer.tokens(text), [layer[0] for layer in maps])
