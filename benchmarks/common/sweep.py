"""Runs many federations, two at a time, and resumes a sweep that was interrupted."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.markdown import Figure
from common.results import Row, append, describe, read, write
from fedattn_app.results.run_result import RunResult
from fedattn_app.simulation import simulate

NUM_CLIENTS = 10
NUM_PROCESSES = 2
SEEDS = (1, 2, 3)

ACCURACY: Mapping[str, Figure] = {"test accuracy": itemgetter("accuracy")}
HELD_OUT: Mapping[str, Figure] = {"held-out accuracy": itemgetter("held_out_accuracy")}
COST: Mapping[str, Figure] = {
    "worst client": itemgetter("worst_client_accuracy"),
    "MB up per client and round": lambda row: row["bytes_up_per_client_round"] / 1e6,
}
_SUMMARY_KEYS = (
    "macro_f1",
    "worst_client_accuracy",
    "bytes_up_per_client_round",
    "epsilon",
    "seconds",
)


def run_federation(config: Mapping[str, Any]) -> Row:
    """Run ten clients with this run-config and return the figures of the run."""
    with TemporaryDirectory() as folder:
        run_config = {**config, "output-dir": f"{folder}/run"}
        return figures_of(simulate(run_config, NUM_CLIENTS, workers=1, quiet=True))


def figures_of(result: RunResult) -> Row:
    """Return the final figures of a run.

    `accuracy` is measured on the server's test set. It is None where the server has no complete
    model to test. `held_out_accuracy` is measured on the examples that the clients hold out.
    """
    summary, last = result.summary, result.history[-1]
    return {
        "accuracy": last["central"] and last["central"]["accuracy"],
        "held_out_accuracy": last["evaluate"] and last["evaluate"]["accuracy"],
        **{key: summary[key] for key in _SUMMARY_KEYS},
    }


def dirichlet_data(folder: Path) -> Row:
    """Return the run-config that splits the data set in `folder` by Dirichlet 0.5."""
    return {
        "dataset": "file",
        "data-path": str(folder),
        "partitioner": "dirichlet",
        "alpha": 0.5,
    }


def sweep(
    run: Callable[..., Row], jobs: Sequence[Row], output: Path, settings: Mapping[str, Any]
) -> list[Row]:
    """Run every job that `output` does not hold yet, and return the rows of all jobs in order.

    Args:
        run: called in another process as ``run(**job)``; returns the figures of the run.
        jobs: the keyword arguments that identify each run. They become part of its row.
        output: results file. Each row is appended as soon as its run ends, so that a sweep that
            was interrupted resumes where the file ends.
        settings: what to record about the sweep in the first line of the file.

    """
    done = read(output).rows if output.exists() else []
    missing = [job for job in jobs if _find(job, done) is None]
    if missing:
        about = describe({"runs side by side": NUM_PROCESSES, "seeds": SEEDS, **settings})
        write(output, about, done)
    with ProcessPoolExecutor(NUM_PROCESSES) as pool:
        running = {pool.submit(run, **job): job for job in missing}
        for number, future in enumerate(as_completed(running), start=1):
            row = running[future] | future.result()
            append(output, row)
            done.append(row)
            print(f"{number}/{len(missing)} {running[future]}", file=sys.stderr, flush=True)
    return [found for job in jobs if (found := _find(job, done)) is not None]


def _find(job: Row, rows: Sequence[Row]) -> Row | None:
    """Return the first of the `rows` that `job` identifies."""
    return next((row for row in rows if job.items() <= row.items()), None)
