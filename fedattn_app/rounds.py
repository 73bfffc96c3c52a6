"""The loop over rounds: train, combine, evaluate, record.

It drives the hooks of any Flower `Strategy`, as `Strategy.start` does, and adds what that lacks:
repeatable sampling, a row per round and per client written at once, a checkpoint, and an end with
one clear line when a round brings nothing.
"""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import Strategy
from flwr.supercore.privacy_accounting import PrivacyAccountant

from fedattn_app.config import Config
from fedattn_app.errors import RunFailedError
from fedattn_app.grid import PartitionGrid, Traffic, error_line
from fedattn_app.parameters import NDArray
from fedattn_app.replies import (
    COUNTS,
    evaluate_keys,
    mean_scores,
    metrics_of,
    number,
    sound,
    train_keys,
)
from fedattn_app.results import Row, RunFolder
from fedattn_app.scores import Scores
from fedattn_app.spending import BudgetSpentError, Spending

# Of why the clients of a round failed, this many different reasons are told.
MOST_REASONS = 3

log = logging.getLogger("fedattn")


@dataclass
class Outcome:
    """What a run has come to so far."""

    arrays: ArrayRecord
    central: Scores | None = None
    federated: Scores | None = None
    worst_client: float | None = None
    history: list[Row] = field(default_factory=list)
    spending: Spending = field(default_factory=Spending)

    @property
    def scores(self) -> Scores | None:
        """The central scores where there are any, else the federated ones."""
        return self.central or self.federated


class Rounds:
    """Runs the rounds of one federation.

    Of the global model only the parameters `shared` ever change. `evaluate` scores them on the
    server's own examples, or is None where it has none; `message_config` goes with every message.
    `accountant` adds up what the server's own noise spends, where it adds any.
    """

    def __init__(
        self,
        strategy: Strategy,
        grid: PartitionGrid,
        folder: RunFolder,
        config: Config,
        shared: Collection[str],
        num_labels: int,
        evaluate: Callable[[Mapping[str, NDArray]], Scores] | None,
        message_config: Mapping[str, str],
        accountant: PrivacyAccountant | None = None,
    ) -> None:
        self.strategy = strategy
        self.grid = grid
        self.folder = folder
        self.config = config.federation
        self.privacy = config.privacy
        self.private = config.privacy.privacy == "dp-sgd"
        self.shared = shared
        self.num_labels = num_labels
        self.evaluate = evaluate
        self.message_config = message_config
        self.accountant = accountant

    def run(self, arrays: Mapping[str, NDArray]) -> Outcome:
        """Run from the folder's start round to the last one, from the global `arrays`.

        It ends early where too few clients have privacy budget left for another round. Raises
        `RunFailedError` where they have none for the first, and when every client of a round fails;
        what went before is in the folder.
        """
        outcome = Outcome(
            ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
            history=list(self.folder.earlier),
            spending=Spending(dict(self.folder.spent)),
        )
        if self.private:  # what they were asked in rounds that were lost, nobody knows
            outcome.spending.ask(self.folder.spent)
        self.grid.retired = outcome.spending.retired
        self._account([], outcome)  # of a run that is carried on
        first = self.folder.start_round + 1
        if first == 1:
            self._start(outcome)
        began = time.perf_counter()
        for server_round in range(first, self.config.num_rounds + 1):
            try:
                row = self._round(server_round, outcome)
            except BudgetSpentError as end:
                if server_round == 1:
                    raise RunFailedError(
                        f"no round was run: {end}; raise target-epsilon or the noise"
                    ) from None
                log.warning("the run ends after round %d: %s", server_round - 1, end)
                break
            done = server_round - first + 1
            left = (time.perf_counter() - began) / done * (self.config.num_rounds - server_round)
            log.info(round_line(row, self.config.num_rounds, left))
        return outcome

    def _start(self, outcome: Outcome) -> None:
        began = time.perf_counter()
        if self.evaluate:
            outcome.central = self.evaluate(self._shared(outcome))
        traffic = self._take_traffic()
        seconds = time.perf_counter() - began
        row = _row(0, seconds, 0, 0, traffic, None, outcome)
        self._record(row, [], outcome)
        log.info(round_line(row, self.config.num_rounds, None))

    def _round(self, server_round: int, outcome: Outcome) -> Row:
        began = time.perf_counter()
        self.grid.wait_for_clients(1, timeout=self.config.round_timeout)
        trained, failed_training = self._train(server_round, outcome)
        evaluated, failed_evaluation = self._evaluate(server_round, outcome)
        if self.evaluate:
            outcome.central = self.evaluate(self._shared(outcome))
            if not np.isfinite(outcome.central.loss):
                raise RunFailedError(
                    f"round {server_round}: the global model's test loss is not finite; lower "
                    f"learning-rate; the rounds before are in {self.folder.path}"
                )
        traffic = self._take_traffic()
        seconds = time.perf_counter() - began
        row = _row(
            server_round,
            seconds,
            len(trained),
            failed_training + failed_evaluation,
            traffic,
            mean_scores(list(trained.values())),
            outcome,
        )
        clients = _client_rows(server_round, trained, evaluated, outcome.spending.epsilon)
        if not self._num_examples_told:
            clients = [{**client, "num_examples": None} for client in clients]
        self._record(row, clients, outcome)
        return row

    @property
    def _num_examples_told(self) -> bool:
        return not self.private or self.privacy.num_examples_public

    def _train(self, server_round: int, outcome: Outcome) -> tuple[dict[int, MetricRecord], int]:
        self._check_budgets(outcome)
        try:
            with _sampling(self.config.seed, server_round, "train"):
                messages = list(
                    self.strategy.configure_train(
                        server_round, outcome.arrays, self._message_config(), self.grid
                    )
                )
        except PrivacyBudgetExhausted as error:
            raise BudgetSpentError(str(error).rstrip(".")) from None
        cohort = _Cohort(self._exchange(messages, train_keys(self.private), outcome))
        arrays, _ = self.strategy.aggregate_train(server_round, cohort)
        cohort.finish()
        outcome.spending.retire(cohort.spent)
        if cohort.spent and not cohort.good:
            self._check_budgets(outcome)
        elif messages and not cohort.good:
            silent = f"no reply within {self.config.round_timeout:g} s"
            reason = "; ".join(sorted(cohort.reasons)[:MOST_REASONS]) or silent
            raise RunFailedError(
                f"round {server_round}: all {len(messages)} clients failed: {reason}; "
                f"the rounds before are in {self.folder.path}"
            )
        if arrays is None:
            log.warning("round %d: nothing to combine; the model stays", server_round)
        else:
            outcome.arrays = arrays
        self._account(cohort.good, outcome)
        return cohort.good, len(messages) - len(cohort.good) - len(cohort.spent)

    def _account(self, clients: Collection[int], outcome: Outcome) -> None:
        """Take down what the server's own noise has spent, before anyone sees what it is on."""
        if self.accountant:
            self.folder.account(self.accountant.state_dict())
            outcome.spending.spend_alike(clients, self.accountant.get_privacy_spent().epsilon)

    def _check_budgets(self, outcome: Outcome) -> None:
        left, needed = len(list(self.grid.get_node_ids())), max(1, self.config.min_clients)
        outcome.spending.check(left, needed)

    def _evaluate(self, server_round: int, outcome: Outcome) -> tuple[dict[int, MetricRecord], int]:
        outcome.federated = outcome.worst_client = None
        with _sampling(self.config.seed, server_round, "evaluate"):
            messages = list(
                self.strategy.configure_evaluate(
                    server_round, outcome.arrays, self._message_config(), self.grid
                )
            )
        keys = evaluate_keys(self.private, self.num_labels)
        replies = list(self._exchange(messages, keys, outcome))
        self.strategy.aggregate_evaluate(server_round, replies)
        good = {
            reply.metadata.src_node_id: metrics_of(reply)
            for reply in replies
            if not reply.has_error()
        }
        counted = [record for record in good.values() if number(record, "num-examples")]
        if counted:
            outcome.federated = self._pool(counted)
            if not self.private:  # the least of noisy numbers tells of the noise
                outcome.worst_client = min(number(record, "accuracy") for record in counted)
        return good, len(messages) - len(good)

    def _pool(self, records: Sequence[MetricRecord]) -> Scores:
        """Add the clients' counts up, as if their held-out examples lay in one place."""
        support, predicted, correct = (
            np.array(
                [
                    sum(int(number(record, f"{kind}-{k}")) for record in records)
                    for k in range(self.num_labels)
                ],
                dtype=np.int64,
            ).clip(min=0)  # noisy counts may fall below
            for kind in COUNTS
        )
        means = mean_scores(records)
        right = np.minimum(correct, np.minimum(support, predicted))
        loss = means["loss"] if means else math.nan
        return Scores(loss, support, predicted, right)

    def _exchange(
        self, messages: Sequence[Message], keys: set[str], outcome: Outcome
    ) -> Iterator[Message]:
        """Send `messages` and yield the replies, those that are not sound as failed ones."""
        if not messages:
            return
        asked = {message.metadata.dst_node_id: message for message in messages}
        if self.private:
            outcome.spending.ask(asked)
        silent = set(asked)
        for answer in self.grid.send_and_receive(messages, timeout=self.config.round_timeout):
            partition = answer.metadata.src_node_id
            silent.discard(partition)
            reply = sound(
                asked[partition], answer, keys, outcome.spending.epsilon.get(partition, 0.0)
            )
            if reply.has_error():
                log.warning("client %d failed: %s", partition, error_line(reply))
            if self.private:
                outcome.spending.take(answer)
            yield reply
        for partition in sorted(silent):
            log.warning("client %d did not reply in time", partition)

    def _message_config(self) -> ConfigRecord:
        return ConfigRecord(dict(self.message_config))

    def _take_traffic(self) -> Traffic:
        taken, self.grid.traffic = self.grid.traffic, Traffic()
        return taken

    def _record(self, row: Row, clients: list[Row], outcome: Outcome) -> None:
        outcome.history.append(row)
        self.folder.add_round(row, clients)
        self.folder.checkpoint(row["round"], self._shared(outcome), self.grid.num_partitions)

    def _shared(self, outcome: Outcome) -> dict[str, NDArray]:
        return {
            name: array.numpy() for name, array in outcome.arrays.items() if name in self.shared
        }


class _Cohort:
    """The replies of those that train in a round, one at a time, and what is kept of them.

    Of those that took part it passes on all replies but those that tell of a spent budget.
    """

    def __init__(self, replies: Iterator[Message]) -> None:
        self.good: dict[int, MetricRecord] = {}
        self.spent: set[int] = set()
        self.reasons: set[str] = set()
        self._replies = self._usable(replies)

    def __iter__(self) -> Iterator[Message]:
        return self._replies

    def finish(self) -> None:
        """Take the replies that the strategy left."""
        deque(self._replies, maxlen=0)

    def _usable(self, replies: Iterator[Message]) -> Iterator[Message]:
        for reply in replies:
            partition = reply.metadata.src_node_id
            if reply.has_error():
                self.reasons.add(error_line(reply))
            elif metrics_of(reply).get("budget-spent"):
                self.spent.add(partition)
                continue
            else:
                self.good[partition] = metrics_of(reply)
            yield reply


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


@contextmanager
def _sampling(seed: int, server_round: int, stage: str) -> Iterator[None]:
    """Seed Python's global generator, from which Flower's strategies sample, and restore it."""
    before = random.getstate()
    random.seed(f"{seed}/{server_round}/{stage}")
    try:
        yield
    finally:
        random.setstate(before)


def _row(
    server_round: int,
    seconds: float,
    clients: int,
    failures: int,
    traffic: Traffic,
    train: Mapping[str, Any] | None,
    outcome: Outcome,
) -> Row:
    return {
        "round": server_round,
        "seconds": seconds,
        "clients": clients,
        "failures": failures,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "train": train,
        "evaluate": outcome.federated and outcome.federated.row(),
        "central": outcome.central and outcome.central.row(),
        "epsilon_max": outcome.spending.largest,
    }


def _client_rows(
    server_round: int,
    trained: Mapping[int, MetricRecord],
    evaluated: Mapping[int, MetricRecord],
    epsilon: Mapping[int, float],
) -> list[Row]:
    """One row per client: its accuracy on held-out examples where it evaluated any.

    What a reply does not tell is None.
    """
    rows = []
    for partition in sorted({*trained, *evaluated}):
        train, held_out = trained.get(partition), evaluated.get(partition)
        scored = held_out if held_out and held_out["num-examples"] else train
        timed = [record for record in (train, held_out) if record and "seconds" in record]
        rows.append(
            {
                "round": server_round,
                "partition": partition,
                "num_examples": train["num-examples"] if train else None,
                "accuracy": scored.get("accuracy") if scored else None,
                "loss": scored.get("loss") if scored else None,
                "epsilon": epsilon.get(partition),
                "seconds": sum(number(record, "seconds") for record in timed) if timed else None,
            }
        )
    return rows
