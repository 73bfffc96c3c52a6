"""Accuracy and bytes by scope: the table that the README quotes.

Ten clients, three seeds; TREC and AG News are read from the folder given, split by Dirichlet 0.5.

    python benchmarks/scopes.py ../shared/data benchmarks/results/scopes.json
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

from sweep import ACCURACY, COST, SEEDS, federation, file_data, sweep, table

SCOPES = ("all", "attention+head", "attention", "head")
ROUNDS = {"triage": 15, "trec": 10, "ag_news": 10}


def run(dataset: str, shared: str, seed: int) -> dict[str, Any]:
    """Run one federation and return the figures of the table."""
    data = {} if dataset == "triage" else file_data(Path(sys.argv[1]) / dataset)
    return federation(data | {"shared": shared, "seed": seed, "num-rounds": ROUNDS[dataset]})


def main() -> None:
    """Run all combinations, print the table and write the JSON."""
    jobs = [
        {"dataset": dataset, "shared": shared, "seed": seed}
        for dataset, shared, seed in product(ROUNDS, SCOPES, SEEDS)
    ]
    rows = sweep(run, jobs, Path(sys.argv[2]), {"rounds": ROUNDS})
    print(table(rows, ["dataset", "shared"], {**ACCURACY, **COST}))


if __name__ == "__main__":
    main()
