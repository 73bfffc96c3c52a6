"""Clients trained per second of a whole simulated federation, on two cores, beside four rivals.

200 clients of 32 texts each, 20 of them in a round, one epoch in batches of 16 with AdamW, all
parameters shared, no evaluation; two shapes of the built-in Transformer. Words are as frequent as
in text (1 / rank), and the label is what most of them vote for. `local` and `flower` are our two
engines, `attention` is the first of them where attention and the head alone are trained; `stock` is
an app as Flower's quickstart writes it, `pfl` pfl-research, `bare` a loop over two processes
without any framework: see `rivals/`. Everybody starts from the same model and has the same
examples. A round lasts from the end of the one before to its own, with all that happens in between;
the first one is not counted. The contestants take turns, each in processes of its own.

pfl-research is installed into the folder given first, unless it is there:

    python benchmarks/simulation.py ENVIRONMENT benchmarks/results/simulation.json
"""

import csv
import json
import logging
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import text_like
from rivals.task import (
    BATCH,
    CLIENTS,
    COHORT,
    EXAMPLES,
    LABELS,
    LEARNING_RATE,
    SEED,
    SHAPES,
    WEIGHT_DECAY,
    Task,
    write_clients,
)
from sweep import about

from fedattn_app.config import Config
from fedattn_app.data.loading import client_data
from fedattn_app.simulation import simulate

HERE = Path(__file__).parent
PFL = "0.6.0"
# Our engine, and what it shares.
OURS = {
    "local": ("local", "all"),
    "flower": ("flower", "all"),
    "attention": ("local", "attention+head"),
}
RIVALS = {"stock": "stock_flower", "pfl": "pfl_research", "bare": "bare"}
CONTESTANTS = (*OURS, *RIVALS)
ROUNDS = {"small": 41, "large": 16}
TURNS = 3
TRIES = 3
Row = dict[str, Any]


def settings(task: Task) -> Row:
    """Return our run-config for the task."""
    shape = SHAPES[task.shape]
    return {
        "num-rounds": task.rounds,
        "fraction-train": COHORT / CLIENTS,
        "fraction-evaluate": 0.0,
        "seed": SEED,
        "model": shape.model,
        "vocabulary": shape.vocabulary,
        "max-length": shape.max_length,
        "dataset": "file",
        "data-path": f"{task.folder}/train.csv",
        "partitioner": "iid",
        "validation-fraction": 0.0,
        "local-epochs": 1,
        "batch-size": BATCH,
        "optimizer": "adamw",
        "learning-rate": LEARNING_RATE,
        "weight-decay": WEIGHT_DECAY,
    }


def prepare(task: Task) -> None:
    """Write the texts into the task's folder, and what our tokenizer makes of them."""
    shape = SHAPES[task.shape]
    words = (
        text_like(CLIENTS * EXAMPLES, shape.max_length, shape.vocabulary, LABELS)
        .inputs["ids"]
        .numpy()
    )
    votes = np.random.default_rng(SEED).standard_normal((shape.vocabulary, LABELS))[words].mean(1)
    labels = (votes - votes.mean(0)).argmax(1)
    with Path(task.folder, "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        rows.writerows(
            (" ".join(f"w{word}" for word in text), label)
            for text, label in zip(words, labels, strict=True)
        )
    config = Config.from_run_config(settings(task))
    shares = (client_data(config.data, shape, SEED, k, CLIENTS).train for k in range(CLIENTS))
    write_clients(
        Path(task.folder), [(s.inputs["ids"], s.inputs["lengths"], s.labels) for s in shares]
    )


class Marks(logging.Handler):
    """Notes when our line about each round is logged, from that of round 0, the start."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time of the record if it is about a round."""
        if record.getMessage().startswith("round "):
            self.times.append(time.perf_counter())


def race(contestant: str, task: Task) -> str:
    """Run one of ours and return its report."""
    engine, shared = OURS[contestant]
    marks = Marks()
    logging.getLogger("fedattn").addHandler(marks)
    with TemporaryDirectory() as folder:
        ours = {"output-dir": f"{folder}/run", "shared": shared}
        result = simulate(settings(task) | ours, CLIENTS, engine=engine)
        state = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
    return task.report(marks.times, state)


def install_pfl(environment: Path) -> Path:
    """Return the interpreter of an environment that has pfl-research and our version of torch."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    needed = [f"pfl=={PFL}", f"torch=={torch.__version__.split('+')[0]}"]
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    return python


def in_own_process(contestant: str, task: Task, pfl_python: Path) -> Row:
    """Run a contestant and return its report."""
    arguments = [task.shape, task.folder, str(task.rounds)]
    if contestant in OURS:
        command = [sys.executable, __file__, contestant, *arguments]
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        python = [pfl_python, *launcher] if contestant == "pfl" else [sys.executable]
        command = [*python, "-m", "rivals", RIVALS[contestant], *arguments]
    paths = os.pathsep.join(str(path) for path in (HERE, HERE.parent))
    environment = os.environ | {"PYTHONPATH": paths, "FLWR_TELEMETRY_ENABLED": "0"}
    for _ in range(TRIES):  # pfl-research's processes sometimes abort as they part
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not ran.returncode:
            break
    else:
        sys.exit(f"{contestant} failed:\n{ran.stderr}")
    report: Row = json.loads(ran.stdout.splitlines()[-1])
    return report


def speeds(shape: str, pfl_python: Path) -> Iterator[Row]:
    """Yield what each contestant reports in each turn, with its clients per second."""
    with TemporaryDirectory() as folder:
        task = Task(shape, folder, ROUNDS[shape])
        prepare(task)
        for turn in range(TURNS):
            first = turn % len(CONTESTANTS)
            for contestant in (*CONTESTANTS[first:], *CONTESTANTS[:first]):
                report = in_own_process(contestant, task, pfl_python)
                speed = COHORT * len(report["seconds"]) / sum(report["seconds"])
                row = {"shape": shape, "turn": turn, "contestant": contestant, "speed": speed}
                print(f"{shape} {turn} {contestant}: {speed:.1f}", file=sys.stderr)
                yield row | report


def medians(rows: Sequence[Row], shape: str, ours: str = "") -> dict[str, float]:
    """Return the median over turns of each contestant's speed, or of how much faster `ours` is.

    A ratio is taken within a turn, so that what else the machine does falls on both; turns that one
    of the two has not run are left out.
    """
    speed: dict[str, dict[int, float]] = {name: {} for name in CONTESTANTS}
    for row in rows:
        if row["shape"] == shape:
            speed[row["contestant"]][row["turn"]] = row["speed"]
    base = speed[ours] if ours else dict.fromkeys(range(TURNS), 1.0)
    return {
        name: median(
            base[turn] / of_turn[turn] if ours else of_turn[turn]
            for turn in base.keys() & of_turn.keys()
        )
        for name, of_turn in speed.items()
    }


def table(rows: Sequence[Row]) -> str:
    """Return the speeds, and how many times faster each of our engines is, as Markdown."""
    lines = [
        f"| {' | '.join(('clients/s', *CONTESTANTS))} |",
        "|---" * (1 + len(CONTESTANTS)) + "|",
    ]
    for shape in SHAPES:
        figures = {shape: [f"{speed:.1f}" for speed in medians(rows, shape).values()]}
        for ours in OURS:
            ratios = medians(rows, shape, ours).values()
            figures[f"{shape}: {ours} is faster by"] = [f"{ratio:.2f}×" for ratio in ratios]
        lines += [f"| {' | '.join((title, *cells))} |" for title, cells in figures.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON, and print the table and the medians."""
    if sys.argv[1] in OURS:
        contestant, shape, folder, rounds = sys.argv[1:]
        print(race(contestant, Task(shape, folder, int(rounds))))
        return
    pfl_python = install_pfl(Path(sys.argv[1]).absolute())
    output = Path(sys.argv[2])
    header = about({"pfl": PFL, "rounds": ROUNDS, "turns": TURNS})
    output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in chain.from_iterable(speeds(shape, pfl_python) for shape in SHAPES):
        rows.append(row)
        output.write_text(json.dumps({"about": header, "runs": rows}, indent=1) + "\n")
    print(table(rows))
    print(json.dumps({shape: medians(rows, shape) for shape in SHAPES}))


if __name__ == "__main__":
    main()
