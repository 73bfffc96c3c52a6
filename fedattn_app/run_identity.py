"""What must be the same from a run's first round to its last, on the server and on every node.

A model means something only together with the order of its labels, its tokenizer and the parameters
that were never trained. Its scores mean something only while the held-out examples stay out of the
training data. So the server records all of these in the checkpoint, a resumed run compares them,
and every message carries their fingerprints for the clients to compare.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class RunIdentity:
    """The labels of a run, and fingerprints: SHA-256 in hex, or empty for what the run has not.

    Attributes:
        labels: the label names, in the order of the model's outputs.
        frozen: the fingerprint of the frozen parameters.
        tokenizer: the fingerprint of the tokenizer.
        training_data: the fingerprint of the rows that a simulation splits over its clients.
        test_data: the fingerprint of the server's test rows.
    """

    labels: tuple[str, ...] = ()
    frozen: str = ""
    tokenizer: str = ""
    training_data: str = ""
    test_data: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Return the identity as text by name; `from_metadata` reads it."""
        return {**asdict(self), "labels": json.dumps(self.labels)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read what `to_metadata` wrote; a part that is missing is empty.

        Raises `ValueError` if the labels are not a JSON list of texts.
        """
        texts = {name: metadata.get(name, "") for name in asdict(cls()) if name != "labels"}
        try:
            labels = json.loads(metadata.get("labels", "[]"))
        except RecursionError:
            labels = None
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise ValueError("not a list of texts")
        return cls(tuple(labels), **texts)

    def to_message_config(self) -> dict[str, str]:
        """Return what every message carries for its client to compare, by key."""
        return {
            key: value
            for key, value in {
                "labels-fingerprint": labels_fingerprint(self.labels),
                "frozen-fingerprint": self.frozen,
                "tokenizer-fingerprint": self.tokenizer,
                "data-fingerprint": self.training_data,
            }.items()
            if value
        }


def labels_fingerprint(labels: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of the label names and their order."""
    return hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()
