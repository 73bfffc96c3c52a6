"""The loop over rounds: train, combine, evaluate, and report to the observers.

It calls the methods of any Flower `Strategy`, as Flower's `Strategy.start` does. It adds repeatable
sampling, asynchronous rounds, observers, and a one-line error for a round in which too few clients
reply.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count, islice

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.exception import PrivacyBudgetExhausted

from fedattn_app.config import Config
from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import seeded_sampling
from fedattn_app.metrics import Scores
from fedattn_app.privacy.protections import Protection
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.server.async_messages import AsyncMessages
from fedattn_app.server.budgets import BudgetSpentError, SpendingRecord
from fedattn_app.server.cohort import Cohort
from fedattn_app.server.observers import RoundEnd, RoundObserver
from fedattn_app.server.outcome import Outcome
from fedattn_app.server.partition_grid import PartitionGrid, Traffic
from fedattn_app.server.quorum import Quorum
from fedattn_app.server.records import client_rows, pooled_scores, round_row
from fedattn_app.server.reply_checks import number
from fedattn_app.server.strategy_factory import Phase
from fedattn_app.types import NDArray, Row
from strategies import ClippingNormError

log = logging.getLogger("fedattn")


class Rounds:
    """Runs the rounds of one federation.

    Args:
        phases: the phases of the run, each with its strategy, in the order of their first rounds.
        grid: the nodes.
        folder: the run's folder, for what must be on disk before a message is sent.
        config: the settings of the run.
        protection: the protection of the run.
        quorum: how many clients must reply.
        changeable: the names of the parameters that training may change.
        num_labels: the number of labels.
        evaluate: returns the scores of arrays on the server's test set; None without a test set.
        observers: called after each round, in this order.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        grid: PartitionGrid,
        folder: RunFolder,
        config: Config,
        protection: Protection,
        quorum: Quorum,
        changeable: Collection[str],
        num_labels: int,
        evaluate: Callable[[Mapping[str, NDArray]], Scores] | None,
        observers: Sequence[RoundObserver],
    ) -> None:
        self.phases = phases
        self.grid = grid
        self.folder = folder
        self.config = config.federation
        self.protection = protection
        self.quorum = quorum
        self.changeable = changeable
        self.num_labels = num_labels
        self.evaluate = evaluate
        self.observers = observers
        self.spending = SpendingRecord(folder, protection, phases[0].accountant)
        self._score_faults: set[str] = set()  # those logged so far
        self.asynchronous: AsyncMessages | None = None
        if config.aggregation.strategy == "fedbuff":
            self.buffer_size = config.aggregation.fedbuff_buffer_size
            self.asynchronous = AsyncMessages(
                grid, config.aggregation.fedbuff_concurrency, self.config.round_timeout
            )

    def run(self, outcome: Outcome, rule_state: Mapping[str, NDArray]) -> None:
        """Run the rounds after those in `outcome`, and update `outcome` after each.

        `rule_state` has the arrays that the rule kept in the run that is resumed. The run ends
        early if an observer has a reason, or if too few clients have privacy budget for another
        round. Raises `RunFailedError` if the budget does not suffice for the first round, or if
        too few clients of a round reply; the rounds before it are in the folder.
        """
        self.grid.retired = outcome.budgets.retired
        self.spending.account(
            [], outcome.budgets
        )  # what the earlier rounds of a resumed run have spent
        first = outcome.last_round + 1
        if outcome.history:
            if self._phase(first) is self._phase(first - 1):
                self._phase(first).load_state(rule_state)
            self._notify_start(self._end(outcome))
        else:
            self._notify_start(None)
            self._round_zero(outcome)
        for server_round in range(first, self.config.num_rounds + 1):
            reasons = (observer.reason_to_stop(outcome) for observer in self.observers)
            if reason := next(filter(None, reasons), None):
                log.info("the run ends: %s", reason)
                break
            try:
                self._round(server_round, outcome)
            except BudgetSpentError as end:
                if server_round == 1:
                    raise RunFailedError(
                        f"no round was run: {end}; raise target-epsilon or the noise"
                    ) from None
                log.warning("the run ends after round %d: %s", server_round - 1, end)
                break
        if self.evaluate and outcome.central is None:  # of a resumed run without a round to run
            outcome.central = self.evaluate(self._changeable_arrays(outcome))

    def _notify_start(self, resumed: RoundEnd | None) -> None:
        for observer in self.observers:
            observer.run_started(resumed)

    def _notify_end(self, end: RoundEnd) -> None:
        for observer in self.observers:
            observer.round_ended(end)

    def _phase(self, server_round: int) -> Phase:
        """Return the most recent phase whose first round has been reached."""
        return next(p for p in reversed(self.phases) if p.first_round <= max(server_round, 1))

    def _round_zero(self, outcome: Outcome) -> None:
        """Score the model before any training."""
        began = time.perf_counter()
        if self.evaluate:
            outcome.central = self.evaluate(self._changeable_arrays(outcome))
        traffic = self._take_traffic()
        outcome.history.append(round_row(0, time.perf_counter() - began, traffic, outcome))
        self._notify_end(self._end(outcome))

    def _round(self, server_round: int, outcome: Outcome) -> None:
        began = time.perf_counter()
        self.grid.wait_for_clients(self._min_clients, timeout=self.config.round_timeout)
        trained, num_failed_training = self._train(server_round, outcome)
        evaluated, num_failed_evaluating = self._evaluate(server_round, outcome)
        if self.evaluate:
            outcome.central = self.evaluate(self._changeable_arrays(outcome))
            if not np.isfinite(outcome.central.loss):
                raise self._failed(
                    server_round,
                    "the global model's test loss is not finite; lower learning-rate, or set "
                    "update-drop-norm if a client may send anything",
                )
        traffic = self._take_traffic()
        row = round_row(
            server_round,
            time.perf_counter() - began,
            traffic,
            outcome,
            trained,
            num_failed_training + num_failed_evaluating,
            len(self._phase(server_round).refused),
        )
        outcome.history.append(row)
        outcome.last_round = server_round
        clients = client_rows(
            server_round,
            trained.metrics,
            {**evaluated.metrics, **evaluated.out_of_budget} if evaluated else {},
            outcome.budgets.epsilon,
            self.num_labels,
            self.protection.reports_num_examples,
        )
        self._notify_end(self._end(outcome, clients))

    def _train(self, server_round: int, outcome: Outcome) -> tuple[Cohort, int]:
        """Run one round of training; return its cohort and the number of failures.

        The round is repeated for as long as it has too few updates because clients report that
        their budget is spent.
        """
        phase = self._phase(server_round)
        while (attempt := self._attempt(server_round, phase, outcome)) is None:
            log.info("round %d is repeated without the clients that have no budget", server_round)
        arrays, cohort, num_asked = attempt
        if arrays is None:
            log.warning("round %d: nothing to combine; the model stays", server_round)
        else:
            outcome.arrays = arrays
        self.spending.account(cohort.metrics, outcome.budgets)
        num_answered = len(cohort.metrics) + len(cohort.out_of_budget)
        return cohort, max(num_asked - num_answered, len(cohort.failures))

    def _attempt(
        self, server_round: int, phase: Phase, outcome: Outcome
    ) -> tuple[ArrayRecord | None, Cohort, int] | None:
        """Let clients train once; return the combined arrays, the cohort, and how many were asked.

        Returns None if there are too few updates and clients have reported a spent budget. Raises
        `RunFailedError` if there are too few for another reason or if the parameters have grown too
        large for `max-update-norm`, and `BudgetSpentError`.
        """
        self._check_budgets(outcome)
        try:
            cohort, num_asked = self._send_training_messages(server_round, phase, outcome)
        except PrivacyBudgetExhausted as error:
            raise BudgetSpentError(str(error).rstrip(".")) from None
        except ClippingNormError as error:
            raise self._failed(server_round, f"max-update-norm = {error}") from None
        needed = self.quorum.of_updates(num_asked)
        # Who answered is private where the server adds the noise, so that nothing may depend on it:
        # there, the quorum is one of the clients that are asked.
        released = self.protection.server_accounts
        phase.begin_round(1 if released else needed)
        arrays, _ = phase.strategy.aggregate_train(server_round, cohort)
        cohort.finish()
        cohort.drop(phase.refused)
        outcome.budgets.retire(cohort.out_of_budget)
        if cohort.num_updates >= needed or (released and cohort.metrics):
            return arrays, cohort, num_asked
        self.spending.write(outcome.budgets)
        if cohort.out_of_budget:
            return None
        total = num_asked or cohort.num_replies
        fault = f"all {total} clients failed"
        if cohort.metrics:
            sent = f"{cohort.num_updates} of {total} clients sent a valid update"
            fault = self.quorum.fault(sent, num_asked)
        why = cohort.shortfall(total - cohort.num_replies, self.config.round_timeout)
        raise self._failed(server_round, f"{fault}: {why}")

    def _failed(self, server_round: int, fault: str) -> RunFailedError:
        return RunFailedError(
            f"round {server_round}: {fault}; the rounds before are in {self.folder.path}"
        )

    def _send_training_messages(
        self, server_round: int, phase: Phase, outcome: Outcome
    ) -> tuple[Cohort, int]:
        """Send the training messages of a round; return the cohort and the number of messages.

        The cohort yields the replies as they come. In asynchronous rounds the number is 0, because
        a round does not wait for all messages.
        """
        stages = (f"train {number}" if number else "train" for number in count())

        def messages(limit: int | None = None) -> list[Message]:
            with seeded_sampling(self.config.seed, server_round, next(stages)):
                made = phase.strategy.configure_train(
                    server_round, outcome.arrays, ConfigRecord({**phase.message_config}), self.grid
                )
                sampled = list(islice(made, limit))
            if limit is None and len(sampled) < self.quorum.of_updates():
                fault = self.quorum.fault(f"{len(sampled)} clients can be asked", len(sampled))
                raise self._failed(server_round, fault)
            self.folder.remove_final_files()  # those of a resumed run are out of date from now on
            self.spending.record_messages(sampled, outcome.budgets)
            return sampled

        metrics = self.protection.train_metrics()
        if self.asynchronous is None:
            sampled = messages()
            return self._cohort(
                self.grid.exchange(sampled, self.config.round_timeout), metrics, outcome
            ), len(sampled)

        def fills_buffer(reply: Message) -> bool:
            partition = reply.metadata.src_node_id
            return cohort.has_examples(partition) and partition not in phase.refused

        replies = self.asynchronous.take(self.buffer_size, messages, fills_buffer)
        cohort = self._cohort(replies, metrics, outcome)
        return cohort, 0

    def _evaluate(self, server_round: int, outcome: Outcome) -> tuple[Cohort | None, int]:
        """Let clients evaluate the model; return their cohort and the number of failures.

        The cohort is None in asynchronous rounds before the last one, and if no client is left.
        """
        outcome.federated, outcome.client_accuracies = None, ()
        if self.asynchronous:  # no client waits for others, except at the end
            if server_round < self.config.num_rounds:
                return None, 0
            self.asynchronous.close()
        if self.config.fraction_evaluate and not self.grid.count_left():
            return None, 0  # Flower would wait for a node
        phase = self._phase(server_round)
        with seeded_sampling(self.config.seed, server_round, "evaluate"):
            messages = list(
                phase.strategy.configure_evaluate(
                    server_round, outcome.arrays, ConfigRecord({**phase.message_config}), self.grid
                )
            )
        self.spending.record_messages(messages, outcome.budgets)
        metrics = self.protection.evaluate_metrics(self.num_labels)
        cohort = self._cohort(
            self.grid.exchange(messages, self.config.round_timeout), metrics, outcome
        )
        phase.strategy.aggregate_evaluate(server_round, list(cohort))
        scored = [m for m in cohort.metrics.values() if number(m, "num-examples")]
        if len(scored) >= self.quorum.of_scores(len(messages)):
            outcome.federated = pooled_scores(scored, self.num_labels)
            if "accuracy" in metrics:  # the extremes of noisy numbers show the noise, not clients
                outcome.client_accuracies = [number(m, "accuracy") for m in scored]
        elif messages:
            fault = self.quorum.score_fault(len(scored), len(cohort.metrics), len(messages))
            if fault not in self._score_faults:
                log.warning("round %d: %s", server_round, fault)
            self._score_faults.add(fault)
        return cohort, len(messages) - len(cohort.metrics) - len(cohort.out_of_budget)

    def _cohort(
        self, replies: Iterator[Message], metrics: frozenset[str], outcome: Outcome
    ) -> Cohort:
        return Cohort(replies, metrics, outcome.budgets, self.protection.protects_on_node)

    def _check_budgets(self, outcome: Outcome) -> None:
        reason = self.quorum.reason()
        if self._min_clients > self.quorum.num_connected:
            reason = f"min-clients = {self._min_clients}"
        outcome.budgets.check(self.grid.count_left(), self._min_clients, reason)

    @property
    def _min_clients(self) -> int:
        return max(self.quorum.num_connected, self.config.min_clients)

    def _take_traffic(self) -> Traffic:
        taken, self.grid.traffic = self.grid.traffic, Traffic()
        return taken

    def _end(self, outcome: Outcome, clients: Sequence[Row] = ()) -> RoundEnd:
        return RoundEnd(
            outcome,
            clients,
            self._changeable_arrays(outcome),
            self._phase(outcome.last_round).state(),
            self.grid.num_partitions,
        )

    def _changeable_arrays(self, outcome: Outcome) -> dict[str, NDArray]:
        arrays = outcome.arrays.items()
        return {name: array.numpy() for name, array in arrays if name in self.changeable}
