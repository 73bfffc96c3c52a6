"""Run-configs and messages of somebody who wants to learn what a node's examples are."""

from itertools import product

DP = {"privacy": "dp-sgd", "noise-multiplier": 4.0}
PATHS = (
    *("/etc/passwd", "/etc/shadow", "/", ".", "..", "~", "~/.ssh/id_rsa", "/proc/self/environ"),
    *("own.csv", "state", "state/privacy-ledger.json", "other.csv", "key.json", "a\0b", "x" * 5000),
)
# A hub id, or a name that is looked up as one.
NAMES = (
    "imdb",
    "user/stolen",
    "csv",
    "json",
    "text",
    "parquet",
    "other.csv",
    "own.csv",
    "FILE",
    "",
)
GUESSES = (
    *(
        "HIV,none",
        "yes,no",
        "no,yes",
        "no",
        "yes,no,HIV",
        '"no,yes"',
        'a, "b',
        ",",
        "no,no",
        "NO,no",
    ),
    *("\ud83d,no", "1,2", "true,false", "nan,no", "x" * 100_000, ",".join(map(str, range(5000)))),
)
COLUMNS = ("text", "name", "diagnosis", "salary", "", "label", "text\0", "x" * 10_000, "__class__")
SCOPES = (
    *(
        "all",
        "attention",
        "head",
        "attention+head",
        "all-but-attention",
        "lora",
        "lora-a",
        "lora-b",
    ),
    *(".*", "head.*", r"(\w+\.?)+!", "(.*)*x", "(?=a)b", "[", "", "embedding.weight", "x" * 9999),
)
SIZES = (
    *({"width": 512}, {"width": 8192, "heads": 64}, {"layers": 64, "width": 8192}),
    *(
        {"feedforward": 65536},
        {"vocabulary": 2**24},
        {"vocabulary": 8},
        {"heads": 256, "width": 512},
    ),
    *({"max-length": 8192}, {"max-length": 1}, {"max-length": 0}, {"batch-size": 1}),
    *({"batch-size": 2**31 - 1}, {"physical-batch-size": 10**12}, {"local-epochs": 10**9}),
    *({"local-epochs": 10**400}, {"lora-rank": 1024}, {"layers": -1}, {"width": "512"}),
)
NOISE = (
    *({"target-delta": delta} for delta in (2.4e-3, 0.5, 0.999, 1e-300, 5e-324, 0.0, -1e-5, 2.0)),
    *({"noise-multiplier": noise} for noise in (1e-300, 1e-9, 1e-3, 0.1, 0.0, -1.0, 1e300)),
    *({"noise-multiplier": 0.0, "target-epsilon": e} for e in (1e-9, 1e3, 1e9, 1e300, -1.0)),
    *({"max-grad-norm": norm} for norm in (1e-6, 1e30, 1e300, 0.0, -1.0)),
    *({"accountant": name} for name in ("prv", "none", "rdp ")),
    *({"evaluate-epsilon": e} for e in (1e3, 1e300, -1.0)),
    {"reproducible-noise": True},
    {"reproducible-noise": True, "seed": 0},
    {"num-examples-public": True, "reproducible-noise": True},
    {"privacy": "client-dp", "noise-multiplier": 1e-6},
    {"privacy": "client-dp", "noise-multiplier": 1.0},
    {"privacy": "dp-sgd "},
    {"privacy": ""},
    {"privacy": "secret"},
)
# Keys of the owner, which a run may not set.
OWNERS = (
    *({"allow-unprotected": True}, {"max-epsilon": 1e9}, {"max-delta": 0.9}, {"policy": "own.csv"}),
    *(
        {"ledger": "fresh"},
        {"ledger": "../x"},
        {"state-dir": "elsewhere"},
        {"model-path": "own.csv"},
    ),
    *({"partition-id": 3}, {"simulated": True}, {"data_path": "own.csv"}, {"reply-every": 0}),
)
MODELS = ("own.csv", "state", ".", "/", "gpt2", "user/stolen", "~", "a\0b", "small ", "x" * 5000)
UNPROTECTED = (
    *({"strategy": name} for name in ("fedavg", "fedsgd", "fedprox", "qfedavg", "krum", "fedbuff")),
    *({"weighting": name} for name in ("loss", "effective", "uniform", "examples")),
    {"local": "personal"},
    {"local": "personal", "shared": "attention"},
    {"validation-fraction": 0.9},
    {"validation-fraction": 0.0, "fraction-evaluate": 1.0},
    {"warmup-rounds": 5},
    {"codec": "float16"},
    {"strategy": "fedsgd", "shared": "all", "fedsgd-batch-size": 1},
    {"strategy": "fedsgd", "shared": "attention", "width": 512, "heads": 2},
    {"optimizer": "sgd", "local-epochs": 1, "learning-rate": 1e-9},
    {"dropout": 0.0, "shared": "head", "batch-size": 1},
)


def hostile_run_configs():
    """Yield about 300 run-configs, as changes of the run that the node's owner expects."""
    for path, privacy in product(PATHS, ({}, DP)):
        yield {"data-path": path, **privacy}
        yield {"dataset": path, **privacy}
    for name in NAMES:
        yield {"dataset": name}
        yield {"dataset": name, **DP}
    for labels, privacy in product(GUESSES, ({}, DP)):
        yield {"labels": labels, **privacy}
    for column, privacy in product(COLUMNS, ({}, DP)):
        yield {"text-column": column, **privacy}
        yield {"label-column": column, **privacy}
    for scope in SCOPES:
        yield {"shared": scope}
        yield {"shared": scope, **DP}
    yield from SIZES
    yield from ({**DP, **size} for size in SIZES)
    yield from ({**DP, **noise} for noise in NOISE)
    yield from OWNERS
    yield from ({**DP, **keys} for keys in OWNERS)
    yield from ({"model": model} for model in MODELS)
    yield from ({**DP, "model": model} for model in MODELS)
    yield from UNPROTECTED
