"""What all contestants share: the model, the examples, the settings and the measurement.

This module imports only torch, numpy and parts of `fedattn_app` that need no other package, since
pfl-research runs in an environment of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
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

ClientTensors = tuple[Tensor, Tensor, Tensor]  # ids (32, T), lengths (32,), labels (32,)


def predict(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the logits (B, K) of a batch of texts."""
    logits: Tensor = model(TextBatch.of(ids, lengths))
    return logits


@dataclass(frozen=True)
class Task:
    """`rounds` rounds of training a model of the named `shape` with the clients in `folder`."""

    shape: str
    folder: str
    rounds: int

    def model(self) -> TransformerClassifier:
        """Return the model that every contestant starts from."""
        return build_model(SHAPES[self.shape], LABELS, SEED)

    def clients(self) -> Sequence[ClientTensors]:
        """Return the tensors of each client; the file is read once in a process."""
        return _clients(self.folder)

    def report(self, times: Sequence[float], state: Mapping[str, Tensor]) -> str:
        """Return as JSON the seconds of each round after the first, and the final loss.

        `times` are those of the start and of the end of each round. `state` is the final global
        model, whose loss is taken over the examples of all clients.
        """
        model = self.model()
        model.load_state_dict(state)
        ids, lengths, labels = (torch.cat(parts) for parts in zip(*self.clients(), strict=True))
        with torch.no_grad():
            loss = F.cross_entropy(predict(model, ids, lengths), labels)
        seconds = [end - start for start, end in pairwise(times[1:])]
        return json.dumps({"seconds": seconds, "loss": float(loss)})


def write_clients(folder: Path, clients: Sequence[ClientTensors]) -> None:
    """Write the file that `Task.clients` reads."""
    ids, lengths, labels = (torch.stack(parts).numpy() for parts in zip(*clients, strict=True))
    np.savez(folder / "clients.npz", ids=ids, lengths=lengths, labels=labels)


@lru_cache(maxsize=1)
def _clients(folder: str) -> Sequence[ClientTensors]:
    arrays = np.load(Path(folder) / "clients.npz")
    parts = (torch.from_numpy(arrays[key]) for key in ("ids", "lengths", "labels"))
    return list(zip(*parts, strict=True))
