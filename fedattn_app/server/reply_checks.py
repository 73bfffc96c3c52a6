"""What the server makes of a reply before any strategy sees it."""

from collections.abc import Sequence

import numpy as np
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

COUNTS = ("support", "predicted", "correct")
# What no count, loss or time comes near, and what can still be added up and written.
MOST = 1e15


def sound(reply: Message, keys: set[str], spent: float) -> Message:
    """Return a `reply` whose metrics are sound, and a failed one in the place of any other.

    They are sound where they are the `keys` and no others, all finite numbers of a possible size,
    and ``epsilon``, if it is one of them, is no less than what the client has `spent`. Arrays are
    left to the strategy.
    """
    if reply.has_error():
        return reply
    fault = _metrics_fault(reply, keys, spent)
    return _failed_reply(reply, f"unsound reply: {fault}") if fault else reply


def metrics_of(reply: Message) -> MetricRecord:
    """Return the metrics of a sound reply."""
    return reply.content.metric_records["metrics"]


def epsilon_told(reply: Message) -> float | None:
    """Return what a node says that it has spent, in whatever reply; None where it says nothing."""
    if reply.has_error():
        return None
    records = reply.content.metric_records.values()
    told = [record["epsilon"] for record in records if "epsilon" in record]
    sound = (float(x) for x in told if not isinstance(x, list) and 0 <= x < np.inf)
    return max(sound, default=None)


def number(record: MetricRecord, key: str) -> float:
    """Return a metric that is one number."""
    value = record[key]
    assert isinstance(value, (int, float))
    return value


def mean_scores(records: Sequence[MetricRecord]) -> dict[str, float] | None:
    """Return loss and accuracy averaged over examples, or None where no reply tells them."""
    records = [record for record in records if "loss" in record]
    weights = [number(record, "num-examples") for record in records]
    if not sum(weights):
        return None
    return {
        key: float(np.average([number(record, key) for record in records], weights=weights))
        for key in ("loss", "accuracy")
    }


def train_keys(private: bool, weighting: str = "") -> set[str]:
    """Return the metrics of a reply to a training message; `private`: under ``dp-sgd``."""
    exact, noisy = {"loss", "accuracy", "seconds"}, {"epsilon", "budget-spent"}
    more = {"effective-number"} if weighting == "effective" else set()
    return {"num-examples", *(noisy if private else exact), *more}


def evaluate_keys(private: bool, num_labels: int) -> set[str]:
    """Return the metrics of a reply to an evaluation message."""
    return train_keys(private) | {f"{kind}-{k}" for kind in COUNTS for k in range(num_labels)}


def _metrics_fault(reply: Message, keys: set[str], spent: float) -> str | None:
    if list(reply.content.metric_records) != ["metrics"]:
        return "it must have one record of metrics"
    record = reply.content.metric_records["metrics"]
    if set(record) != keys:
        return f"its metrics differ in {', '.join(sorted(set(record) ^ keys))}"
    for key, value in record.items():
        if isinstance(value, list) or not np.isfinite(value):
            return f"{key} is not a finite number"
        noisy = key.partition("-")[0] in COUNTS
        if (value < 0 and not noisy) or (abs(value) > MOST and key != "epsilon"):
            return f"{key} is {value:.4g}"
    if "epsilon" in record and number(record, "epsilon") < spent:
        return (
            f"epsilon is {number(record, 'epsilon'):.4g} and was {spent:.4g} before: its privacy "
            "ledger is lost"
        )
    return None


def _failed_reply(reply: Message, reason: str) -> Message:
    """Return a failed reply from the node of `reply`."""
    node = reply.metadata.src_node_id
    failed = Message(
        Error(ErrorCode.UNKNOWN, reason),
        reply_to=Message(RecordDict(), node, reply.metadata.message_type),
    )
    failed.metadata.__dict__["_src_node_id"] = node  # Flower sets it from the environment
    return failed
