"""Accuracy and bytes by scope: the table that the README quotes.

Ten clients, three seeds; TREC and AG News are read from the folder given, split by Dirichlet 0.5.

    python benchmarks/scopes.py ../shared/data benchmarks/results/scopes.json
"""

import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from fedattn_app.simulation import simulate

SEEDS = (1, 2, 3)
SCOPES = ("all", "attention+head", "attention", "head")
DATA_SETS = ("triage", "trec", "ag_news")
ROUNDS = {"triage": 15, "trec": 10, "ag_news": 10}


def run(dataset: str, scope: str, seed: int, data: Path) -> dict[str, Any]:
    """Run one federation and return the figures of the table."""
    config: dict[str, Any] = {"shared": scope, "seed": seed, "num-rounds": ROUNDS[dataset]}
    if dataset != "triage":
        config |= {
            "dataset": "file",
            "data-path": str(data / dataset),
            "partitioner": "dirichlet",
            "alpha": 0.5,
        }
    with TemporaryDirectory() as folder:
        config["output-dir"] = f"{folder}/run"
        summary = simulate(config, 10, quiet=True).summary
    keys = ("accuracy", "macro_f1", "worst_client_accuracy", "bytes_up_per_client_round", "seconds")
    return {"dataset": dataset, "shared": scope, "seed": seed, **{k: summary[k] for k in keys}}


def main() -> None:
    """Run all combinations, two at a time, print the table and write the JSON."""
    data, output = map(Path, sys.argv[1:3])
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            pool.submit(run, dataset, scope, seed, data)
            for dataset, scope, seed in product(DATA_SETS, SCOPES, SEEDS)
        ]
        runs = [job.result() for job in jobs]
    about = {
        "date": f"{date.today()}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU; two runs side by side",
        "python": platform.python_version(),
        **{package: version(package) for package in ("flwr", "torch")},
        "seeds": SEEDS,
        "rounds": ROUNDS,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    print("| data | shared | accuracy | worst client | MB up per client and round |")
    print("|---|---|---|---|---|")
    for dataset, scope in product(DATA_SETS, SCOPES):
        rows = [r for r in runs if (r["dataset"], r["shared"]) == (dataset, scope)]
        accuracy = [row["accuracy"] for row in rows]
        worst = mean(row["worst_client_accuracy"] for row in rows)
        megabytes = mean(row["bytes_up_per_client_round"] for row in rows) / 1e6
        print(
            f"| {dataset} | {scope} | {mean(accuracy):.3f} ± {stdev(accuracy):.3f} "
            f"| {worst:.2f} | {megabytes:.3f} |"
        )


if __name__ == "__main__":
    main()
