"""The Flower ServerApp: one run, from its settings to its summary."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedattn_app.config import Config
from fedattn_app.console import printing
from fedattn_app.errors import RunFailedError, UserError
from fedattn_app.flower_compat import is_simulated
from fedattn_app.privacy.protections import Protection, protection_of
from fedattn_app.results.checkpoint import read_accountant, read_budgets
from fedattn_app.results.confinement import DEFAULT_PARENT, confine
from fedattn_app.results.resume import EarlierRun, earlier_run
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.results.run_result import RunResult
from fedattn_app.server import preflight
from fedattn_app.server.budgets import Budgets
from fedattn_app.server.observers import (
    BestModel,
    FolderWriter,
    Patience,
    Progress,
    RoundObserver,
    score_reader,
)
from fedattn_app.server.outcome import Outcome, array_record
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.server.quorum import Quorum
from fedattn_app.server.rounds import Rounds
from fedattn_app.server.strategy_factory import build_phases
from fedattn_app.server.summary import model_metadata, summary_of
from fedattn_app.types import Row

log = logging.getLogger("fedattn")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation with the run-config of `context`.

    Raises `UserError` for a mistake in the settings, and `RunFailedError` if the run cannot
    continue.
    """
    try:
        with printing():
            config, parent = Config.from_run_config(context.run_config), DEFAULT_PARENT
            if not is_simulated(grid):
                output, parent = confine(config.output)
                config = replace(config, output=output)
            run(PartitionGrid(grid), config, parent)
    except (UserError, RunFailedError):
        sys.tracebacklimit = 0  # Flower logs the exception, in one line then, and ends the process
        raise


def run(grid: PartitionGrid, config: Config, parent: str = DEFAULT_PARENT) -> RunResult:
    """Run one federation on `grid` and return its folder, a new one in `parent` if none is named.

    Raises `UserError` before any training for a mistake in `config`, and `RunFailedError` if no
    client can continue.
    """
    with RunFolder(config, parent) as folder:
        return _run(grid, config, folder)


def _run(grid: PartitionGrid, config: Config, folder: RunFolder) -> RunResult:
    began = time.perf_counter()
    protection = protection_of(config)

    # 1. The model, its labels, the scope, the test set.
    setup = preflight.prepare(config)
    preflight.check_patience(config, protection, setup.test is not None)
    protection.check_settings()
    metadata = model_metadata(config, setup)

    # 2. The run that this one resumes, if there is one.
    folder.check_free()
    with folder.reading_earlier_run():
        earlier = earlier_run(config, setup.identity)
        budgets, accountant_state = _spent(protection, earlier)
    warmed_up = config.federation.warmup_rounds > 0
    changeable = frozenset(setup.arrays) if warmed_up else setup.scope.shared
    preflight.restore(setup, changeable, earlier)
    changed = {name: array for name, array in setup.arrays.items() if name in changeable}
    protection.check_model(setup.model, changed)

    # 3. The strategy, with everything around it.
    num_rounds = config.federation.num_rounds - earlier.last_round
    phases = build_phases(
        config, protection, setup.scope, setup.identity, accountant_state, num_rounds
    )

    # 4. The clients.
    preflight.log_plan(config, protection, setup)
    num_clients = grid.wait_for_clients(config.federation.min_clients)
    quorum = Quorum(config, protection.fraction_evaluate, num_clients)
    preflight.check_num_clients(config, protection, earlier, quorum, grid.num_partitions)
    preflight.check_examples(config, protection, setup, quorum, grid.num_splits)

    # 5. The folder.
    folder.begin(setup.identity, earlier)
    if protection.has_budget:
        folder.write_budgets(budgets.to_row())
    log.info("results go to %s", folder.path)

    # 6. The rounds.
    outcome = Outcome(
        array_record(setup.arrays),
        history=list(earlier.history),
        last_round=earlier.last_round,
        budgets=budgets,
    )
    rounds = Rounds(
        phases,
        grid,
        folder,
        config,
        protection,
        quorum,
        changeable,
        len(setup.labels),
        None if setup.test is None else setup.score,
        _observers(config, protection, folder),
    )
    try:
        rounds.run(outcome, earlier.rule_state)
    except (KeyboardInterrupt, SystemExit):
        log.warning("interrupted; the rounds so far are in %s", folder.path)
        raise
    if outcome.history == earlier.history and folder.finished:
        folder.end()
        log.info("no round was run; %s stays as it was", folder.path)
        return RunResult(folder.path)

    # 7. The summary and the final model.
    seconds = time.perf_counter() - began + sum(row["seconds"] for row in earlier.history)
    summary = summary_of(
        config, protection, setup, outcome, num_clients, folder.best.server_round, seconds
    )
    arrays = {name: array.numpy() for name, array in outcome.arrays.items()}
    folder.finish(summary, arrays, metadata)
    log.info("results in %s", folder.path)
    return RunResult(folder.path)


def _spent(protection: Protection, earlier: EarlierRun) -> tuple[Budgets, Row]:
    """Return what the clients spent in the earlier run, and the state of its server's accountant.

    Both are empty for a new run and for a run without a privacy budget.
    """
    if earlier.path is None or not protection.has_budget:
        return Budgets(), {}
    accountant_state = (
        read_accountant(earlier.path, earlier.last_round) if protection.server_accounts else {}
    )
    return read_budgets(earlier.path, Budgets.from_row), accountant_state


def _observers(
    config: Config, protection: Protection, folder: RunFolder
) -> Sequence[RoundObserver]:
    """Return the observers of a run, in the order in which they are called after a round."""
    score_of = score_reader(config.federation, protection.best_model_by_client_scores)
    return [
        FolderWriter(folder, protection.has_budget),
        BestModel(folder, score_of),
        Progress(config.federation.num_rounds),
        Patience(config.federation, score_of),
    ]
