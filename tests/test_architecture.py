"""Imports run one way, and the server's strategies stand alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Packages by rank: each imports only from packages above it, and from itself.
RANKS = [
    ["errors", "types"],
    ["cache", "console", "files", "flower_compat", "metrics", "optional_dependency"],
    ["config"],
    ["models", "transport"],
    ["data", "results", "engine"],
    ["training"],
    ["privacy"],
    ["clients", "server"],
    ["client_app", "server_app", "analysis"],
    ["simulation"],
]
RANK = {package: rank for rank, packages in enumerate(RANKS) for package in packages}


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


def package_of(name):
    """The first part of a dotted name below ``fedattn_app``."""
    return name.split(".")[0]


@pytest.mark.parametrize("path", modules("fedattn_app"), ids=name_of)
def test_modules_import_only_packages_of_a_higher_rank(path):
    own = package_of(name_of(path))
    others = {
        package_of(name.removeprefix("fedattn_app."))
        for name in imported(path)
        if name.startswith("fedattn_app.")
    } - {own}
    assert [package for package in others if RANK[package] >= RANK[own]] == []


@pytest.mark.parametrize("path", modules("strategies"), ids=name_of)
def test_strategies_know_flower_and_numpy_only(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= {"flwr", "numpy", "strategies", *sys.stdlib_module_names}


def test_only_the_server_and_its_protections_import_strategies():
    users = {
        path.stem
        for path in modules("fedattn_app")
        if "strategies" in {name.split(".")[0] for name in imported(path)}
    }
    assert users == {"strategy_factory", "base", "client_dp"}


def test_answering_the_servers_question_needs_no_torch():
    code = "import sys, fedattn_app.client_app; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "False", ran.stderr
