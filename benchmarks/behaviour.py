"""Check that a change of structure changes no result: twelve runs, compared bit for bit.

    python benchmarks/behaviour.py DATA BEFORE.json
    python benchmarks/behaviour.py DATA AFTER.json --against BEFORE.json

The first command is for the tree before the change, the second for the tree after it. Each takes
less than a minute and writes what its runs came to. Run both on the same machine with the same
packages: bits differ between processors and between versions of torch, so no result is kept here.
DATA is a folder that holds ``trec``. To run another checkout, put it on PYTHONPATH. The exit status
of the second command is 1 if anything but a time differs.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Settings = dict[str, Any]

NUM_CLIENTS = 4
ROUNDS_AFTER_RESUMING = 4

QUICK: Settings = {"model": "tiny", "vocabulary": 512, "max-length": 16, "num-rounds": 3}
TREC = QUICK | {"dataset": "file", "partitioner": "dirichlet", "max-length": 12}
NOISE: Settings = {"reproducible-noise": True, "num-rounds": 2}
LORA: Settings = {"max-length": 16, "num-rounds": 2}


@dataclass(frozen=True)
class Scenario:
    """One run; `settings` without data path, model folder and output folder."""

    name: str
    settings: Settings
    engine: str = "local"
    resumed: bool = False


SCENARIOS = (
    Scenario("defaults", {"num-rounds": 2, "strategy": "fedavg"}),
    Scenario("all, fedprox", TREC | {"shared": "all", "strategy": "fedprox", "local-epochs": 2}),
    Scenario(
        "attention, fedadam, resumed",
        TREC | {"shared": "attention", "strategy": "fedadam"},
        resumed=True,
    ),
    Scenario(
        "regex, qfedavg, cosine",
        QUICK
        | {
            "shared": r"layers\.0\..*",
            "strategy": "qfedavg",
            "learning-rate-schedule": "cosine",
            "optimizer": "sgd",
        },
    ),
    Scenario(
        "head, geometric-median, clip",
        QUICK
        | {
            "shared": "head",
            "strategy": "geometric-median",
            "update-clip-norm": 0.05,
            "weighting": "auto",
            "min-clients": 4,
        },
    ),
    Scenario(
        "dp-sgd",
        QUICK
        | NOISE
        | {
            "privacy": "dp-sgd",
            "target-epsilon": 8.0,
            "evaluate-epsilon": 4.0,
            "fraction-train": 0.5,
        },
    ),
    Scenario(
        "client-dp, resumed",
        QUICK | NOISE | {"privacy": "client-dp", "noise-multiplier": 1.0},
        resumed=True,
    ),
    Scenario(
        "warm-up, fedavgm, resumed",
        QUICK | {"warmup-rounds": 1, "strategy": "fedavgm", "server-momentum": 0.9},
        resumed=True,
    ),
    Scenario(
        "personal, fedatt, patience",
        TREC
        | {
            "local": "personal",
            "shared": "attention",
            "strategy": "fedatt",
            "patience": 1,
            "score": "loss",
        },
    ),
    Scenario(
        "fedbuff",
        QUICK | {"strategy": "fedbuff", "fedbuff-concurrency": 3, "fedbuff-buffer-size": 2},
    ),
    Scenario("lora, fedsgd", LORA | {"shared": "lora", "strategy": "fedsgd"}),
    Scenario(
        "dp-sgd, lora-b, Flower's engine",
        LORA
        | NOISE
        | {
            "shared": "lora-b",
            "privacy": "dp-sgd",
            "noise-multiplier": 1.5,
            "optimizer": "adam",
        },
        engine="flower",
    ),
)


def main() -> int:
    """Run all scenarios, write what they came to, and compare; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that holds trec")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file to compare with")
    arguments = parser.parse_args()
    outcomes = {}
    for scenario in SCENARIOS:
        with TemporaryDirectory() as scratch:
            outcomes[scenario.name] = run(scenario, arguments.data, Path(scratch))
        print(scenario.name, outcomes[scenario.name]["model"][:12], flush=True)
    text = json.dumps(outcomes, indent=1) + "\n"
    arguments.output.write_text(text)
    if arguments.against is None:
        return 0
    after, before = json.loads(text), json.loads(arguments.against.read_text())
    different = [name for name in before if before[name] != after.get(name)]
    same = len(before) - len(different)
    print(f"{same} of {len(before)} runs are the same", *different, sep="\n")
    return int(bool(different))


def run(scenario: Scenario, data: Path, scratch: Path) -> dict[str, Any]:
    """Run a scenario and return everything that it left except times.

    A resumed one runs to its end and continues to round `ROUNDS_AFTER_RESUMING` in a new folder;
    what the second half left is returned.
    """
    from fedattn_app.simulation import simulate

    settings = scenario.settings | {"output-dir": str(scratch / "run")}
    if settings.get("dataset") == "file":
        settings["data-path"] = str(data / "trec")
    if str(settings.get("shared", "")).startswith("lora"):
        settings["model"] = str(write_tiny_bert(scratch / "bert"))
    result = simulate(settings, NUM_CLIENTS, engine=scenario.engine, quiet=True)
    if scenario.resumed:
        settings = {
            "resume-from": str(result.path),
            "output-dir": str(scratch / "resumed"),
            "num-rounds": ROUNDS_AFTER_RESUMING,
        }
        result = simulate(settings, quiet=True)
    return {
        "summary": reproducible_part(result.summary),
        "history": [reproducible_part(row) for row in result.history],
        "clients": [reproducible_part(row) for row in result.clients],
        "model": digest(result.path / "model.safetensors"),
        "best": digest(result.path / "best.safetensors"),
        "files": sorted(str(file.relative_to(result.path)) for file in result.path.rglob("*")),
    }


def reproducible_part(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` without its time and without the path of a temporary folder."""
    kept = {key: value for key, value in row.items() if key != "seconds"}
    if "bert" in str(kept.get("model")):
        kept["model"] = "bert"
    return kept


def digest(file: Path) -> str:
    """Return the SHA-256 of all names and arrays in a safetensors file; "" if there is no file."""
    from safetensors.numpy import load_file

    if not file.exists():
        return ""
    arrays = load_file(file)
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        sha.update(arrays[name].tobytes())
    return sha.hexdigest()


def write_tiny_bert(folder: Path) -> Path:
    """Write a BERT with random weights and a vocabulary of letters to `folder`, and return it."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "bert", **shape, intermediate_size=64, vocab_size=len(tokens), max_position_embeddings=40
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
