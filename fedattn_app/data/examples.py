"""Tokenised examples: what a client trains on and what it holds out."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

# The label of an example that has no loss, and so no gradient.
UNKNOWN_LABEL = -100


@dataclass(frozen=True)
class Examples:
    """N tokenised examples.

    `ids` is int32 (N, T), padded; `lengths` int32 (N,), each at least 1; `labels` int64
    (N,), indices into the label names, or `UNKNOWN_LABEL` in private training. Those that are
    selected are padded to a multiple of `step` tokens where T allows.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor
    step: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Self:
        """Select examples by a 1-D index, padded as the longest of them must be."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 1
        width = -(-longest // self.step) * self.step
        return replace(
            self, ids=self.ids[index, :width], lengths=lengths, labels=self.labels[index]
        )

    def apart(self, step: int, most: int, padding: int) -> Self:
        """Return the same, such that how a text is padded depends on no other.

        It is filled up with the token `padding` to a multiple of `step`, and no more than `most`.
        """
        width = min(-(-self.ids.shape[1] // step) * step, most)
        ids = F.pad(self.ids, (0, width - self.ids.shape[1]))
        ids = ids.masked_fill(torch.arange(width) >= self.lengths[:, None], padding)
        return replace(self, ids=ids, step=step)

    def by_width(self, index: Tensor, size: int) -> list[Tensor]:
        """Split the 1-D `index` into parts of at most `size`, each padded to one width."""
        steps = -(-self.lengths[index] // self.step)
        alike = (index[steps == count] for count in sorted(set(steps.tolist())))
        return [part for indices in alike for part in torch.split(indices, size)]


@dataclass(frozen=True)
class ClientData:
    """One client's examples: to train on, and held out."""

    train: Examples
    validation: Examples
