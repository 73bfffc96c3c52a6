"""What the benchmarks that run many federations have in common."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import paths  # noqa: F401
import torch

from fedattn_app.results.run_result import RunResult
from fedattn_app.simulation import simulate

SEEDS = (1, 2, 3)
KEYS = ("macro_f1", "worst_client_accuracy", "bytes_up_per_client_round", "epsilon", "seconds")
Row = dict[str, Any]
Column = Callable[[Row], float | None]

ACCURACY: Mapping[str, Column] = {"test accuracy": itemgetter("accuracy")}
HELD_OUT: Mapping[str, Column] = {
    "held-out accuracy": itemgetter("held_out_accuracy"),
}
COST: Mapping[str, Column] = {
    "worst client": itemgetter("worst_client_accuracy"),
    "MB up per client and round": lambda row: row["bytes_up_per_client_round"] / 1e6,
}


def federation(config: Mapping[str, Any]) -> Row:
    """Run ten clients and return the figures of one row."""
    with TemporaryDirectory() as folder:
        ours = {**config, "output-dir": f"{folder}/run"}
        return figures(simulate(ours, 10, workers=1, quiet=True))


def figures(result: RunResult) -> Row:
    """Return what a run came to.

    `accuracy` is on the server's test set, null where it has no whole model to test.
    """
    summary, last = result.summary, result.history[-1]
    return {
        "accuracy": last["central"] and last["central"]["accuracy"],
        "held_out_accuracy": last["evaluate"] and last["evaluate"]["accuracy"],
        **{key: summary[key] for key in KEYS},
    }


def file_data(folder: Path) -> Row:
    """Return the settings that split the data set in `folder` by Dirichlet 0.5."""
    return {
        "dataset": "file",
        "data-path": str(folder),
        "partitioner": "dirichlet",
        "alpha": 0.5,
    }


def about(settings: Mapping[str, Any]) -> Row:
    """Return what a result file says of how it was made: machine, versions, date, `settings`."""
    packages = ("flwr", "torch", "opacus", "transformers", "peft")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "date": f"{date.today()}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {gpu}",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **settings,
    }


def sweep(
    run: Callable[..., Row], jobs: Sequence[Row], output: Path, settings: Mapping[str, Any]
) -> list[Row]:
    """Run `run(**job)` for all jobs, two at a time, and return their rows in order of the jobs.

    Each row is written to `output` as soon as it is there; a sweep that was stopped goes on from
    what that file holds.
    """
    done: list[Row] = json.loads(output.read_text())["runs"] if output.exists() else []
    header = about({"runs side by side": 2, "seeds": SEEDS, **settings})
    output.parent.mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if not any(job.items() <= row.items() for row in done)]
    with ProcessPoolExecutor(2) as pool:
        running = {pool.submit(run, **job): job for job in left}
        for future in as_completed(running):
            done.append(running[future] | future.result())
            output.write_text(json.dumps({"about": header, "runs": done}, indent=1) + "\n")
    return [next(row for row in done if job.items() <= row.items()) for job in jobs]


def table(rows: Sequence[Row], by: Sequence[str], columns: Mapping[str, Column]) -> str:
    """Return a Markdown table with one line for each combination of the keys `by`.

    `columns` are titled figures, whose mean and deviation are shown; one that is null in some row
    is shown as a dash.
    """
    lines = [f"| {' | '.join([*by, *columns])} |", "|---" * (len(by) + len(columns)) + "|"]
    for key in sorted({tuple(row[name] for name in by) for row in rows}):
        same = [row for row in rows if tuple(row[name] for name in by) == key]
        cells = [*key, *(_spread([figure(row) for row in same]) for figure in columns.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pivot(rows: Sequence[Row], down: str, across: Sequence[str], figure: Column) -> str:
    """Return a Markdown table of a figure: a line for each value of `down`, columns for `across`.

    Lines and columns come in the order of the rows; where there is no row there is a dash.
    """
    lines = list(dict.fromkeys(row[down] for row in rows))
    columns = list(dict.fromkeys(tuple(row[key] for key in across) for row in rows))
    text = [
        f"| {' | '.join([down, *map(', '.join, columns)])} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for line in lines:
        cells = [
            [figure(r) for r in rows if r[down] == line and tuple(r[k] for k in across) == column]
            for column in columns
        ]
        text.append(f"| {' | '.join([line, *map(_spread, cells)])} |")
    return "\n".join(text)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    deviation = stdev(known) if len(known) > 1 else 0.0
    return f"{mean(known):.3f}" + (f" ± {deviation:.3f}" if deviation >= 0.0005 else "")
