"""What all contestants do: the model, the clients' examples, the settings, and what is measured.

It needs torch, numpy and the parts of `fedattn_app` that need no more, since pfl-research has an
environment of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedattn_app.config import ModelConfig
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.transformer import TransformerClassifier, build_model

SHAPES = {
    "small": ModelConfig("tiny", vocabulary=2000, max_length=32),
    "large": ModelConfig("small", vocabulary=8000, max_length=64),
}
CLIENTS, COHORT, EXAMPLES = 200, 20, 32
BATCH, LEARNING_RATE, WEIGHT_DECAY = 16, 3e-3, 0.01
LABELS = 4
SEED = 1

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """So many `rounds` of a federation of the clients in `folder`, of models of a named `shape`."""

    shape: str
    folder: str
    rounds: int

    def model(self) -> TransformerClassifier:
        """Build the model that every contestant starts from."""
        return build_model(SHAPES[self.shape], LABELS, SEED)

    def clients(self) -> Sequence[Batch]:
        """Return each client's ids (32, T), lengths (32,) and labels (32,), read once."""
        return _clients(self.folder)

    def report(self, marks: Sequence[float], state: Mapping[str, Tensor]) -> str:
        """Return as JSON the seconds of each round after the first, and where the model got.

        `marks` are the times of the start and of the end of each round, `state` the global model
        after the last; its loss is that on the examples of all clients.
        """
        model = self.model()
        model.load_state_dict(state)
        ids, lengths, labels = (torch.cat(parts) for parts in zip(*self.clients(), strict=True))
        with torch.no_grad():
            loss = F.cross_entropy(model(TextBatch.of(ids, lengths)), labels)
        seconds = [end - start for start, end in pairwise(marks[1:])]
        return json.dumps({"seconds": seconds, "loss": float(loss)})


def write_clients(folder: Path, clients: Sequence[Batch]) -> None:
    """Write what `Task.clients` reads."""
    ids, lengths, labels = (torch.stack(parts).numpy() for parts in zip(*clients, strict=True))
    np.savez(folder / "clients.npz", ids=ids, lengths=lengths, labels=labels)


@lru_cache(maxsize=1)
def _clients(folder: str) -> Sequence[Batch]:
    arrays = np.load(Path(folder) / "clients.npz")
    parts = (torch.from_numpy(arrays[key]) for key in ("ids", "lengths", "labels"))
    return list(zip(*parts, strict=True))
