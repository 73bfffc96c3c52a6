"""The rows of ``history.jsonl`` and ``clients.jsonl``, and the log line of a round."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import MetricRecord

from fedattn_app.metrics import COUNT_NAMES, Scores
from fedattn_app.server.cohort import Cohort
from fedattn_app.server.outcome import Outcome
from fedattn_app.server.partition_grid import Traffic
from fedattn_app.server.reply_checks import mean_scores, number
from fedattn_app.types import Row

# What a log line calls the scores of a row, in order of preference.
SCORE_SOURCES = {"central": "test", "evaluate": "held-out", "train": "training"}


def round_row(
    server_round: int,
    seconds: float,
    traffic: Traffic,
    outcome: Outcome,
    trained: Cohort | None = None,
    num_failed: int = 0,
    num_dropped: int = 0,
) -> Row:
    """Return one row of ``history.jsonl``.

    Args:
        server_round: the round, 0 for the model before any training.
        seconds: how long the round took.
        traffic: the payload bytes of the round.
        outcome: the run after the round.
        trained: the clients that trained; None in round 0.
        num_failed: the number of messages without a valid reply.
        num_dropped: the number of updates that were refused.
    """
    records = list(trained.metrics.values()) if trained else []
    return {
        "round": server_round,
        "seconds": seconds,
        "clients": len(records),
        "failures": num_failed,
        "dropped": num_dropped,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "train": mean_scores(records),
        "evaluate": outcome.federated and outcome.federated.row(),
        "central": outcome.central and outcome.central.row(),
        "epsilon_max": outcome.budgets.largest,
    }


def client_rows(
    server_round: int,
    trained: Mapping[int, MetricRecord],
    evaluated: Mapping[int, MetricRecord],
    epsilon: Mapping[int, float],
    num_labels: int,
    with_num_examples: bool = True,
) -> list[Row]:
    """Return one row of ``clients.jsonl`` for each client that trained or evaluated.

    Accuracy and loss are those on held-out examples if the client evaluated any, else those of
    training. A value is None if the reply does not report it, or if it would follow from noisy
    counts.

    Args:
        server_round: the round.
        trained: the metrics of training replies, by partition.
        evaluated: the metrics of evaluation replies, by partition.
        epsilon: what each client has spent.
        num_labels: the number of labels.
        with_num_examples: whether the reported numbers of examples are the true ones.
    """
    rows = []
    for partition in sorted({*trained, *evaluated}):
        train, held_out = trained.get(partition), evaluated.get(partition)
        scored = held_out if held_out and held_out["num-examples"] else train
        exact = held_out and held_out["num-examples"] and "accuracy" in held_out
        by_label = pooled_scores([held_out], num_labels) if held_out and exact else None
        timed = [record for record in (train, held_out) if record and "seconds" in record]
        rows.append(
            {
                "round": server_round,
                "partition": partition,
                "num_examples": train["num-examples"] if train and with_num_examples else None,
                "accuracy": scored.get("accuracy") if scored else None,
                "loss": scored.get("loss") if scored else None,
                "recall_per_class": by_label and by_label.recall,
                "f1_per_class": by_label and by_label.f1,
                "epsilon": epsilon.get(partition),
                "seconds": sum(number(record, "seconds") for record in timed) if timed else None,
            }
        )
    return rows


def pooled_scores(records: Sequence[MetricRecord], num_labels: int) -> Scores:
    """Return the scores of all clients' held-out examples together, from the clients' counts."""
    support, predicted, correct = (
        np.array(
            [
                sum(int(number(record, f"{name}-{k}")) for record in records)
                for k in range(num_labels)
            ],
            dtype=np.int64,
        ).clip(min=0)  # noisy counts may be negative
        for name in COUNT_NAMES
    )
    means = mean_scores(records)
    loss = means["loss"] if means else math.nan
    return Scores(loss, support, predicted, np.minimum(correct, np.minimum(support, predicted)))


def round_line(row: Row, num_rounds: int, seconds_left: float | None) -> str:
    """Return the log line of a row of ``history.jsonl``."""
    parts = [f"round {row['round']:>{len(str(num_rounds))}}/{num_rounds}"]
    source = next((key for key in SCORE_SOURCES if row[key]), None)
    if source:
        accuracy, loss = row[source]["accuracy"], row[source]["loss"]
        noisy = "noisy " * (source == "evaluate" and loss is None)
        parts += [f"{noisy}{SCORE_SOURCES[source]} accuracy {accuracy:.3f}"]
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
