"""Accuracy of every aggregation rule, by partition, scope and attack.

Ten clients train the built-in model on TREC and AG News from the folder DATA. There is one local
epoch in a round, with few rounds and short texts, so that all runs fit into hours. The four parts:

- ``tune``: tries four values of one setting for each rule, on a seed that the other parts do not
  use. The value with the best accuracy on the clients' held-out examples is used in the other
  parts.
- ``rules``: every rule × {IID, Dirichlet 0.5, Dirichlet 0.1} × {all, attention+head} on TREC.
- ``scopes``: fedavg × the same partitions × what is shared and what is personal, on both data sets.
- ``attacks``: three of ten clients are malicious, on TREC (IID, attention+head), for the rules that
  should tolerate them.

    python benchmarks/aggregation_rules.py ../shared/data benchmarks/results/aggregation_rules.jsonl

It takes two to three hours on two cores. Each run is appended to the results file as it ends;
when started again, the script resumes where the file ends. At the end it prints the tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from attacks import ATTACKS, AttackedClientApp
from common.markdown import pivot_table
from common.results import Row, command_line
from common.sweep import NUM_CLIENTS, SEEDS, figures_of, sweep

from fedattn_app import client_app
from fedattn_app.config import RULES
from fedattn_app.simulation import simulate

ROUNDS = {"trec": 5, "ag_news": 2}
MAX_LENGTH = 32
TUNING_SEED = 100
MALICIOUS_FRACTION = 0.3
PARTITIONS: Mapping[str, Row] = {
    "iid": {"partitioner": "iid"},
    "dirichlet-0.5": {"partitioner": "dirichlet", "alpha": 0.5},
    "dirichlet-0.1": {"partitioner": "dirichlet", "alpha": 0.1},
}
# The learning rate of the clients where a setting of the server is tuned: the best one of fedavg.
LEARNING_RATE = 4e-3
# The setting that is tuned, and the four values that are tried: by default, and for some rules.
DEFAULT_TUNING = ("learning-rate", (1e-3, 2e-3, 4e-3, 8e-3))
TUNING: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "fedprox": ("proximal-mu", (0.0001, 0.001, 0.01, 0.1)),
    "fedavgm": ("server-learning-rate", (0.3, 0.6, 1.0, 1.5)),
    "fedadagrad": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedadam": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedyogi": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedsgd": ("server-learning-rate", (0.3, 1.0, 3.0, 10.0)),
    "qfedavg": ("server-learning-rate", (3.0, 10.0, 30.0, 100.0)),
}
# Settings that a rule has in every run.
FIXED_SETTINGS: Mapping[str, Row] = {
    "fedavgm": {"server-momentum": 0.9},
    "fedsgd": {"server-momentum": 0.9},
    "krum": {"malicious-clients": 3},
    "multikrum": {"malicious-clients": 3, "multikrum-selected": 5},
    "bulyan": {"malicious-clients": 1},  # the largest number that ten clients allow
    "fedtrimmedavg": {"trim-fraction": 0.3},
    "fedbuff": {"fedbuff-concurrency": 10, "fedbuff-buffer-size": 5},
}
SCOPES: Mapping[str, Row] = {
    "all": {"shared": "all"},
    "attention": {"shared": "attention"},
    "attention+head": {"shared": "attention+head"},
    "head": {"shared": "head"},
    "all-but-attention": {"shared": "all-but-attention"},
    "personal rest": {"shared": "attention+head", "local": "personal"},
    "personal attention": {"shared": "all-but-attention", "local": "personal"},
    # Nearly local training: only the bias of the head travels, one number per label.
    "personal all": {"shared": r"head\.bias", "local": "personal"},
}
ROBUST_RULES = (
    "fedavg",  # for comparison
    "fedmedian",
    "fedtrimmedavg",
    "geometric-median",
    "krum",
    "multikrum",
    "bulyan",
)


def tuning_jobs() -> list[Row]:
    """Return the runs of the part ``tune``."""
    return [
        {"part": "tune", "strategy": rule, "value": value, "seed": TUNING_SEED}
        for rule in RULES
        for value in TUNING.get(rule, DEFAULT_TUNING)[1]
    ]


def jobs() -> list[Row]:
    """Return the runs of the other parts, all of the first seed before those of the second."""
    return [job for seed in SEEDS for job in _jobs_of(seed)]


def _jobs_of(seed: int) -> Iterator[Row]:
    for attack, rule in product(("none", *ATTACKS), ROBUST_RULES):
        yield {"part": "attacks", "attack": attack, "strategy": rule, "seed": seed}
    for partition, rule, shared in product(PARTITIONS, RULES, ("attention+head", "all")):
        yield {
            "part": "rules",
            "strategy": rule,
            "partition": partition,
            "shared": shared,
            "seed": seed,
        }
    for dataset, partition, scope in product(ROUNDS, PARTITIONS, SCOPES):
        yield {
            "part": "scopes",
            "dataset": dataset,
            "partition": partition,
            "scope": scope,
            "seed": seed,
        }


def run_config_of(job: Row, tuned: Mapping[str, Row], data: Path) -> Row:
    """Return the run-config of a job; `tuned` is the result of the tuning, by rule."""
    dataset: str = job.get("dataset", "trec")
    rule: str = job.get("strategy", "fedavg")
    tuning = job["part"] == "tune"
    learning_rate = {} if rule == "fedsgd" else {"learning-rate": LEARNING_RATE}
    return {
        "dataset": "file",
        "data-path": str(data / dataset),
        "max-length": MAX_LENGTH,
        # A round of fedbuff takes the replies of half of the clients.
        "num-rounds": ROUNDS[dataset] * (2 if rule == "fedbuff" else 1),
        "seed": job["seed"],
        "strategy": rule,
        **learning_rate,
        **PARTITIONS[job.get("partition", "dirichlet-0.5" if tuning else "iid")],
        **SCOPES[str(job.get("scope", job.get("shared", "attention+head")))],
        **FIXED_SETTINGS.get(rule, {}),
        **({TUNING.get(rule, DEFAULT_TUNING)[0]: job["value"]} if tuning else tuned[rule]),
    }


def run(tuned: Mapping[str, Row], data: Path, **job: str | float) -> Row:
    """Run one federation and return its figures, its settings and its curve."""
    attack = str(job.get("attack", "none"))
    app = (
        client_app.app
        if attack == "none"
        else AttackedClientApp(attack, MALICIOUS_FRACTION, NUM_CLIENTS, int(job["seed"]))
    )
    config = run_config_of(job, tuned, data)
    with TemporaryDirectory() as folder:
        run_config = {**config, "output-dir": f"{folder}/run"}
        result = simulate(run_config, NUM_CLIENTS, workers=1, quiet=True, clients=app)
        figures = figures_of(result)
    rounds = [
        {
            "accuracy": (row["central"] or row["evaluate"] or {}).get("accuracy"),
            "megabytes": (row["bytes_up"] + row["bytes_down"]) / 1e6,
        }
        for row in result.history
    ]
    settings = {key: value for key, value in config.items() if key != "data-path"}
    return figures | {"settings": settings, "rounds": rounds}


def best_settings(rows: Sequence[Row]) -> dict[str, Row]:
    """Return for each rule the tuned setting with the best accuracy on held-out examples."""
    best = {}
    for rule in RULES:
        tried = [row for row in rows if row["strategy"] == rule]
        winner = max(tried, key=itemgetter("held_out_accuracy"))
        best[rule] = {TUNING.get(rule, DEFAULT_TUNING)[0]: winner["value"]}
    return best


def rules_table(rows: Sequence[Row]) -> str:
    """Return test accuracy by rule, scope and partition."""
    rules = _in_order(rows, "rules")
    return pivot_table(rules, "strategy", ["shared", "partition"], itemgetter("accuracy"))


def scopes_table(rows: Sequence[Row]) -> str:
    """Return the clients' accuracy on held-out examples by scope and partition."""
    scopes = _in_order(rows, "scopes")
    return pivot_table(scopes, "scope", ["dataset", "partition"], itemgetter("held_out_accuracy"))


def worst_clients_table(rows: Sequence[Row]) -> str:
    """Return the accuracy of the worst client on its held-out examples by scope and partition."""
    scopes = _in_order(rows, "scopes")
    figure = itemgetter("worst_client_accuracy")
    return pivot_table(scopes, "scope", ["dataset", "partition"], figure)


def attacks_table(rows: Sequence[Row]) -> str:
    """Return test accuracy by rule and attack."""
    return pivot_table(_in_order(rows, "attacks"), "strategy", ["attack"], itemgetter("accuracy"))


def _in_order(rows: Sequence[Row], part: str) -> list[Row]:
    """Return the rows of a part in the order of its jobs; `rows` are in the order of their ends."""
    candidates = [row for row in rows if row["part"] == part]
    return [
        row
        for job in jobs()
        if job["part"] == part
        for row in candidates
        if job.items() <= row.items()
    ]


def main() -> None:
    """Run what the results file does not hold, and print the tables."""
    data, output = command_line(
        __doc__, data="folder that holds trec and ag_news", results="results file"
    )
    settings = {"clients": NUM_CLIENTS, "rounds": ROUNDS, "max length": MAX_LENGTH}
    tuned = best_settings(sweep(partial(run, {}, data), tuning_jobs(), output, settings))
    rows = sweep(partial(run, tuned, data), jobs(), output, settings | {"chosen": tuned})
    for table in (rules_table, scopes_table, worst_clients_table, attacks_table):
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
