"""Twelve runs that a change of structure must not change: what each comes to, bit for bit.

    python benchmarks/behaviour.py DATA BEFORE.json
    python benchmarks/behaviour.py DATA AFTER.json --against BEFORE.json

The first command is for the tree before the change, the second for the tree after it, on the same
machine with the same packages: bits differ between processors and between versions of torch, so no
result is kept here. `DATA` is a folder that holds ``trec``. With PYTHONPATH set to another
checkout, that one is run. The exit status of the second command is 1 where anything but a time
differs.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {"model": "tiny", "vocabulary": 512, "max-length": 16, "num-rounds": 3}
TREC = QUICK | {"dataset": "file", "partitioner": "dirichlet", "max-length": 12}
NOISE = {"reproducible-noise": True, "num-rounds": 2}

# Name, settings, engine; with "then" the run is resumed with these settings.
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("defaults", {"num-rounds": 2, "strategy": "fedavg"}),
    ("all, fedprox", TREC | {"shared": "all", "strategy": "fedprox", "local-epochs": 2}),
    ("attention, fedadam, resumed", TREC | {"shared": "attention", "strategy": "fedadam"}),
    ("regex, qfedavg, cosine", QUICK | {"shared": r"layers\.0\..*", "strategy": "qfedavg"}),
    ("head, geometric-median, clip", QUICK | {"shared": "head", "strategy": "geometric-median"}),
    ("dp-sgd", QUICK | NOISE | {"privacy": "dp-sgd", "target-epsilon": 8.0}),
    ("client-dp, resumed", QUICK | NOISE | {"privacy": "client-dp", "noise-multiplier": 1.0}),
    ("warm-up, fedavgm, resumed", QUICK | {"warmup-rounds": 1, "strategy": "fedavgm"}),
    ("personal, fedatt, patience", TREC | {"local": "personal", "strategy": "fedatt"}),
    (
        "fedbuff",
        QUICK | {"strategy": "fedbuff", "fedbuff-concurrency": 3, "fedbuff-buffer-size": 2},
    ),
    ("lora, fedsgd", {"shared": "lora", "strategy": "fedsgd", "max-length": 16, "num-rounds": 2}),
    ("dp-sgd, lora-b, Flower's engine", NOISE | {"privacy": "dp-sgd", "noise-multiplier": 1.5}),
]
MORE: dict[str, dict[str, Any]] = {
    "regex, qfedavg, cosine": {"learning-rate-schedule": "cosine", "optimizer": "sgd"},
    "head, geometric-median, clip": {
        "update-clip-norm": 0.05,
        "weighting": "auto",
        "min-clients": 4,
    },
    "dp-sgd": {"evaluate-epsilon": 4.0, "fraction-train": 0.5},
    "warm-up, fedavgm, resumed": {"server-momentum": 0.9},
    "personal, fedatt, patience": {"patience": 1, "shared": "attention", "score": "loss"},
    "dp-sgd, lora-b, Flower's engine": {"shared": "lora-b", "max-length": 16, "optimizer": "adam"},
}
RESUMED = 4  # rounds


def main() -> int:
    """Run all, write what they come to, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, settings in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = run(name, settings | MORE.get(name, {}), arguments.data, Path(scratch))
        print(name, found[name]["model"][:12], flush=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text())
    different = [name for name in before if before[name] != json.loads(json.dumps(found[name]))]
    print(
        f"{len(before) - len(different)} of {len(before)} runs are the same", *different, sep="\n"
    )
    return int(bool(different))


def run(name: str, settings: dict[str, Any], data: Path, scratch: Path) -> dict[str, Any]:
    """Run once, with a second half where the name says so, and return all but the times."""
    from fedattn_app.simulation import simulate

    settings = settings | {"output-dir": str(scratch / "run")}
    if settings.get("dataset") == "file":
        settings["data-path"] = str(data / "trec")
    if str(settings.get("shared", "")).startswith("lora"):
        settings["model"] = str(tiny_bert(scratch / "bert"))
    engine = "flower" if "Flower's engine" in name else "local"
    result = simulate(settings, 4, engine=engine, quiet=True)
    if "resumed" in name:
        again = {"resume-from": str(result.path), "output-dir": str(scratch / "resumed")}
        result = simulate(again | {"num-rounds": RESUMED}, quiet=True)
    return {
        "summary": without_times(result.summary),
        "history": [without_times(row) for row in result.history],
        "clients": [without_times(row) for row in result.clients],
        "model": digest(result.path / "model.safetensors"),
        "best": digest(result.path / "best.safetensors"),
        "files": sorted(str(file.relative_to(result.path)) for file in result.path.rglob("*")),
    }


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` less what differs from run to run."""
    left = {key: value for key, value in row.items() if key != "seconds"}
    if "bert" in str(left.get("model")):
        left["model"] = "bert"  # a temporary folder
    return left


def digest(file: Path) -> str:
    """Return the SHA-256 of the names and bytes of all arrays in a safetensors file."""
    from safetensors.numpy import load_file

    if not file.exists():
        return ""
    arrays = load_file(file)
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        sha.update(arrays[name].tobytes())
    return sha.hexdigest()


def tiny_bert(folder: Path) -> Path:
    """Write a BERT with random weights and a vocabulary of letters to `folder`."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    backend = Tokenizer(WordPiece({w: k for k, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "bert", **shape, intermediate_size=64, vocab_size=len(words), max_position_embeddings=40
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
