"""The replies of the clients of one round, sorted into valid, failed and out of budget.

The server decides only here whether a reply counts as failed.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Set

from flwr.app import Message, MetricRecord

from fedattn_app.server.budgets import Budgets
from fedattn_app.server.reply_checks import error_line, metrics_fault, metrics_of, number
from strategies.common.replies import printable

MAX_FAILURE_REASONS = 3  # distinct ones, in the error of a round that brings too little

log = logging.getLogger("fedattn")


class Cohort:
    """An iterator over the valid replies of a round that also records each client's outcome.

    Args:
        replies: all replies, in the order of partitions, as they come.
        expected_metrics: the names of the metrics that a valid reply has.
        budgets: what each client has spent.
        protected_on_node: whether the clients report what they have spent.

    Attributes:
        metrics: the metrics of each valid reply, by partition.
        failures: why each of the other clients failed, by partition.
        out_of_budget: the metrics of the clients whose privacy budget did not suffice.
    """

    def __init__(
        self,
        replies: Iterator[Message],
        expected_metrics: Set[str],
        budgets: Budgets,
        protected_on_node: bool,
    ) -> None:
        self.metrics: dict[int, MetricRecord] = {}
        self.failures: dict[int, str] = {}
        self.out_of_budget: dict[int, MetricRecord] = {}
        self._expected_metrics = expected_metrics
        self._budgets = budgets
        self._protected_on_node = protected_on_node
        self._valid = self._sorted(replies)

    def __iter__(self) -> Iterator[Message]:
        return self._valid

    def finish(self) -> None:
        """Read the remaining replies, so that their outcomes are recorded too."""
        deque(self._valid, maxlen=0)

    def drop(self, refused: Mapping[int, str]) -> None:
        """Count clients as failed; `refused` has the reason for each, by partition."""
        for partition, reason in refused.items():
            self.metrics.pop(partition, None)
            self.failures[partition] = reason

    def has_examples(self, partition: int) -> bool:
        """Return whether a client's reply is valid and reports more than 0 examples."""
        metrics = self.metrics.get(partition)
        return metrics is not None and number(metrics, "num-examples") > 0

    @property
    def num_updates(self) -> int:
        """The number of replies that enter the combination: valid ones, with examples."""
        return sum(map(self.has_examples, self.metrics))

    @property
    def num_replies(self) -> int:
        """The number of all replies, failures included."""
        return len(self.metrics.keys() | self.failures.keys() | self.out_of_budget.keys())

    def shortfall(self, num_silent: int, timeout: float) -> str:
        """Return why there are not more updates, in one line.

        Args:
            num_silent: the number of clients that have not replied.
            timeout: the seconds after which they are not waited for.
        """
        reasons = sorted(set(self.failures.values()))[:MAX_FAILURE_REASONS]
        counts = {
            f"did not reply within {timeout:g} s": num_silent,
            "without examples": len(self.metrics) - self.num_updates,
            "without privacy budget": len(self.out_of_budget),
        }
        reasons += [f"{number} {what}" for what, number in counts.items() if number]
        return "; ".join(reasons) or f"no reply within {timeout:g} s"

    def _sorted(self, replies: Iterator[Message]) -> Iterator[Message]:
        for reply in replies:
            partition = reply.metadata.src_node_id
            fault = self._fault(reply, partition)
            if fault is not None:
                log.warning("client %d failed: %s", partition, fault)
                self.failures[partition] = fault
            elif metrics_of(reply).get("budget-spent"):
                self.out_of_budget[partition] = metrics_of(reply)
            else:
                self.metrics[partition] = metrics_of(reply)
                yield reply

    def _fault(self, reply: Message, partition: int) -> str | None:
        if reply.has_error():
            return error_line(reply)
        spent = self._budgets.epsilon.get(partition, 0.0)
        fault = metrics_fault(reply, self._expected_metrics, spent, self._protected_on_node)
        if self._protected_on_node:
            self._budgets.record_reply(reply)
        return fault and printable(f"invalid reply: {fault}")
