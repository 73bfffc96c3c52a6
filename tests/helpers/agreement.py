"""Compute what must be the same on every node, as texts by name, and print them as JSON.

Arguments: the folders of pretrained models whose weights lack a head.
"""

import json
import sys
from hashlib import sha256
from random import Random

from fedattn_app.clients.starting_point import StartingPoint
from fedattn_app.config import MODEL_SIZES, Config
from fedattn_app.data import triage
from fedattn_app.data.dirichlet import dirichlet_counts
from fedattn_app.data.loading import client_data
from fedattn_app.models.parameters import fingerprint, view_arrays

CLIENTS = 6
SHARES = ", ".join(["50/10/10/10/10/10", "33.3/0/33.3/0/33.4/0"] * 3)
SPLITS = {
    "sites": {},
    "iid": {"partitioner": "iid"},
    "dirichlet 0.1": {"partitioner": "dirichlet", "alpha": 0.1},
    "dirichlet 0.5": {"partitioner": "dirichlet"},
    "dirichlet 3": {"partitioner": "dirichlet", "alpha": 3.0},
    "pathological": {"partitioner": "pathological"},
    "linear": {"partitioner": "linear"},
    "square": {"partitioner": "square"},
    "label-shares": {
        "partitioner": "label-shares",
        "label-shares": SHARES,
        "examples-per-client": 97,
    },
}


def starts(models, scopes, seed=0):
    """The hash of each model's parameters, and of those that are frozen or personal in a scope."""
    hashes = {}
    for model in models:
        for scope in scopes:
            local = {"local": "personal"} if scope == "lora-a" else {}
            keys = {"model": str(model), "shared": scope, "seed": seed, "max-length": 32, **local}
            start = StartingPoint(Config.from_run_config(keys), triage.LABELS)
            name = f"{model}, {scope}"
            hashes[f"{name}: all"] = fingerprint(view_arrays(start.model))
            hashes[f"{name}: frozen"] = start.frozen_fingerprint
            hashes[f"{name}: personal"] = start.personal_identity
    return hashes


def splits(names=tuple(SPLITS), seed=1):
    """The hash of all clients' examples in each split of the built-in corpus."""
    hashes = {}
    for name in names:
        config = Config.from_run_config(SPLITS[name])
        digest = sha256()
        for client in range(CLIENTS):
            data = client_data(config.data, config.model, seed, client, CLIENTS)
            for part in (data.train, data.validation):
                for tensor in (part.inputs.ids, part.inputs.lengths, part.labels):
                    digest.update(f"{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        hashes[name] = digest.hexdigest()[:16]
    return hashes


def draws():
    """The draws behind the splits to their last bit, which seldom changes a split.

    At these sites, logarithms of the C library differ between processors.
    """
    counts = [dirichlet_counts(10**18, alpha, 50, Random(1)) for alpha in (0.1, 0.5, 3.0)]
    mixes = [triage._Site(1, f"site-{site}").class_mix for site in (7502, 8826, 9524)]
    return {"counts": str(counts), "mixes": str(mixes)}


if __name__ == "__main__":
    print(
        json.dumps(
            {
                **starts(MODEL_SIZES, ["attention", "head", "attention+head", "all-but-attention"]),
                **starts(["tiny", *sys.argv[1:]], ["lora", "lora-a", "lora-b", "attention"]),
                **splits(),
                **draws(),
            }
        )
    )
