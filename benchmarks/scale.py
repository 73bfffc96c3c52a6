"""What a round takes as the federation grows, and as the model does.

`clients`: 100 clients train in a round, of 100, 1,000 and 10,000; one epoch of the model `tiny`,
attention and head shared, no evaluation. With the built-in corpus each client's notes are written
when it trains; a file, read at the start, holds 32 texts for each client. What the first rounds
build up is in the memory, and in the seconds, which are the median over all rounds.

`idle`: what one more client that has said its number, and never trained, adds to the memory.

`large`: 10 clients with 32 texts each train the attention of a model of 100 million parameters.

Every run is a process of its own, whose memory, and that of all its processes together, is looked
at twice a second. The sizes take turns, so that what else the machine does falls on all.

    python benchmarks/scale.py benchmarks/results/scale.json
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from measure import peak, start_peak, text_like, together
from sweep import about

from fedattn_app import client_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate

COHORT = 100
CLIENTS = {"triage": (100, 1_000, 10_000), "file": (100, 10_000)}
IDLE = (1_000, 10_000, 100_000)
ROUNDS, TURNS = 3, 2
TEXTS, LABELS = 32, 4
WORDS = {"file": 16, "large": 64}  # of a text
LARGE = {
    "shared": "attention",
    "layers": 12,
    "width": 768,
    "heads": 12,
    "feedforward": 3072,
    "vocabulary": 20_000,
}
LARGE_CLIENTS, LARGE_ROUNDS = 10, 2
SECONDS_BETWEEN_LOOKS = 0.5
Row = dict[str, Any]


def settings(kind: str, clients: int, folder: str) -> Row:
    """Return the run-config of a run."""
    run: Row = {"fraction-evaluate": 0.0, "output-dir": f"{folder}/run"}
    if kind in WORDS:
        run |= {"dataset": "file", "data-path": folder, "partitioner": "iid"}
    if kind == "large":
        return run | LARGE | {"num-rounds": LARGE_ROUNDS}
    return run | {"model": "tiny", "num-rounds": ROUNDS, "fraction-train": COHORT / clients}


def write_texts(path: Path, clients: int, words: int) -> None:
    """Write `TEXTS` labelled texts of so many `words` for each client."""
    texts = text_like(clients * TEXTS, words, Config().model.vocabulary, LABELS)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        for ids, label in zip(texts.inputs["ids"].tolist(), texts.labels.tolist(), strict=True):
            rows.writerow((" ".join(f"w{word}" for word in ids), label))


def federation(kind: str, clients: int, folder: str) -> Row:
    """Run it in this process and return the seconds of its rounds, and the memory it took here."""
    began = time.perf_counter()
    result = simulate(settings(kind, clients, folder), clients, quiet=True)
    seconds = time.perf_counter() - began
    rounds = [row["seconds"] for row in result.history[1:]]
    return {
        "parameters": result.summary["total_parameters"],
        "seconds_per_round": median(rounds),
        "seconds_besides": seconds - sum(rounds),
        "parent_megabytes": peak(),
    }


def idle(clients: int) -> Row:
    """Return the bytes that `clients` add to this process when they have said their numbers."""
    run_config = dict(Config().to_run_config())

    def connect(count: int) -> PartitionGrid:
        grid = PartitionGrid(LocalGrid(client_app.app, count, run_config))
        grid.wait_for_clients(0)
        return grid

    with task_identity():
        connect(1)  # what is made once for all
        before, began = start_peak(), time.perf_counter()
        grid = connect(clients)
        seconds = time.perf_counter() - began
        highest = peak()
        added = start_peak() - before
        assert grid.num_partitions == clients
    return {"seconds": seconds, "megabytes": added, "peak_megabytes": highest - before}


def in_own_process(kind: str, clients: int) -> Row:
    """Run `kind` and return its report, with the most megabytes of all its processes together."""
    most = 0.0
    with TemporaryDirectory() as folder:
        if kind in WORDS:
            write_texts(Path(folder, "train.csv"), clients, WORDS[kind])
        command = [sys.executable, __file__, kind, str(clients), folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                most = max(most, together(process.pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)
            assert process.stdout
            printed = process.stdout.read()
    if process.returncode:
        sys.exit(f"{kind} of {clients} clients failed")
    row = {"kind": kind, "clients": clients, **json.loads(printed.splitlines()[-1])}
    row["megabytes_together"] = max(most, row.get("parent_megabytes", 0.0))  # between two looks
    print(row, file=sys.stderr)
    return row


def medians(rows: list[Row], kind: str, clients: int) -> Row:
    """Return the median over turns of each figure of a run."""
    same = [row for row in rows if (row["kind"], row["clients"]) == (kind, clients)]
    return {key: median(row[key] for row in same) for key in same[0] if key != "kind"}


def bytes_per_idle_client(rows: list[Row]) -> dict[str, float]:
    """Return what each client above the fewest adds, at rest, by the number of clients."""
    added = {clients: medians(rows, "idle", clients)["megabytes"] * 1e6 for clients in IDLE}
    least, *more = IDLE
    return {str(clients): (added[clients] - added[least]) / (clients - least) for clients in more}


def table(rows: list[Row]) -> str:
    """Return the runs as Markdown."""
    lines = [
        "| run | clients | train | s per round | besides, s | parent, MB | together, MB |",
        "|---" * 7 + "|",
    ]
    runs = [(kind, clients) for kind in CLIENTS for clients in CLIENTS[kind]]
    for kind, clients in [*runs, ("large", LARGE_CLIENTS)]:
        row = medians(rows, kind, clients)
        figures = (
            f"{row['seconds_per_round']:.2f}",
            f"{row['seconds_besides']:.2f}",
            f"{row['parent_megabytes']:.0f}",
            f"{row['megabytes_together']:.0f}",
        )
        cells = (kind, f"{clients:,}", min(clients, COHORT), *figures)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON, and print the table and the figures as JSON."""
    if sys.argv[1] in (*CLIENTS, "idle", "large"):  # the process that is measured
        kind, clients, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        report = idle(clients) if kind == "idle" else federation(kind, clients, folder)
        print(json.dumps(report))
        return
    runs = [(kind, clients) for kind in CLIENTS for clients in CLIENTS[kind]]
    runs += [("idle", clients) for clients in IDLE]
    rows = [in_own_process(*run) for _ in range(TURNS) for run in runs]
    rows.append(in_own_process("large", LARGE_CLIENTS))
    header = about({"cohort": COHORT, "rounds": ROUNDS, "turns": TURNS, "model": "tiny"} | LARGE)
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"about": header, "runs": rows}, indent=1) + "\n")
    print(table(rows))
    figures: Row = {
        kind: {str(clients): medians(rows, kind, clients) for clients in CLIENTS[kind]}
        for kind in CLIENTS
    }
    figures["bytes_per_idle_client"] = bytes_per_idle_client(rows)
    figures["large"] = medians(rows, "large", LARGE_CLIENTS)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
