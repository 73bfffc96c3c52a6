"""Imports run one way, and the server's strategies stand alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each module may import those above it.
LAYERS = [
    ["errors"],
    ["settings"],
    ["data_config", "model_config", "privacy_config", "rule_config"],
    ["config", "run_config"],
    [
        "tokenizer",
        "triage",
        "scopes",
        "extra",
        "parameters",
        "console",
        "shared_memory",
        "replies",
        "scores",
    ],
    ["model", "storage", "held_array", "spending"],
    ["pretrained", "lora", "sources", "state", "compact", "optimizer", "products"],
    ["build"],
    ["data"],
    ["training", "results", "grid"],
    ["privacy.accounting", "privacy.randomness", "privacy.gradients"],
    ["privacy.ledger", "privacy.bookkeeping", "privacy.training"],
    ["privacy.engines", "rules", "stream", "outcome", "cohort", "owner"],
    ["client", "rounds", "predictor"],
    ["private_client"],
    ["client_app", "server_app"],
    ["workers"],
    ["local_engine"],
    ["simulation"],
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def imported(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fedattn_app":
            yield from (f"fedattn_app.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def modules(package):
    return sorted(p for p in (ROOT / package).rglob("*.py") if p.stem != "__init__")


def name_of(path):
    """The dotted name below the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


@pytest.mark.parametrize("path", modules("fedattn_app"), ids=name_of)
def test_modules_import_only_what_is_above_them(path):
    own = [
        name.removeprefix("fedattn_app.")
        for name in imported(path)
        if name.startswith("fedattn_app.")
    ]
    assert [name for name in own if RANK[name] >= RANK[name_of(path)]] == []


@pytest.mark.parametrize("path", modules("strategies"), ids=name_of)
def test_strategies_know_flower_and_numpy_only(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= {"flwr", "numpy", "strategies", *sys.stdlib_module_names}


def test_only_the_servers_side_knows_the_strategies():
    users = {
        path.stem
        for path in modules("fedattn_app")
        if "strategies" in {name.split(".")[0] for name in imported(path)}
    }
    assert users == {"server_app", "rules", "replies"}


def test_answering_the_servers_question_needs_no_torch():
    code = "import sys, fedattn_app.client_app; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "False", ran.stderr
