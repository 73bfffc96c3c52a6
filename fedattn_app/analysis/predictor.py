"""Use a trained model: load it from a run's folder and predict the labels of new texts."""

import json
from collections.abc import Mapping, Sequence, Set
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
from fedattn_app.models.parameters import non_finite, set_arrays
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
        try:
            labels = json.loads(metadata["labels"])
            settings = json.loads(metadata["config"])
        except ValueError as error:
            raise UserError(f"{path}: its labels or its config are not JSON ({error})") from None
        config = Config.from_run_config(with_current_names(settings))
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
        if infinite := non_finite(arrays):
            raise UserError(
                f"{personal or path}: holds NaN or infinite values in {len(infinite)} parameters, "
                f"such as {infinite[0]}; every prediction would be wrong"
            )
        return cls(model, tokenizer, labels)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable label of each text.

        `texts` may be any sequence of strings, such as a list, an array or a column of a table.
        Raises `TypeError` for anything else.
        """
        return [self.labels[k] for k in self.probabilities(texts).argmax(1).tolist()]

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the probability of each of K labels for each of N texts, float32 (N, K).

        The arguments are those of `predict`.
        """
        texts = _checked(texts)
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


def _checked(texts: Sequence[str]) -> list[str]:
    """Return `texts` as a list; raises `TypeError` if it is not a sequence of texts."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts must be a sequence of texts, not one text")
    # A set has no order, and a dictionary or a table gives its keys.
    if isinstance(texts, (Mapping, Set)) or getattr(texts, "ndim", 1) != 1:
        raise TypeError(f"texts must be a sequence of texts, not {type(texts).__name__}")
    try:
        rows = list(texts)
    except TypeError:
        name = type(texts).__name__
        raise TypeError(f"texts must be a sequence of texts, not {name}") from None
    for number, text in enumerate(rows):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] must be a text, not {type(text).__name__}")
    return rows
