"""How a model did on some examples: the one form for a client, the server and the results."""

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
    """Mean cross-entropy in nats, and per-class counts, each int64 of shape (K,).

    The loss is NaN where only counts were told. `support` counts the examples of each label,
    `predicted` the answers, `correct` those that are right.
    """

    loss: float
    support: Counts
    predicted: Counts
    correct: Counts

    @property
    def num_examples(self) -> int:
        """How many examples were scored."""
        return int(self.support.sum())

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; 0 without examples."""
        return float(self.correct.sum() / max(self.num_examples, 1))

    @property
    def recall(self) -> list[float | None]:
        """Share of right answers for each label; None for one that has no examples."""
        return [
            float(right / count) if count else None
            for right, count in zip(self.correct, self.support, strict=True)
        ]

    @property
    def f1(self) -> list[float | None]:
        """F1, 2·correct / (support + predicted), of each label.

        None for one that does not occur: it has no examples and is not predicted.
        """
        return [
            float(2 * right / total) if total else None
            for right, total in zip(self.correct, self.support + self.predicted, strict=True)
        ]

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of F1 over the labels that occur; 0 where none does."""
        known = [value for value in self.f1 if value is not None]
        return float(np.mean(known)) if known else 0.0

    def row(self) -> dict[str, float | None]:
        """Return what ``history.jsonl`` keeps of it."""
        loss = None if math.isnan(self.loss) else self.loss
        return {"loss": loss, **{name: metric(self) for name, metric in METRICS.items()}}


# By the name in ``history.jsonl`` and ``summary.json``.
METRICS: Mapping[str, Callable[[Scores], float]] = {
    "accuracy": lambda scores: scores.accuracy,
    "macro_f1": lambda scores: scores.macro_f1,
}
