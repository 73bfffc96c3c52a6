"""What a run has come to, and the rows and lines that tell of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fedattn_app.metrics import Scores
from fedattn_app.server.budgets import Spending
from fedattn_app.server.partition_grid import Traffic
from fedattn_app.server.reply_checks import COUNTS, mean_scores, number
from fedattn_app.types import Row


@dataclass
class Outcome:
    """What a run has come to so far."""

    arrays: ArrayRecord
    central: Scores | None = None
    federated: Scores | None = None
    client_accuracies: Sequence[float] = ()
    history: list[Row] = field(default_factory=list)
    spending: Spending = field(default_factory=Spending)

    @property
    def scores(self) -> Scores | None:
        """The central scores where there are any, else the federated ones."""
        return self.central or self.federated


def round_line(row: Row, num_rounds: int, seconds_left: float | None) -> str:
    """Return the log line of one row of ``history.jsonl``."""
    parts = [f"round {row['round']:>{len(str(num_rounds))}}/{num_rounds}"]
    sources = {"central": "test", "evaluate": "held-out", "train": "training"}
    source = next((key for key in sources if row[key]), None)
    if source:
        accuracy, loss = row[source]["accuracy"], row[source]["loss"]
        noisy = "noisy " * (source == "evaluate" and loss is None)
        parts += [f"{noisy}{sources[source]} accuracy {accuracy:.3f}"]
        parts += [f"loss {loss:.3f}"] if loss is not None else []
    if row["epsilon_max"] is not None:
        parts += [f"ε {row['epsilon_max']:.3g}"]
    parts += [f"up {row['bytes_up'] / 1e6:.2f} MB", f"down {row['bytes_down'] / 1e6:.2f} MB"]
    parts += [f"{row['seconds']:.1f} s"]
    if row["failures"]:
        parts += [f"{row['failures']} failed"]
    if seconds_left:
        minutes, seconds = divmod(round(seconds_left), 60)
        parts += [f"{minutes}:{seconds:02d} left"]
    return "  ".join(parts)


def best_round(
    history: Sequence[Row], score: Callable[[Row], float | None], min_delta: float = 0.0
) -> int:
    """Return the last round whose score is more than `min_delta` above all before it; -1: none."""
    best, at = -math.inf, -1
    for row in history:
        value = score(row)
        if value is not None and value > best + (min_delta if at >= 0 else 0.0):
            best, at = value, row["round"]
    return at


def round_row(
    server_round: int,
    seconds: float,
    clients: int,
    failures: int,
    dropped: int,
    traffic: Traffic,
    train: Mapping[str, Any] | None,
    outcome: Outcome,
) -> Row:
    """Return one row of ``history.jsonl``; `train` are the mean scores on what was trained on."""
    return {
        "round": server_round,
        "seconds": seconds,
        "clients": clients,
        "failures": failures,
        "dropped": dropped,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "train": train,
        "evaluate": outcome.federated and outcome.federated.row(),
        "central": outcome.central and outcome.central.row(),
        "epsilon_max": outcome.spending.largest,
    }


def client_rows(
    server_round: int,
    trained: Mapping[int, MetricRecord],
    evaluated: Mapping[int, MetricRecord],
    epsilon: Mapping[int, float],
    num_labels: int,
) -> list[Row]:
    """One row per client: its accuracy on held-out examples where it evaluated any.

    What a reply does not tell is None, and so is what noisy counts would come to.
    """
    rows = []
    for partition in sorted({*trained, *evaluated}):
        train, held_out = trained.get(partition), evaluated.get(partition)
        scored = held_out if held_out and held_out["num-examples"] else train
        told = held_out and held_out["num-examples"] and "accuracy" in held_out
        of_labels = pooled([held_out], num_labels) if held_out and told else None
        timed = [record for record in (train, held_out) if record and "seconds" in record]
        rows.append(
            {
                "round": server_round,
                "partition": partition,
                "num_examples": train["num-examples"] if train else None,
                "accuracy": scored.get("accuracy") if scored else None,
                "loss": scored.get("loss") if scored else None,
                "recall_per_class": of_labels and of_labels.recall,
                "f1_per_class": of_labels and of_labels.f1,
                "epsilon": epsilon.get(partition),
                "seconds": sum(number(record, "seconds") for record in timed) if timed else None,
            }
        )
    return rows


def pooled(records: Sequence[MetricRecord], num_labels: int) -> Scores:
    """Add the clients' counts up, as if their held-out examples lay in one place."""
    support, predicted, correct = (
        np.array(
            [
                sum(int(number(record, f"{kind}-{k}")) for record in records)
                for k in range(num_labels)
            ],
            dtype=np.int64,
        ).clip(min=0)  # noisy counts may fall below
        for kind in COUNTS
    )
    means = mean_scores(records)
    right = np.minimum(correct, np.minimum(support, predicted))
    loss = means["loss"] if means else math.nan
    return Scores(loss, support, predicted, right)
