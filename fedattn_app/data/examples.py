"""Labelled examples: what a client trains on and what it holds out."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from fedattn_app.models.batch import Batch

# Label of an example that has no loss and therefore no gradient.
UNKNOWN_LABEL = -100


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples: the model's `inputs`, and `labels`, int64 (N,).

    A label is an index into the label names, or `UNKNOWN_LABEL` in private training.
    """

    inputs: Batch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Self:
        """Return the examples that a 1-D index selects, in its order."""
        return replace(self, inputs=self.inputs.select(index), labels=self.labels[index])

    def pad_independently(self, max_length: int) -> Self:
        """Return the same examples, padded as `Batch.pad_independently` pads them."""
        return replace(self, inputs=self.inputs.pad_independently(max_length))


@dataclass(frozen=True)
class ClientData:
    """One client's examples: those it trains on, and those it holds out for evaluation.

    `tokenizer_fingerprint` and `source_fingerprint` are the SHA-256 (hex) of the tokenizer that
    encoded them and of the rows that they were taken from; each is empty where nothing needs to be
    compared.
    """

    train: Examples
    validation: Examples
    tokenizer_fingerprint: str = ""
    source_fingerprint: str = ""
