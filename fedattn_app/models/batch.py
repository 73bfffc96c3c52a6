"""The inputs of a model: named tensors whose first axis counts the examples.

Training, privacy and clients handle a `Batch` without looking into it, so a new kind of input
(tabular, image) needs no change there: a plain `Batch` serves where every example has the same
shape, and a subclass where examples differ in size, as texts do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

# Private training pads texts to a multiple of this many tokens. A smaller multiple makes more and
# smaller passes, a larger one pads more.
PADDING_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of N examples.

    `tensors` holds at least one tensor by name, each of shape (N, ...). Labels are not among them.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def sizes(self) -> Tensor:
        """The cost of processing each example, int (N,), in any unit; here 1 for all."""
        return torch.ones(len(self), dtype=torch.int64)

    def select(self, index: Tensor) -> Self:
        """Return the examples that the 1-D `index` selects, in its order."""
        return replace(self, tensors={name: tensor[index] for name, tensor in self.tensors.items()})

    def pad_independently(self, max_length: int) -> Self:
        """Return the same examples in a form where no example's padding depends on another's.

        Private training needs this: padding must not reveal which examples were drawn together.
        `max_length` is the largest size that the model accepts. Inputs without padding return
        themselves.
        """
        return self

    def split_by_size(self, index: Tensor, max_examples: int) -> Sequence[Tensor]:
        """Split the 1-D `index` into parts of at most `max_examples` with similar sizes.

        Each part is a 1-D index of examples to process together. An index of at most
        `max_examples` stays as it is; a longer one is sorted by size first.
        """
        if len(index) <= max_examples:
            return [index] if len(index) else []
        return torch.split(index[self.sizes[index].argsort(stable=True)], max_examples)

    def split_by_equal_size(self, index: Tensor, max_examples: int) -> Sequence[Tensor]:
        """Split the 1-D `index` into parts of at most `max_examples` with exactly one size each."""
        sizes = self.sizes[index]
        groups = (index[sizes == size] for size in sorted(set(sizes.tolist())))
        return [part for group in groups for part in torch.split(group, max_examples)]


@dataclass(frozen=True, eq=False)
class TextBatch(Batch):
    """Token ids of N texts, padded to T tokens.

    The tensors are ``ids``, integer (N, T), and ``lengths``, integer (N,), each at least 1.
    `padding_id` is the token that fills up a text. `select` rounds the number of tokens of its
    result up to a multiple of `padding_multiple` (at least 1), but not beyond T.
    """

    padding_id: int = 0
    padding_multiple: int = 1

    @classmethod
    def of(cls, ids: Tensor, lengths: Tensor, padding_id: int = 0) -> Self:
        """Make a batch of token ids (N, T) and their `lengths` (N,)."""
        return cls({"ids": ids, "lengths": lengths}, padding_id)

    @property
    def ids(self) -> Tensor:
        """The token ids, integer (N, T)."""
        return self["ids"]

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text, integer (N,), padding excluded."""
        return self["lengths"]

    @property
    def sizes(self) -> Tensor:
        """The number of tokens of each text when it is selected alone, integer (N,)."""
        return -(-self.lengths // self.padding_multiple) * self.padding_multiple

    def select(self, index: Tensor) -> Self:
        """Return the texts that the 1-D `index` selects, with no more padding than they need."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 1
        width = -(-longest // self.padding_multiple) * self.padding_multiple
        return replace(self, tensors={"ids": self.ids[index, :width], "lengths": lengths})

    def pad_independently(self, max_length: int, multiple: int = PADDING_MULTIPLE) -> Self:
        """Return the same texts in a form where `select` pads each to a multiple of `multiple`.

        No text is padded beyond `max_length` tokens. All positions beyond a text's length hold
        `padding_id` afterwards.
        """
        rounded = -(-self.ids.shape[1] // multiple) * multiple
        width = min(rounded, max_length)
        ids = F.pad(self.ids, (0, width - self.ids.shape[1]))
        beyond = torch.arange(width) >= self.lengths[:, None]
        ids = ids.masked_fill(beyond, self.padding_id)
        tensors = {"ids": ids, "lengths": self.lengths}
        return replace(self, tensors=tensors, padding_multiple=multiple)
