"""From the start of `python run_simulation.py` until its first batch has been trained on.

With the default settings, quiet, over the time of `python -c "import torch, flwr"`, without which
no run can do; what Python does at its end counts for neither. The run does all that comes before:
the server's model is scored on its test set as well. `flower` is the same run on Flower's own
engine. Each takes its turn, in processes of its own, and a ratio is taken within a turn. How many
rounds follow does not matter: one does.

    python benchmarks/startup.py benchmarks/results/startup.json
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from sweep import about

from fedattn_app.simulation import ENGINES

HERE = Path(__file__).parent
TURNS = 7
IMPORTS = "import torch, flwr, time; print(repr(time.time()))"


def run(*arguments: str, **variables: str) -> str:
    """Run Python and return what it prints."""
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0"} | variables
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    ran = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    if ran.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{ran.stderr}")
    return ran.stdout


def imports() -> float:
    """Return the seconds until torch and Flower are imported."""
    began = time.time()
    return float(run("-c", IMPORTS)) - began


def first_batch(engine: str) -> float:
    """Return the seconds until the first batch of a run has been trained on."""
    paths = os.pathsep.join((str(HERE / "first_batch"), str(HERE.parent)))
    with TemporaryDirectory() as folder:
        mark = Path(folder, "first-batch")
        arguments = ["--quiet", "--engine", engine, "--output-dir", f"{folder}/run"]
        arguments += ["--run-config", "num-rounds=1"]
        began = time.time()
        run(
            str(HERE.parent / "run_simulation.py"),
            *arguments,
            PYTHONPATH=paths,
            FIRST_BATCH=str(mark),
        )
        return float(mark.read_text()) - began


def main() -> None:
    """Measure, write the JSON, and print the table and the medians."""
    imports()  # from now on the files are in memory, and compiled
    first_batch("local")
    rows = []
    for turn in range(TURNS):
        seconds = {"imports": imports()} | {engine: first_batch(engine) for engine in ENGINES}
        rows.append(seconds)
        print(turn, seconds, file=sys.stderr)
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"about": about({"turns": TURNS}), "runs": rows}, indent=1) + "\n")
    medians = {
        name: {
            "seconds": median(row[name] for row in rows),
            "over_imports": median(row[name] / row["imports"] for row in rows),
        }
        for name in rows[0]
    }
    print("| until | seconds | over the imports |\n|---|---|---|")
    titles = {"imports": "torch and flwr imported"}
    titles |= {engine: f"first batch, engine `{engine}`" for engine in ENGINES}
    for name, figures in medians.items():
        print(f"| {titles[name]} | {figures['seconds']:.2f} | {figures['over_imports']:.2f} |")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
