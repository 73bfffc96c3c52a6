"""Time from the start of `python run_simulation.py` to the end of its first training batch.

The run has the default settings and is quiet. It is compared with the time of
`python -c "import torch, flwr"`, which no run can avoid. Python's shutdown is counted in neither.
The run does everything that precedes training, which includes testing the initial model on the
server. The same is measured on Flower's own engine. All of them take turns, in processes of their
own, and a ratio is taken within a turn. The number of rounds does not matter, so there is one.

    python benchmarks/startup.py benchmarks/results/startup.jsonl

It takes two to three minutes, replaces the results file, and prints the table.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from common.markdown import markdown
from common.results import Row, append, command_line, describe, write

from fedattn_app.simulation import ENGINES

HERE = Path(__file__).parent
TURNS = 7
IMPORTS = "import torch, flwr, time; print(repr(time.time()))"


def run_python(*arguments: str, **variables: str) -> str:
    """Run Python with these arguments and environment variables, and return its output."""
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0"} | variables
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{process.stderr}")
    return process.stdout


def seconds_to_imports() -> float:
    """Return the seconds until torch and Flower are imported."""
    start = time.time()
    return float(run_python("-c", IMPORTS)) - start


def seconds_to_first_batch(engine: str) -> float:
    """Return the seconds until the first batch of a run has been trained on."""
    search_path = os.pathsep.join((str(HERE / "first_batch"), str(HERE.parent)))
    with TemporaryDirectory() as folder:
        time_file = Path(folder, "first-batch")
        arguments = ["--quiet", "--engine", engine, "--output-dir", f"{folder}/run"]
        arguments += ["--run-config", "num-rounds=1"]
        start = time.time()
        run_python(
            str(HERE.parent / "run_simulation.py"),
            *arguments,
            PYTHONPATH=search_path,
            FIRST_BATCH=str(time_file),
        )
        return float(time_file.read_text()) - start


def table(rows: Sequence[Row]) -> str:
    """Return the medians over turns, as the table of the documentation."""
    lines = []
    for name in rows[0]:
        title = "torch and flwr are imported" if name == "imports" else f"first batch, `{name}`"
        seconds = median(row[name] for row in rows)
        ratio = median(row[name] / row["imports"] for row in rows)
        lines.append([title, f"{seconds:.2f}", f"{ratio:.2f}"])
    return markdown(["until", "seconds", "ratio to the imports"], lines)


def main() -> None:
    """Measure, write the results file and print the table."""
    (output,) = command_line(__doc__, results="results file")
    seconds_to_imports()  # from here on the files are in the system's cache, and compiled
    seconds_to_first_batch("local")
    write(output, describe({"turns": TURNS}))
    rows = []
    for turn in range(TURNS):
        engines = {engine: seconds_to_first_batch(engine) for engine in ENGINES}
        row = {"imports": seconds_to_imports(), **engines}
        append(output, row)
        rows.append(row)
        print(turn, row, file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
