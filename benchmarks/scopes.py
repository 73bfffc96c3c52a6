"""Accuracy and bytes sent by scope, for the built-in model trained from scratch.

Ten clients and three seeds. The data sets are the built-in corpus, split by site, and TREC and AG
News from the folder DATA, split by Dirichlet 0.5.

    python benchmarks/scopes.py ../shared/data benchmarks/results/scopes.jsonl

It takes about half an hour on two cores. Each run is appended to the results file as it ends; when
started again, the script resumes where the file ends. At the end it prints the table.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from common.markdown import grouped_table
from common.results import Row, command_line
from common.sweep import ACCURACY, COST, SEEDS, dirichlet_data, run_federation, sweep

SCOPES = ("all", "attention+head", "attention", "head")
ROUNDS = {"triage": 15, "trec": 10, "ag_news": 10}


def run(data: Path, dataset: str, shared: str, seed: int) -> Row:
    """Run one federation and return its figures."""
    source = {} if dataset == "triage" else dirichlet_data(data / dataset)
    return run_federation(source | {"shared": shared, "seed": seed, "num-rounds": ROUNDS[dataset]})


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    return grouped_table(rows, ["dataset", "shared"], {**ACCURACY, **COST})


def main() -> None:
    """Run what the results file does not hold, and print the table."""
    data, output = command_line(
        __doc__, data="folder that holds trec and ag_news", results="results file"
    )
    jobs = [
        {"dataset": dataset, "shared": shared, "seed": seed}
        for dataset, shared, seed in product(ROUNDS, SCOPES, SEEDS)
    ]
    print(table(sweep(partial(run, data), jobs, output, {"rounds": ROUNDS})))


if __name__ == "__main__":
    main()
