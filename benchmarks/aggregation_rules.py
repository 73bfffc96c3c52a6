"""Every rule, scope and attack side by side: the figures of README and compare_strategies.ipynb.

Ten clients, the built-in model, one local epoch a round, few rounds and short texts so that it
takes hours and not days, data from the folder given:

- ``tune``: for each rule a step size (for fedprox its μ), four candidates each, by the accuracy on
  what clients hold out, with a seed that nothing else uses;
- ``rules``: every rule × {IID, Dirichlet 0.5, 0.1} × {all, attention+head} on TREC;
- ``scopes``: fedavg × the same partitions × what travels, and what is kept personal, on TREC and
  AG News;
- ``attacks``: three of ten clients lie, on TREC (IID, attention+head), under the robust rules.

Each run has a file of its own in the folder given; one that is there is not run again.

    python benchmarks/strategies.py ../shared/data benchmarks/results/strategies

With the folder of the results alone it prints the tables of what is there.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from attacks import LIES, Attacked
from sweep import SEEDS, Row, about, figures, pivot

from fedattn_app import client_app
from fedattn_app.config import RULES
from fedattn_app.files import write_atomically
from fedattn_app.simulation import simulate

CLIENTS = 10
ROUNDS = {"trec": 5, "ag_news": 2}
MAX_LENGTH = 32
TUNING_SEED = 100
PARTITIONS = {
    "iid": {"partitioner": "iid"},
    "dirichlet-0.5": {"partitioner": "dirichlet", "alpha": 0.5},
    "dirichlet-0.1": {"partitioner": "dirichlet", "alpha": 0.1},
}
# By rule the settings that it always has here, and the one that is tuned over four values.
LOCAL_RATES = ("learning-rate", (1e-3, 2e-3, 4e-3, 8e-3))
LOCAL_RATE = 4e-3  # where the server's step is tuned: what the tuning of fedavg came to
ALWAYS: Mapping[str, Row] = {
    "fedavgm": {"server-momentum": 0.9},
    "fedsgd": {"server-momentum": 0.9},
    "krum": {"malicious-clients": 3},
    "multikrum": {"malicious-clients": 3, "multikrum-selected": 5},
    "bulyan": {"malicious-clients": 1},
    "fedtrimmedavg": {"trim-fraction": 0.3},
    "fedbuff": {"fedbuff-concurrency": 10, "fedbuff-buffer-size": 5},
}
TUNED: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "fedprox": ("proximal-mu", (0.0001, 0.001, 0.01, 0.1)),
    "fedavgm": ("server-learning-rate", (0.3, 0.6, 1.0, 1.5)),
    "fedadagrad": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedadam": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedyogi": ("server-learning-rate", (0.01, 0.03, 0.1, 0.3)),
    "fedsgd": ("server-learning-rate", (0.3, 1.0, 3.0, 10.0)),
    "qfedavg": ("server-learning-rate", (3.0, 10.0, 30.0, 100.0)),
}
SCOPES: Mapping[str, Row] = {
    "all": {"shared": "all"},
    "attention": {"shared": "attention"},
    "attention+head": {"shared": "attention+head"},
    "head": {"shared": "head"},
    "all-but-attention": {"shared": "all-but-attention"},
    "personal rest": {"shared": "attention+head", "local": "personal"},
    "personal attention": {"shared": "all-but-attention", "local": "personal"},
    # As good as alone: six numbers, or four, travel.
    "personal all": {"shared": r"head\.bias", "local": "personal"},
}
ROBUST = (
    "fedavg",
    "fedmedian",
    "fedtrimmedavg",
    "geometric-median",
    "krum",
    "multikrum",
    "bulyan",
)
LIARS = 0.3


def jobs(seed: int) -> Iterator[Row]:
    """Yield what identifies each run of one seed."""
    for attack, rule in product(("none", *LIES), ROBUST):
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


def tuning() -> Iterator[Row]:
    """Yield the runs that choose the settings."""
    for rule in RULES:
        for value in TUNED.get(rule, LOCAL_RATES)[1]:
            yield {"part": "tune", "strategy": rule, "value": value, "seed": TUNING_SEED}


def settings(job: Row, chosen: Mapping[str, Row], data: Path) -> Row:
    """Return the run-config of a job."""
    dataset = job.get("dataset", "trec")
    rule = job.get("strategy", "fedavg")
    rate = {} if rule == "fedsgd" else {"learning-rate": LOCAL_RATE}
    return {
        "dataset": "file",
        "data-path": str(data / dataset),
        "max-length": MAX_LENGTH,
        "num-rounds": ROUNDS[dataset] * (2 if rule == "fedbuff" else 1),  # a buffer is half of all
        "seed": job["seed"],
        "strategy": rule,
        **rate,
        **PARTITIONS[job.get("partition", "dirichlet-0.5" if job["part"] == "tune" else "iid")],
        **SCOPES[job.get("scope", job.get("shared", "attention+head"))],
        **ALWAYS.get(rule, {}),
        **({TUNED.get(rule, LOCAL_RATES)[0]: job["value"]} if "value" in job else chosen[rule]),
    }


def run(job: Row, chosen: Mapping[str, Row], data: Path) -> Row:
    """Run one federation and return all that is kept of it."""
    attack = job.get("attack", "none")
    app = client_app.app if attack == "none" else Attacked(attack, LIARS, CLIENTS, job["seed"])
    config = settings(job, chosen, data)
    with TemporaryDirectory() as folder:
        result = simulate(
            {**config, "output-dir": f"{folder}/run"}, CLIENTS, workers=1, quiet=True, clients=app
        )
        rounds = [
            {
                "accuracy": (row["central"] or row["evaluate"] or {}).get("accuracy"),
                "megabytes": (row["bytes_up"] + row["bytes_down"]) / 1e6,
            }
            for row in result.history
        ]
        return job | figures(result) | {"settings": _told(config), "rounds": rounds}


def _told(config: Row) -> Row:
    return {key: value for key, value in config.items() if key != "data-path"}


def file_of(job: Row) -> str:
    """Return the name of a job's file."""
    return "_".join(str(value) for value in job.values()).replace(" ", "-") + ".json"


def carry_out(wanted: list[Row], chosen: Mapping[str, Row], data: Path, output: Path) -> list[Row]:
    """Run what has no file yet, two at a time, and return all rows in the order of `wanted`."""
    left = [job for job in wanted if not (output / file_of(job)).exists()]
    with ProcessPoolExecutor(2) as pool:
        running = {pool.submit(run, job, chosen, data): job for job in left}
        for number, future in enumerate(as_completed(running), start=1):
            job = running[future]
            row = json.dumps(future.result(), indent=1, allow_nan=False)
            write_atomically(output / file_of(job), f"{row}\n".encode())
            print(f"{number}/{len(left)} {file_of(job)}", file=sys.stderr, flush=True)
    return [json.loads((output / file_of(job)).read_text()) for job in wanted]


def best(rows: list[Row]) -> dict[str, Row]:
    """Return for each rule the setting with the best accuracy on what clients hold out."""
    chosen = {}
    for rule in RULES:
        mine = [row for row in rows if row["strategy"] == rule]
        winner = max(mine, key=lambda row: row["held_out_accuracy"])
        chosen[rule] = {TUNED.get(rule, LOCAL_RATES)[0]: winner["value"]}
    return chosen


def tables(rows: list[Row]) -> str:
    """Return test accuracy by rule and by attack, and the clients' own by what travels."""
    parts = {
        part: [row for row in rows if row["part"] == part]
        for part in ("rules", "scopes", "attacks")
    }

    def accuracy(row: Row) -> float | None:
        return row["accuracy"]

    def held_out(row: Row) -> float | None:
        return row["held_out_accuracy"]

    def worst_client(row: Row) -> float | None:
        return row["worst_client_accuracy"]

    return "\n\n".join(
        [
            pivot(parts["rules"], "strategy", ["shared", "partition"], accuracy),
            pivot(parts["scopes"], "scope", ["dataset", "partition"], held_out),
            pivot(parts["scopes"], "scope", ["dataset", "partition"], worst_client),
            pivot(parts["attacks"], "strategy", ["attack"], accuracy),
        ]
    )


def main() -> None:
    """Run what is missing and print the tables."""
    if not 2 <= len(sys.argv) <= 3 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    output = Path(sys.argv[-1])
    wanted = [job for seed in SEEDS for job in jobs(seed)]
    if len(sys.argv) == 2:
        files = [output / file_of(job) for job in wanted]
        print(tables([json.loads(file.read_text()) for file in files if file.exists()]))
        return
    data = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    chosen = best(carry_out(list(tuning()), {}, data, output))
    header = about(
        {
            "clients": CLIENTS,
            "rounds": ROUNDS,
            "max length": MAX_LENGTH,
            "seeds": SEEDS,
            "chosen": chosen,
        }
    )
    (output / "about.json").write_text(json.dumps(header, indent=1) + "\n")
    print(tables(carry_out(wanted, chosen, data, output)))


if __name__ == "__main__":
    main()
