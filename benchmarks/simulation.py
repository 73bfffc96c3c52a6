"""Clients trained per second in a complete simulated federation, compared with three rivals.

200 clients have 32 texts each. In a round 20 of them train one epoch in batches of 16 with AdamW.
All parameters are shared and nothing is evaluated. The model is the built-in Transformer in two
shapes. Word frequencies fall as 1 / rank, and the label is the one that most words of a text vote
for. The contestants:

- `local` and `flower`: our app on our two engines.
- `attention`: our app on the local engine, where only attention and head are trained and shared.
- `stock`: an app as in Flower's quickstart.
- `pfl`: pfl-research.
- `bare`: a loop over two processes without a framework.

The last three are in `rivals/`. All start from the same model and have the same examples. A round
lasts from the end of the previous round to its own end, with everything that happens in between.
The first round is not counted. The contestants take turns, each in processes of its own.

    python benchmarks/simulation.py ENVIRONMENT benchmarks/results/simulation.jsonl

pfl-research is installed into a virtual environment in the folder ENVIRONMENT unless it is there.
It takes about a quarter of an hour on two cores, replaces the results file, and prints the table.
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
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common.markdown import markdown
from common.measurement import text_like
from common.results import Row, append, command_line, describe, write
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

from fedattn_app.config import Config
from fedattn_app.data.loading import client_data
from fedattn_app.simulation import simulate

HERE = Path(__file__).parent
PFL = "0.6.0"
# Our contestants: the engine, and the scope.
OURS = {
    "local": ("local", "all"),
    "flower": ("flower", "all"),
    "attention": ("local", "attention+head"),
}
RIVALS = {"stock": "stock_flower", "pfl": "pfl_research", "bare": "bare"}
CONTESTANTS = (*OURS, *RIVALS)
ROUNDS = {"small": 41, "large": 16}
TURNS = 3
MAX_ATTEMPTS = 3
CHILD_FLAG = "--child"  # marks the process of one of our contestants


def run_config_of(task: Task) -> Row:
    """Return the run-config of our contestants."""
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
    """Write the texts and their tokens into the folder of the task."""
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
    config = Config.from_run_config(run_config_of(task))
    shares = (client_data(config.data, shape, SEED, k, CLIENTS).train for k in range(CLIENTS))
    write_clients(
        Path(task.folder), [(s.inputs["ids"], s.inputs["lengths"], s.labels) for s in shares]
    )


class RoundTimes(logging.Handler):
    """Records the times of our log lines about rounds; the first is that of round 0, the start."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record the time if `record` is about a round."""
        if record.getMessage().startswith("round "):
            self.times.append(time.perf_counter())


def race(contestant: str, task: Task) -> str:
    """Run one of our contestants and return its report."""
    engine, shared = OURS[contestant]
    round_times = RoundTimes()
    logging.getLogger("fedattn").addHandler(round_times)
    with TemporaryDirectory() as folder:
        config = run_config_of(task) | {"output-dir": f"{folder}/run", "shared": shared}
        result = simulate(config, CLIENTS, engine=engine)
        state = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
    return task.report(round_times.times, state)


def install_pfl(environment: Path) -> Path:
    """Install pfl-research and our version of torch, and return the interpreter that has them."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    packages = [f"pfl=={PFL}", f"torch=={torch.__version__.split('+')[0]}"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def report_of_process(contestant: str, task: Task, pfl_python: Path) -> Row:
    """Run a contestant in new processes and return its report."""
    arguments = [task.shape, task.folder, str(task.rounds)]
    if contestant in OURS:
        command = [sys.executable, __file__, CHILD_FLAG, contestant, *arguments]
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        python = [pfl_python, *launcher] if contestant == "pfl" else [sys.executable]
        command = [*python, "-m", "rivals", RIVALS[contestant], *arguments]
    search_path = os.pathsep.join(str(path) for path in (HERE, HERE.parent))
    environment = os.environ | {"PYTHONPATH": search_path, "FLWR_TELEMETRY_ENABLED": "0"}
    for _ in range(MAX_ATTEMPTS):  # pfl-research's processes sometimes abort as they end
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not process.returncode:
            break
    else:
        sys.exit(f"{contestant} failed:\n{process.stderr}")
    report: Row = json.loads(process.stdout.splitlines()[-1])
    return report


def run_contestants(shape: str, pfl_python: Path) -> Iterator[Row]:
    """Yield the report of each contestant in each turn, with its clients per second."""
    with TemporaryDirectory() as folder:
        task = Task(shape, folder, ROUNDS[shape])
        prepare(task)
        for turn in range(TURNS):
            first = turn % len(CONTESTANTS)
            for contestant in (*CONTESTANTS[first:], *CONTESTANTS[:first]):
                report = report_of_process(contestant, task, pfl_python)
                speed = COHORT * len(report["seconds"]) / sum(report["seconds"])
                row = {"shape": shape, "turn": turn, "contestant": contestant, "speed": speed}
                print(f"{shape} {turn} {contestant}: {speed:.1f}", file=sys.stderr)
                yield row | report


def medians(rows: Sequence[Row], shape: str, ours: str = "") -> dict[str, float]:
    """Return each contestant's median speed over turns.

    With `ours`, return how many times faster that contestant is. These ratios are taken within a
    turn, so that other load on the machine affects both sides. Turns that lack one of the two are
    left out.
    """
    speeds: dict[str, dict[int, float]] = {name: {} for name in CONTESTANTS}
    for row in rows:
        if row["shape"] == shape:
            speeds[row["contestant"]][row["turn"]] = row["speed"]
    reference = speeds[ours] if ours else {}
    return {
        name: median(
            reference[turn] / speed if ours else speed
            for turn, speed in by_turn.items()
            if not ours or turn in reference
        )
        for name, by_turn in speeds.items()
    }


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation: speeds, and how many times as fast ours are."""
    lines = []
    for shape in SHAPES:
        speeds = medians(rows, shape).values()
        lines.append([f"{shape}, clients/s", *(f"{speed:.1f}" for speed in speeds)])
        for ours in OURS:
            ratios = medians(rows, shape, ours).values()
            lines.append([f"{shape}, speed-up of `{ours}`", *(f"{ratio:.2f}×" for ratio in ratios)])
    return markdown(["model", *CONTESTANTS], lines)


def main() -> None:
    """Measure, write the results file and print the table."""
    if sys.argv[1:2] == [CHILD_FLAG]:
        contestant, shape, folder, rounds = sys.argv[2:]
        print(race(contestant, Task(shape, folder, int(rounds))))
        return
    environment, output = command_line(
        __doc__, environment="folder for pfl-research's environment", results="results file"
    )
    pfl_python = install_pfl(environment.absolute())
    write(output, describe({"pfl": PFL, "rounds": ROUNDS, "turns": TURNS}))
    rows = []
    for shape in SHAPES:
        for row in run_contestants(shape, pfl_python):
            append(output, row)
            rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
