"""The loop over rounds: train, combine, evaluate, record.

It drives the hooks of any Flower `Strategy`, as `Strategy.start` does, and adds what that lacks:
repeatable sampling, a row per round and per client written at once, a checkpoint, the best model
beside the last, and an end with one clear line when a round brings nothing.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import PrivacyAccountant
from flwr.serverapp.exception import PrivacyBudgetExhausted

from fedattn_app.config import Config
from fedattn_app.errors import RunFailedError
from fedattn_app.metrics import Scores
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.server.async_messages import Stream
from fedattn_app.server.budgets import BudgetSpentError
from fedattn_app.server.cohort import Cohort, is_update
from fedattn_app.server.outcome import (
    Outcome,
    best_round,
    client_rows,
    pooled,
    round_line,
    round_row,
)
from fedattn_app.server.partition_grid import PartitionGrid, Traffic, error_line
from fedattn_app.server.reply_checks import (
    evaluate_keys,
    mean_scores,
    metrics_of,
    number,
    sound,
    train_keys,
)
from fedattn_app.server.strategy_factory import Phase
from fedattn_app.types import NDArray, Row

# Of why the clients of a round failed, this many different reasons are told.
MOST_REASONS = 3

log = logging.getLogger("fedattn")


class Rounds:
    """Runs the rounds of one federation.

    Each round is of the last of the `phases` that has begun. Of the global model only the
    parameters `kept` ever change. `evaluate` scores them on the server's own examples, or is None
    where it has none. `accountant` adds up what the server's own noise spends, where it adds any.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        grid: PartitionGrid,
        folder: RunFolder,
        config: Config,
        kept: Collection[str],
        num_labels: int,
        evaluate: Callable[[Mapping[str, NDArray]], Scores] | None,
        accountant: PrivacyAccountant | None = None,
    ) -> None:
        self.phases = phases
        self.grid = grid
        self.folder = folder
        self.config = config.federation
        self.privacy = config.privacy
        self.private = config.privacy.privacy == "dp-sgd"
        self.weighting = config.weighting
        self.kept = kept
        self.num_labels = num_labels
        self.evaluate = evaluate
        self.accountant = accountant
        self._best = -math.inf
        self.stream: Stream | None = None
        if config.aggregation.strategy == "fedbuff":
            self.buffer_size = config.aggregation.buffer_size
            self.stream = Stream(grid, config.aggregation.concurrency, self.config.round_timeout)

    def run(self, arrays: Mapping[str, NDArray]) -> Outcome:
        """Run from the folder's start round to the last one, from the global `arrays`.

        It ends early where too few clients have privacy budget left for another round, and where
        the score has not become better for long enough. Raises
        `RunFailedError` where they have none for the first, and when every client of a round fails;
        what went before is in the folder.
        """
        outcome = Outcome(
            ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
            history=list(self.folder.earlier),
            spending=self.folder.spending,
        )
        self.grid.retired = outcome.spending.retired
        self._account([], outcome)  # of a run that is carried on
        before = map(self._score, outcome.history[:-1])
        self._best = max((value for value in before if value is not None), default=-math.inf)
        first = self.folder.start_round + 1
        if not outcome.history:
            self._start(outcome)
        elif self._phase(first) is self._phase(first - 1):
            self._phase(first).remember(self.folder.memory)
        self._keep_best(outcome)  # of a run that is carried on, where it was stopped before it did
        began = time.perf_counter()
        for server_round in range(first, self.config.num_rounds + 1):
            if self._gets_no_better(outcome):
                break
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
        if self.evaluate and outcome.central is None:  # of a run carried on, without a round to run
            outcome.central = self.evaluate(self._kept(outcome))
        return outcome

    def _gets_no_better(self, outcome: Outcome) -> bool:
        """Whether the score was last better so many rounds ago that patience is over."""
        score, patience = self.config.score, self.config.patience
        best = best_round(outcome.history, self._score, self.config.min_delta)
        if not patience or best < 0 or outcome.history[-1]["round"] - best < patience:
            return False
        log.info("the run ends: no better %s since round %d (patience = %d)", score, best, patience)
        return True

    def _phase(self, server_round: int) -> Phase:
        return next(p for p in reversed(self.phases) if p.first <= max(server_round, 1))

    def _start(self, outcome: Outcome) -> None:
        began = time.perf_counter()
        if self.evaluate:
            outcome.central = self.evaluate(self._kept(outcome))
        traffic = self._take_traffic()
        seconds = time.perf_counter() - began
        row = round_row(0, seconds, 0, 0, 0, traffic, None, outcome)
        self._record(row, [], outcome)
        log.info(round_line(row, self.config.num_rounds, None))

    def _round(self, server_round: int, outcome: Outcome) -> Row:
        began = time.perf_counter()
        wanted = max(1, self.config.min_clients)
        self.grid.wait_for_clients(wanted, timeout=self.config.round_timeout)
        cohort, failed_training = self._train(server_round, outcome)
        trained = cohort.good
        evaluated, failed_evaluation = self._evaluate(server_round, outcome)
        if self.evaluate:
            outcome.central = self.evaluate(self._kept(outcome))
            if not np.isfinite(outcome.central.loss):
                raise RunFailedError(
                    f"round {server_round}: the global model's test loss is not finite; lower "
                    f"learning-rate; the rounds before are in {self.folder.path}"
                )
        traffic = self._take_traffic()
        seconds = time.perf_counter() - began
        row = round_row(
            server_round,
            seconds,
            cohort.updates,
            failed_training + failed_evaluation,
            len(self._phase(server_round).checks.dropped),
            traffic,
            mean_scores(list(trained.values())),
            outcome,
        )
        clients = client_rows(
            server_round, trained, evaluated, outcome.spending.epsilon, self.num_labels
        )
        if not self._num_examples_told:
            clients = [{**client, "num_examples": None} for client in clients]
        self._record(row, clients, outcome)
        return row

    @property
    def _num_examples_told(self) -> bool:
        return not self.private or self.privacy.num_examples_public

    def _train(self, server_round: int, outcome: Outcome) -> tuple[Cohort, int]:
        """Run one round of training; return who took part, and how many failed."""
        self._check_budgets(outcome)
        phase = self._phase(server_round)
        phase.checks.dropped.clear()
        try:
            replies, asked = self._asked_to_train(server_round, phase, outcome)
        except PrivacyBudgetExhausted as error:
            raise BudgetSpentError(str(error).rstrip(".")) from None
        self.folder.begin()
        keys = train_keys(self.private, self.weighting)
        cohort = Cohort(self._sound(replies, keys, outcome))
        arrays, _ = phase.strategy.aggregate_train(server_round, cohort)
        cohort.finish()
        cohort.drop(phase.checks.dropped)
        outcome.spending.retire(cohort.spent)
        if cohort.spent and not cohort.good:
            self._check_budgets(outcome)
        elif (asked or cohort.failed or self.stream) and not cohort.good:
            silent = f"no reply within {self.config.round_timeout:g} s"
            reason = "; ".join(sorted(cohort.reasons)[:MOST_REASONS]) or silent
            raise RunFailedError(
                f"round {server_round}: all {asked or cohort.failed} clients failed: {reason}; "
                f"the rounds before are in {self.folder.path}"
            )
        if arrays is None:
            log.warning("round %d: nothing to combine; the model stays", server_round)
        else:
            outcome.arrays = arrays
        self._account(cohort.good, outcome)
        return cohort, max(asked - cohort.updates - len(cohort.spent), cohort.failed)

    def _asked_to_train(
        self, server_round: int, phase: Phase, outcome: Outcome
    ) -> tuple[Iterator[Message], int]:
        """Return the replies that this round combines, as they come, and how many there may be."""
        stages = (f"train {number}" if number else "train" for number in count())

        def messages(limit: int | None = None) -> list[Message]:
            with _sampling(self.config.seed, server_round, next(stages)):
                made = phase.strategy.configure_train(
                    server_round, outcome.arrays, ConfigRecord({**phase.message_config}), self.grid
                )
                asked = list(islice(made, limit))
            self._take_down(asked, outcome)
            return asked

        if self.stream is None:
            asked = messages()
            return self._exchange(asked), len(asked)
        return self.stream.take(self.buffer_size, messages, partial(self._fills, phase, outcome)), 0

    def _fills(self, phase: Phase, outcome: Outcome, reply: Message) -> bool:
        """Whether a reply that was dealt with has filled a place in the buffer."""
        partition = reply.metadata.src_node_id
        keys = train_keys(self.private, self.weighting)
        reply = sound(reply, keys, outcome.spending.epsilon.get(partition, 0.0))
        return is_update(reply) and partition not in phase.checks.dropped

    def _account(self, clients: Collection[int], outcome: Outcome) -> None:
        """Take down what the server's own noise has spent, before anyone sees what it is on."""
        if self.accountant:
            self.folder.account(self.accountant.state_dict())
            outcome.spending.spend_alike(clients, self.accountant.get_privacy_spent().epsilon)

    def _take_down(self, messages: Sequence[Message], outcome: Outcome) -> None:
        """Take down who is to get `messages`: what they cost may never be told."""
        if self.private:
            outcome.spending.ask(message.metadata.dst_node_id for message in messages)
            self.folder.keep_spending(outcome.spending)

    def _check_budgets(self, outcome: Outcome) -> None:
        outcome.spending.check(self.grid.count_left(), max(1, self.config.min_clients))

    def _evaluate(self, server_round: int, outcome: Outcome) -> tuple[dict[int, MetricRecord], int]:
        outcome.federated, outcome.client_accuracies = None, ()
        if self.stream:  # nobody waits for anybody, but at the end
            if server_round < self.config.num_rounds:
                return {}, 0
            self.stream.close()
        if self.config.fraction_evaluate and not self.grid.count_left():
            return {}, 0  # Flower would wait for one to come
        phase = self._phase(server_round)
        with _sampling(self.config.seed, server_round, "evaluate"):
            messages = list(
                phase.strategy.configure_evaluate(
                    server_round, outcome.arrays, ConfigRecord({**phase.message_config}), self.grid
                )
            )
        self._take_down(messages, outcome)
        keys = evaluate_keys(self.private, self.num_labels)
        replies = list(self._sound(self._exchange(messages), keys, outcome))
        phase.strategy.aggregate_evaluate(server_round, replies)
        good = {
            reply.metadata.src_node_id: metrics_of(reply)
            for reply in replies
            if not reply.has_error()
        }
        counted = [record for record in good.values() if number(record, "num-examples")]
        if counted:
            outcome.federated = pooled(counted, self.num_labels)
            if not self.private:  # the least of noisy numbers tells of the noise
                outcome.client_accuracies = [number(record, "accuracy") for record in counted]
        return good, len(messages) - len(good)

    def _exchange(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Send `messages` and yield the replies."""
        if not messages:
            return
        silent = {message.metadata.dst_node_id for message in messages}
        for reply in self.grid.send_and_receive(messages, timeout=self.config.round_timeout):
            silent.discard(reply.metadata.src_node_id)
            yield reply
        for partition in sorted(silent):
            log.warning("client %d did not reply in time", partition)

    def _sound(
        self, replies: Iterator[Message], keys: set[str], outcome: Outcome
    ) -> Iterator[Message]:
        """Yield the `replies`, those that are not sound as failed ones."""
        for answer in replies:
            partition = answer.metadata.src_node_id
            reply = sound(answer, keys, outcome.spending.epsilon.get(partition, 0.0))
            if reply.has_error():
                log.warning("client %d failed: %s", partition, error_line(reply))
            if self.private:
                outcome.spending.take(answer)
            yield reply

    def _take_traffic(self) -> Traffic:
        taken, self.grid.traffic = self.grid.traffic, Traffic()
        return taken

    def _record(self, row: Row, clients: list[Row], outcome: Outcome) -> None:
        outcome.history.append(row)
        if self.privacy.privacy != "none":
            self.folder.keep_spending(outcome.spending)
        self.folder.add_round(row, clients)
        memory = self._phase(row["round"]).memory
        self.folder.checkpoint(row["round"], self._kept(outcome), self.grid.num_partitions, memory)
        self._keep_best(outcome)

    def _keep_best(self, outcome: Outcome) -> None:
        """Keep the newest model if it is the one with the best score."""
        newest = outcome.history[-1]
        value = self._score(newest)
        if value is not None and value > self._best:
            self._best = value
            if newest["round"] != self.folder.best[0]:
                self.folder.keep_best(newest["round"], self._kept(outcome))

    def _score(self, row: Row) -> float | None:
        """Return the score that the best model has most of, or None where there is none.

        Under ``client-dp`` what clients hold out has no part in it: the choice would tell of that.
        """
        scores = row["central"]
        if not scores and self.privacy.privacy != "client-dp":
            scores = row["evaluate"]
        if not scores:
            return None
        value: float | None = scores[self.config.score.replace("-", "_")]
        return -value if value is not None and self.config.score == "loss" else value

    def _kept(self, outcome: Outcome) -> dict[str, NDArray]:
        return {name: array.numpy() for name, array in outcome.arrays.items() if name in self.kept}


@contextmanager
def _sampling(seed: int, server_round: int, stage: str) -> Iterator[None]:
    """Seed Python's global generator, from which Flower's strategies sample, and restore it."""
    before = random.getstate()
    random.seed(f"{seed}/{server_round}/{stage}")
    try:
        yield
    finally:
        random.setstate(before)
