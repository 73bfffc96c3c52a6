"""Check the metrics of a reply, before any strategy sees it, and read them."""

import re
from collections.abc import Sequence, Set

import numpy as np
from flwr.app import Message, MetricRecord

from fedattn_app.metrics import COUNT_NAMES
from strategies.common.replies import printable

# No count, loss or time comes near it, and it can still be summed and written as JSON.
MAX_METRIC = 1e15
MAX_REASON_LENGTH = 10_000  # characters of a failed reply's reason that are read, from its end


def metrics_fault(
    reply: Message, expected: Set[str], spent: float = 0.0, noisy: bool = False
) -> str | None:
    """Return what is wrong with the metrics of a reply that has not failed, or None.

    Args:
        reply: the reply; its arrays are checked by the strategy.
        expected: the names of the metrics. Each must be a finite number of a possible size.
        spent: what the client has spent so far; an ``epsilon`` in the reply must be no less.
        noisy: whether counts carry noise; without it they must agree with each other.
    """
    if list(reply.content.metric_records) != ["metrics"]:
        return "it must have one record of metrics"
    metrics = metrics_of(reply)
    if set(metrics) != expected:
        return f"its metrics differ in {', '.join(sorted(set(metrics) ^ expected))}"
    for key, value in metrics.items():
        if isinstance(value, list) or not np.isfinite(value):
            return f"{key} is not a finite number"
        may_be_negative = noisy and key.partition("-")[0] in COUNT_NAMES
        limit = np.inf if key == "epsilon" else 1.0 if key == "accuracy" else MAX_METRIC
        if (value < 0 and not may_be_negative) or abs(value) > limit:
            return f"{key} is {value:.4g}"
    if "epsilon" in metrics and number(metrics, "epsilon") < spent:
        return (
            f"epsilon is {number(metrics, 'epsilon'):.4g} and was {spent:.4g} before: its privacy "
            "ledger is lost"
        )
    return None if noisy else _counts_fault(metrics)


def _counts_fault(metrics: MetricRecord) -> str | None:
    """Return what is wrong with exact counts, or None."""
    num_examples = number(metrics, "num-examples")
    if num_examples % 1:
        return f"num-examples is {num_examples:.4g}"
    support, predicted, correct = (
        np.array([number(metrics, key) for key in sorted(metrics) if key.startswith(f"{name}-")])
        for name in COUNT_NAMES
    )
    if not len(support):
        return None
    whole = not any((counts % 1).any() for counts in (support, predicted, correct))
    complete = support.sum() == predicted.sum() == num_examples
    if not (whole and complete and (correct <= np.minimum(support, predicted)).all()):
        return "its counts contradict each other"
    return None


def metrics_of(reply: Message) -> MetricRecord:
    """Return the metrics of a valid reply."""
    return reply.content.metric_records["metrics"]


def reported_epsilon(reply: Message) -> float | None:
    """Return the largest ε in a reply that has not failed, valid or not; None without any."""
    records = reply.content.metric_records.values()
    reported = [record["epsilon"] for record in records if "epsilon" in record]
    usable = (float(x) for x in reported if not isinstance(x, list) and 0 <= x < np.inf)
    return max(usable, default=None)


def number(metrics: MetricRecord, key: str) -> float:
    """Return a metric that is a single number."""
    value = metrics[key]
    assert isinstance(value, (int, float))
    return value


def mean_scores(records: Sequence[MetricRecord]) -> dict[str, float] | None:
    """Return loss and accuracy averaged over examples, or None if no reply reports them."""
    records = [record for record in records if "loss" in record]
    weights = [number(record, "num-examples") for record in records]
    if not sum(weights):
        return None
    return {
        key: float(np.average([number(record, key) for record in records], weights=weights))
        for key in ("loss", "accuracy")
    }


def error_line(reply: Message) -> str:
    """Return the last line of the reason that a failed reply gives, without Flower's wrapping."""
    reason = (reply.error.reason or "").strip()[-MAX_REASON_LENGTH:]
    lines = [line for line in reason.splitlines() if line.strip()]
    if not lines:
        return f"error code {reply.error.code}"
    line = re.sub(r"^(<class '.*?'>:<'|.* Message: )(.*?)('>)?$", r"\2", lines[-1].strip())
    return printable(line)
