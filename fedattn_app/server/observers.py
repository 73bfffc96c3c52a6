"""The observers of a run: each does one thing after every round, for example log it."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedattn_app.config import FederationConfig
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.server.outcome import Outcome
from fedattn_app.server.records import round_line
from fedattn_app.types import NDArray, Row

log = logging.getLogger("fedattn")

# Returns a row's value of the score that decides, larger being better, or None without any.
ScoreOf = Callable[[Row], float | None]


@dataclass(frozen=True)
class RoundEnd:
    """The end of a round, whose row is the last one of `outcome.history`.

    Attributes:
        outcome: the state of the run after the round.
        clients: the rows of ``clients.jsonl``.
        changed_arrays: the parameters that training may have changed, by name.
        rule_state: the arrays that the rule keeps from round to round.
        num_partitions: the number of clients that the data are split over; 0: they are not split.
    """

    outcome: Outcome
    clients: Sequence[Row] = ()
    changed_arrays: dict[str, NDArray] = field(default_factory=dict)
    rule_state: dict[str, NDArray] = field(default_factory=dict)
    num_partitions: int = 0

    @property
    def row(self) -> Row:
        """The round's row of ``history.jsonl``."""
        return self.outcome.history[-1]


class RoundObserver:
    """Base class of observers. Its methods do nothing; subclasses override those they need."""

    def run_started(self, resumed: RoundEnd | None) -> None:
        """Prepare for the run. `resumed` is the last round of the run that is resumed, or None."""

    def round_ended(self, end: RoundEnd) -> None:
        """Do this observer's task after a round. Round 0 is the model before any training."""

    def reason_to_stop(self, outcome: Outcome) -> str | None:
        """Return why no further round should run, or None."""
        return None


class FolderWriter(RoundObserver):
    """Writes every round to the run's folder before the next one begins."""

    def __init__(self, folder: RunFolder, keeps_budgets: bool) -> None:
        self.folder = folder
        self.keeps_budgets = keeps_budgets

    def round_ended(self, end: RoundEnd) -> None:
        """Append the rows of the round and replace the checkpoint."""
        if self.keeps_budgets:
            self.folder.write_budgets(end.outcome.budgets.to_row())
        self.folder.add_round(end.row, end.clients)
        self.folder.write_checkpoint(
            end.row["round"], end.changed_arrays, end.num_partitions, end.rule_state
        )


class BestModel(RoundObserver):
    """Keeps the model of the round with the best score."""

    def __init__(self, folder: RunFolder, score_of: ScoreOf) -> None:
        self.folder = folder
        self.score_of = score_of
        self._best = -math.inf

    def run_started(self, resumed: RoundEnd | None) -> None:
        """Find the best score so far.

        Keep the model of the last round if it is the best, since the run may have stopped before
        that.
        """
        if resumed:
            scores = map(self.score_of, resumed.outcome.history[:-1])
            self._best = max((score for score in scores if score is not None), default=-math.inf)
            self.round_ended(resumed)

    def round_ended(self, end: RoundEnd) -> None:
        """Keep the model if its score is higher than all scores before it."""
        score = self.score_of(end.row)
        if score is not None and score > self._best:
            self._best = score
            if end.row["round"] != self.folder.best.server_round:
                self.folder.write_best(end.row["round"], end.changed_arrays)


class Patience(RoundObserver):
    """Stops a run whose score has not improved for `patience` rounds."""

    def __init__(self, config: FederationConfig, score_of: ScoreOf) -> None:
        self.config = config
        self.score_of = score_of

    def reason_to_stop(self, outcome: Outcome) -> str | None:
        """Return a reason if the score has not improved for `patience` rounds; else None."""
        patience = self.config.patience
        best = last_improvement(outcome.history, self.score_of, self.config.min_delta)
        if not patience or best < 0 or outcome.last_round - best < patience:
            return None
        return f"no better {self.config.score} since round {best} (patience = {patience})"


class Progress(RoundObserver):
    """Logs a line per round, with an estimate of the time that is left."""

    def __init__(self, num_rounds: int) -> None:
        self.num_rounds = num_rounds
        self._began = 0.0
        self._num_done = 0

    def run_started(self, resumed: RoundEnd | None) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def round_ended(self, end: RoundEnd) -> None:
        """Log the round."""
        if end.row["round"] == 0:
            log.info(round_line(end.row, self.num_rounds, None))
            self._began = time.perf_counter()
            return
        self._num_done += 1
        seconds_per_round = (time.perf_counter() - self._began) / self._num_done
        seconds_left = seconds_per_round * (self.num_rounds - end.row["round"])
        log.info(round_line(end.row, self.num_rounds, seconds_left))


def score_reader(config: FederationConfig, clients_may_decide: bool) -> ScoreOf:
    """Return a function that reads the score from a row; larger is better, None is no score.

    The key ``score`` names the metric; the loss is negated. It is read from the server's test set
    or, without one and if `clients_may_decide`, from what the clients hold out.
    """

    def score_of(row: Row) -> float | None:
        scores = row["central"] or (row["evaluate"] if clients_may_decide else None)
        if not scores:
            return None
        value: float | None = scores[config.score.replace("-", "_")]
        return -value if value is not None and config.score == "loss" else value

    return score_of


def last_improvement(history: Sequence[Row], score_of: ScoreOf, min_delta: float = 0.0) -> int:
    """Return the last round with a better score than the best before it; -1 for none.

    The first score counts as better; a later one must exceed the best by more than `min_delta`.
    """
    best, best_round = -math.inf, -1
    for row in history:
        score = score_of(row)
        if score is not None and score > best + (min_delta if best_round >= 0 else 0.0):
            best, best_round = score, row["round"]
    return best_round
