"""A small model and examples to train it on."""

import torch

from fedattn_app.config import ModelConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch

LABELS = 3
SMALL = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24, "vocabulary": 40, "max_length": 9}
CONFIG = ModelConfig(**SMALL)


def make_examples(count, seed=1):
    """Texts of 1 to 9 tokens whose first token determines the label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (count, 9), generator=generator)
    lengths = torch.randint(1, 10, (count,), generator=generator)
    ids = torch.where(torch.arange(9) < lengths[:, None], ids, 0)
    return Examples(TextBatch.of(ids.int(), lengths.int()), ids[:, 0] % LABELS)


def changed(before, after):
    """The names of the arrays whose bits differ."""
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}
