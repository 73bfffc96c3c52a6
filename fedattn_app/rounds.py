"""The loop over rounds: train, combine, evaluate, record.

It drives the hooks of any Flower `Strategy`, as `Strategy.start` does, and adds what that lacks:
repeatable sampling, a row per round and per client written at once, a checkpoint, and an end with
one clear line when a round brings nothing.
"""

import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedattn_app.config import FederationConfig
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

log = logging.getLogger("fedattn")


@dataclass
class Outcome:
    """What a run has come to so far."""

    arrays: ArrayRecord
    central: Scores | None = None
    federated: Scores | None = None
    worst_client: float | None = None
    history: list[Row] = field(default_factory=list)

    @property
    def scores(self) -> Scores | None:
        """The central scores where there are any, else the federated ones."""
        return self.central or self.federated


class Rounds:
    """Runs the rounds of one federation.

    Of the global model only the parameters `shared` ever change. `evaluate` scores them on the
    server's own examples, or is None where it has none; `message_config` goes with every message.
    """

    def __init__(
        self,
        strategy: Strategy,
        grid: PartitionGrid,
        folder: RunFolder,
        config: FederationConfig,
        shared: Collection[str],
        num_labels: int,
        evaluate: Callable[[Mapping[str, NDArray]], Scores] | None,
        message_config: Mapping[str, str],
    ) -> None:
        self.strategy = strategy
        self.grid = grid
        self.folder = folder
        self.config = config
        self.shared = shared
        self.num_labels = num_labels
        self.evaluate = evaluate
        self.message_config = message_config

    def run(self, arrays: Mapping[str, NDArray]) -> Outcome:
        """Run from the folder's start round to the last one, from the global `arrays`.

        Raises `RunFailedError` when every client of a round fails; what went before is in the
        folder.
        """
        outcome = Outcome(
            ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
            history=list(self.folder.earlier),
        )
        first = self.folder.start_round + 1
        if first == 1:
            self._start(outcome)
        began = time.perf_counter()
        for server_round in range(first, self.config.num_rounds + 1):
            row = self._round(server_round, outcome)
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
        row = _row(0, seconds, 0, 0, traffic, None, None, outcome.central)
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
            outcome.federated,
            outcome.central,
        )
        self._record(row, _client_rows(server_round, trained, evaluated), outcome)
        return row

    def _train(self, server_round: int, outcome: Outcome) -> tuple[dict[int, MetricRecord], int]:
        with _sampling(self.config.seed, server_round, "train"):
            messages = list(
                self.strategy.configure_train(
                    server_round, outcome.arrays, self._message_config(), self.grid
                )
            )
        replies = self._exchange(messages, train_keys())
        good = metrics_of(replies)
        if messages and not good:
            reasons = {error_line(reply) for reply in replies if reply.has_error()}
            reason = min(reasons, default=f"no reply within {self.config.round_timeout:g} s")
            raise RunFailedError(
                f"round {server_round}: all {len(messages)} clients failed: {reason}; "
                f"the rounds before are in {self.folder.path}"
            )
        arrays, _ = self.strategy.aggregate_train(server_round, replies)
        if arrays is None:
            log.warning("round %d: nothing to combine; the model stays", server_round)
        else:
            outcome.arrays = arrays
        return good, len(messages) - len(good)

    def _evaluate(self, server_round: int, outcome: Outcome) -> tuple[dict[int, MetricRecord], int]:
        outcome.federated = outcome.worst_client = None
        with _sampling(self.config.seed, server_round, "evaluate"):
            messages = list(
                self.strategy.configure_evaluate(
                    server_round, outcome.arrays, self._message_config(), self.grid
                )
            )
        replies = self._exchange(messages, evaluate_keys(self.num_labels))
        self.strategy.aggregate_evaluate(server_round, replies)
        good = metrics_of(replies)
        counted = [record for record in good.values() if number(record, "num-examples")]
        if counted:
            outcome.federated = self._pool(counted)
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
            )
            for kind in COUNTS
        )
        sizes = [number(record, "num-examples") for record in records]
        loss = np.average([number(record, "loss") for record in records], weights=sizes)
        return Scores(float(loss), support, predicted, correct)

    def _exchange(self, messages: Sequence[Message], keys: set[str]) -> list[Message]:
        if not messages:
            return []
        asked = {message.metadata.dst_node_id: message for message in messages}
        answers = list(self.grid.send_and_receive(messages, timeout=self.config.round_timeout))
        replies = sound(asked, answers, keys)
        for reply in replies:
            if reply.has_error():
                log.warning("client %d failed: %s", reply.metadata.src_node_id, error_line(reply))
        if len(replies) < len(messages):
            log.warning("%d clients did not reply in time", len(messages) - len(replies))
        return replies

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


def round_line(row: Row, num_rounds: int, seconds_left: float | None) -> str:
    """Return the log line of one row of ``history.jsonl``."""
    parts = [f"round {row['round']:>{len(str(num_rounds))}}/{num_rounds}"]
    sources = {"central": "test", "evaluate": "held-out", "train": "training"}
    source = next((key for key in sources if row[key]), None)
    if source:
        accuracy, loss = row[source]["accuracy"], row[source]["loss"]
        parts += [f"{sources[source]} accuracy {accuracy:.3f}  loss {loss:.3f}"]
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
    evaluate: Scores | None,
    central: Scores | None,
) -> Row:
    return {
        "round": server_round,
        "seconds": seconds,
        "clients": clients,
        "failures": failures,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "train": train,
        "evaluate": evaluate and evaluate.row(),
        "central": central and central.row(),
        "epsilon_max": None,
    }


def _client_rows(
    server_round: int,
    trained: Mapping[int, MetricRecord],
    evaluated: Mapping[int, MetricRecord],
) -> list[Row]:
    """One row per client: its accuracy on held-out examples where it evaluated any."""
    rows = []
    for partition in sorted({*trained, *evaluated}):
        train, held_out = trained.get(partition), evaluated.get(partition)
        scored = held_out if held_out and held_out["num-examples"] else train
        seconds = [number(record, "seconds") for record in (train, held_out) if record]
        rows.append(
            {
                "round": server_round,
                "partition": partition,
                "num_examples": train["num-examples"] if train else None,
                "accuracy": scored["accuracy"] if scored else None,
                "loss": scored["loss"] if scored else None,
                "epsilon": None,
                "seconds": sum(seconds),
            }
        )
    return rows
