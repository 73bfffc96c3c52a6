"""Time and memory of a round as the number of clients grows, and for a large model.

There are three kinds of run:

- ``triage`` and ``file``: 100 clients train in each round, out of 100, 1,000 or 10,000. They train
  one epoch of the model `tiny` and share attention and head; nothing is evaluated. With the
  built-in corpus, ``triage``, the notes of a client are generated when it trains. A ``file`` holds
  32 texts for each client and is read at the start. The seconds are the median over all rounds, the
  first included.
- ``idle``: the memory that one more client adds which is connected and has never trained.
- ``large``: 10 clients with 32 texts each train the attention of a model of 100 million parameters.

Every run is a process of its own. Its memory, and that of all its processes together, is sampled
twice a second. The sizes take turns, so that other load on the machine affects all of them.

    python benchmarks/scale.py benchmarks/results/scale.jsonl

It takes about eight minutes, replaces the results file, and prints the table. Linux only.
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from common.markdown import markdown
from common.measurement import family_memory, peak_memory, start_peak_memory, text_like
from common.results import Row, append, command_line, describe, write

from fedattn_app import client_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate

COHORT = 100
NUM_CLIENTS = {"triage": (100, 1_000, 10_000), "file": (100, 10_000)}
NUM_IDLE_CLIENTS = (1_000, 10_000, 100_000)
ROUNDS, TURNS = 3, 2
TEXTS_PER_CLIENT, NUM_LABELS = 32, 4
WORDS_PER_TEXT = {"file": 16, "large": 64}
LARGE_MODEL = {
    "shared": "attention",
    "layers": 12,
    "width": 768,
    "heads": 12,
    "feedforward": 3072,
    "vocabulary": 20_000,
}
LARGE_CLIENTS, LARGE_ROUNDS = 10, 2
SECONDS_BETWEEN_SAMPLES = 0.5
CHILD_FLAG = "--child"  # marks the process that is measured


def run_config_of(kind: str, num_clients: int, folder: str) -> Row:
    """Return the run-config of a run."""
    config: Row = {"fraction-evaluate": 0.0, "output-dir": f"{folder}/run"}
    if kind in WORDS_PER_TEXT:
        config |= {"dataset": "file", "data-path": folder, "partitioner": "iid"}
    if kind == "large":
        return config | LARGE_MODEL | {"num-rounds": LARGE_ROUNDS}
    fraction = COHORT / num_clients
    return config | {"model": "tiny", "num-rounds": ROUNDS, "fraction-train": fraction}


def write_texts(path: Path, num_clients: int, words: int) -> None:
    """Write a CSV of `TEXTS_PER_CLIENT` labelled texts of `words` words for each client."""
    count = num_clients * TEXTS_PER_CLIENT
    texts = text_like(count, words, Config().model.vocabulary, NUM_LABELS)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        for ids, label in zip(texts.inputs["ids"].tolist(), texts.labels.tolist(), strict=True):
            rows.writerow((" ".join(f"w{word}" for word in ids), label))


def federation_row(kind: str, num_clients: int, folder: str) -> Row:
    """Run a federation in this process and return its times and this process's peak memory.

    `seconds_besides` is the time outside the rounds.
    """
    start = time.perf_counter()
    result = simulate(run_config_of(kind, num_clients, folder), num_clients, quiet=True)
    seconds = time.perf_counter() - start
    rounds = [row["seconds"] for row in result.history[1:]]
    return {
        "parameters": result.summary["total_parameters"],
        "seconds_per_round": median(rounds),
        "seconds_besides": seconds - sum(rounds),
        "parent_megabytes": peak_memory(),
    }


def idle_row(num_clients: int) -> Row:
    """Connect `num_clients` clients, and return the memory that this process needs for them."""
    run_config = dict(Config().to_run_config())

    def connect(count: int) -> PartitionGrid:
        grid = PartitionGrid(LocalGrid(client_app.app, count, run_config))
        grid.wait_for_clients(0)
        return grid

    with task_identity():
        connect(1)  # makes what the process needs only once
        before, start = start_peak_memory(), time.perf_counter()
        grid = connect(num_clients)
        seconds = time.perf_counter() - start
        highest = peak_memory()
        added = start_peak_memory() - before
        assert grid.num_partitions == num_clients
    return {"seconds": seconds, "megabytes": added, "peak_megabytes": highest - before}


def row_of_process(kind: str, num_clients: int) -> Row:
    """Run `kind` in a new process, and return its row with the peak memory of all its processes."""
    peak = 0.0
    with TemporaryDirectory() as folder:
        if kind in WORDS_PER_TEXT:
            write_texts(Path(folder, "train.csv"), num_clients, WORDS_PER_TEXT[kind])
        command = [sys.executable, __file__, CHILD_FLAG, kind, str(num_clients), folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                peak = max(peak, family_memory(process.pid))
                time.sleep(SECONDS_BETWEEN_SAMPLES)
            assert process.stdout
            printed = process.stdout.read()
    if process.returncode:
        sys.exit(f"{kind} with {num_clients} clients failed")
    row = {"kind": kind, "clients": num_clients, **json.loads(printed.splitlines()[-1])}
    # The parent alone may have had more between two samples.
    row["megabytes_together"] = max(peak, row.get("parent_megabytes", 0.0))
    print(row, file=sys.stderr)
    return row


def medians(rows: Sequence[Row], kind: str, num_clients: int) -> Row:
    """Return the median over turns of each figure of a run."""
    same = [row for row in rows if (row["kind"], row["clients"]) == (kind, num_clients)]
    return {key: median(row[key] for row in same) for key in same[0] if key != "kind"}


def bytes_per_idle_client(rows: Sequence[Row]) -> dict[int, float]:
    """Return by number of clients the bytes that each adds beyond the smallest number."""
    added = {count: medians(rows, "idle", count)["megabytes"] * 1e6 for count in NUM_IDLE_CLIENTS}
    smallest, *larger = NUM_IDLE_CLIENTS
    return {count: (added[count] - added[smallest]) / (count - smallest) for count in larger}


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    header = [
        "run",
        "clients",
        "train in a round",
        "s per round",
        "s outside rounds",
        "parent process, MB",
        "all processes, MB",
    ]
    runs = [(kind, count) for kind, counts in NUM_CLIENTS.items() for count in counts]
    lines = []
    for kind, count in [*runs, ("large", LARGE_CLIENTS)]:
        row = medians(rows, kind, count)
        lines.append(
            [
                kind,
                f"{count:,}",
                min(count, COHORT),
                f"{row['seconds_per_round']:.2f}",
                f"{row['seconds_besides']:.2f}",
                f"{row['parent_megabytes']:.0f}",
                f"{row['megabytes_together']:.0f}",
            ]
        )
    idle = " and ".join(
        f"{size:,.0f} bytes (of {count:,})" for count, size in bytes_per_idle_client(rows).items()
    )
    return f"{markdown(header, lines)}\n\nAn idle client adds {idle}."


def main() -> None:
    """Measure, write the results file and print the table."""
    if sys.argv[1:2] == [CHILD_FLAG]:
        kind, count, folder = sys.argv[2], int(sys.argv[3]), sys.argv[4]
        print(
            json.dumps(idle_row(count) if kind == "idle" else federation_row(kind, count, folder))
        )
        return
    (output,) = command_line(__doc__, results="results file")
    settings = {"cohort": COHORT, "rounds": ROUNDS, "turns": TURNS, "model": "tiny"}
    write(output, describe(settings | LARGE_MODEL))
    runs = [(kind, count) for kind, counts in NUM_CLIENTS.items() for count in counts]
    runs += [("idle", count) for count in NUM_IDLE_CLIENTS]
    rows = []
    for run in [*(runs * TURNS), ("large", LARGE_CLIENTS)]:
        row = row_of_process(*run)
        append(output, row)
        rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
