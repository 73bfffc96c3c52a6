"""Scores of a model on labelled examples, in one form for clients, server and results.

To add a metric, write a function of `Scores` and add it to `METRICS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

# The counts of `Scores`, each one number per label, as clients report them.
COUNT_NAMES = ("support", "predicted", "correct")


@dataclass(frozen=True)
class Scores:
    """The mean loss on some examples, and counts per label, each int64 (K,).

    Args:
        loss: Mean cross-entropy in nats; NaN if only the counts were reported.
        support: The number of examples with each label.
        predicted: The number of examples for which the model predicts each label.
        correct: The number of correct predictions of each label.
    """

    loss: float
    support: Counts
    predicted: Counts
    correct: Counts

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return int(self.support.sum())

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, 0 to 1; 0 without examples."""
        return float(self.correct.sum() / max(self.num_examples, 1))

    @property
    def recall(self) -> list[float | None]:
        """For each label, the share of its examples that are predicted correctly, 0 to 1.

        None for a label without examples.
        """
        return [
            float(right / count) if count else None
            for right, count in zip(self.correct, self.support, strict=True)
        ]

    @property
    def f1(self) -> list[float | None]:
        """For each label, its F1 score, 2·correct / (support + predicted), 0 to 1.

        None for a label that has no examples and is never predicted.
        """
        return [
            float(2 * right / total) if total else None
            for right, total in zip(self.correct, self.support + self.predicted, strict=True)
        ]

    @property
    def macro_f1(self) -> float:
        """The unweighted mean of the F1 scores that are not None; 0 if all are None."""
        defined = [value for value in self.f1 if value is not None]
        return float(np.mean(defined)) if defined else 0.0

    def row(self) -> dict[str, float | None]:
        """Return the loss (None if unknown) and every metric of `METRICS`, by name."""
        loss = None if math.isnan(self.loss) else self.loss
        return {"loss": loss, **{name: metric(self) for name, metric in METRICS.items()}}


# The metrics that each row of history.jsonl reports. Larger is better.
METRICS: Mapping[str, Callable[[Scores], float]] = {
    "accuracy": lambda scores: scores.accuracy,
    "macro_f1": lambda scores: scores.macro_f1,
}
