"""Imports run in one direction, folders and files stay small, dependencies are declared."""

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("fedattn_app", "strategies")

# Packages by rank: each imports only from packages of a higher rank (above it), and from itself.
RANKS = [
    ["errors", "types"],
    [
        *("cache", "console", "files", "flower_compat", "label_text", "metrics"),
        *("optional_dependency", "run_identity"),
    ],
    ["config"],
    ["models", "transport"],
    ["bundles", "data", "results", "engine"],
    ["training"],
    ["privacy"],
    ["policy"],
    ["clients", "server"],
    ["client_app", "server_app", "analysis"],
    ["simulation"],
    ["cli"],
]
RANK = {package: rank for rank, packages in enumerate(RANKS) for package in packages}

MAX_MODULES_PER_FOLDER = 13
MAX_LINES_PER_FILE = 350
# A longer file gives its reason in its docstring, in a sentence with these words.
REASON_FOR_LENGTH = re.compile(r"\bone\s+file\s+because\b")

# Flower's private modules; `flwr.app` and the like are public.
FLOWER_INTERNALS = re.compile(
    r"flwr\.(cli|supercore|superlink|supernode|server\.superlink|proto|app\.message|common\.\w+)\b"
)

POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")


def files_of(package):
    return sorted((ROOT / package).rglob("*.py"))


def modules_of(package):
    """All modules of a package, except the package itself."""
    return [path for path in files_of(package) if path != ROOT / package / "__init__.py"]


def dotted(path):
    """The name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(path, for_types=True):
    """Every module that a file imports, anywhere in it, or only those imported when it runs."""
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if not is_for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def package_of(name):
    """The part of a dotted name below ``fedattn_app`` that has a rank."""
    return name.split(".")[1]


# Direction


@pytest.mark.parametrize("path", modules_of("fedattn_app"), ids=dotted)
def test_modules_import_only_packages_of_a_higher_rank(path):
    own = package_of(dotted(path))
    others = {package_of(name) for name in imported(path) if name.startswith("fedattn_app.")}
    assert [package for package in others - {own} if RANK[package] >= RANK[own]] == []


def cycle_in(edges):
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_files_import_each_other_without_cycles():
    paths = [path for package in SOURCES for path in files_of(package)]
    names = {dotted(path) for path in paths} - {"fedattn_app"}  # its own imports are lazy
    edges = {dotted(path): set(imported(path, for_types=False)) & names for path in paths}
    assert cycle_in(edges) == []


def test_folders_import_each_other_without_cycles():
    """A folder counts with its sub-folders apart, so these are checked too."""
    edges = {}
    for path in (path for package in SOURCES for path in modules_of(package)):
        folder = dotted(path.parent / "__init__.py")
        if folder in SOURCES:
            continue  # single modules have ranks of their own
        others = {folder_of(name) for name in imported(path) if name.split(".")[0] in SOURCES}
        edges.setdefault(folder, set()).update(others - {folder})
    assert edges
    assert cycle_in(edges) == []


def folder_of(name):
    is_folder = ROOT.joinpath(*name.split(".")).is_dir()
    return name if is_folder or name in SOURCES else name.rpartition(".")[0]


@pytest.mark.parametrize("path", modules_of("strategies"), ids=dotted)
def test_strategies_import_flower_and_numpy_only(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= {"flwr", "numpy", "strategies", *sys.stdlib_module_names}


def test_only_the_server_and_the_protections_import_strategies():
    users = {
        dotted(path).split(".")[1]
        for path in modules_of("fedattn_app")
        if "strategies" in {name.split(".")[0] for name in imported(path)}
    }
    assert users == {"server", "privacy"}


@pytest.mark.parametrize("path", modules_of("fedattn_app"), ids=dotted)
def test_only_two_files_use_the_private_parts_of_flower(path):
    if path.stem in ("flower_compat", "flower_supernode"):
        return
    assert [name for name in imported(path) if FLOWER_INTERNALS.match(name)] == []
    assert "__dict__[" not in path.read_text()


# Size


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for package in SOURCES for path in files_of(package)}),
    ids=lambda path: path.name,
)
def test_a_folder_has_few_modules(folder):
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= MAX_MODULES_PER_FOLDER


@pytest.mark.parametrize(
    "path", [path for package in SOURCES for path in files_of(package)], ids=dotted
)
def test_a_long_file_says_why_it_is_long(path):
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    short = len(text.splitlines()) <= MAX_LINES_PER_FILE
    assert short or REASON_FOR_LENGTH.search(docstring), f"{len(text.splitlines())} lines"


# What an import needs


def test_the_package_and_the_answer_to_a_query_need_no_torch(python):
    ran = python("import sys, fedattn_app; print({'torch', 'flwr'} & set(sys.modules))")
    assert ran.stdout.strip() == "set()", ran.stderr
    ran = python("import sys, fedattn_app.client_app; print('torch' in sys.modules)")
    assert ran.stdout.strip() == "False", ran.stderr


def test_the_package_exports_its_three_names(python):
    code = """if True:
        from fedattn_app import Config, Predictor, simulate
        import fedattn_app
        print(sorted(fedattn_app.__all__) == sorted(fedattn_app._MODULES))
        print(Config.__name__, Predictor.__name__, simulate.__name__)
        fedattn_app.other
    """
    ran = python(code)
    assert ran.stdout.split() == ["True", "Config", "Predictor", "simulate"]
    assert "module 'fedattn_app' has no attribute 'other'" in ran.stderr.splitlines()[-1]


def test_every_module_can_be_imported_without_posix(python):
    names = [dotted(path) for package in SOURCES for path in files_of(package)]
    # Other packages may use these modules where they find them, so they are imported first.
    code = f"""if True:
        import importlib, sys
        import datasets, filelock, flwr.clientapp, flwr.serverapp.strategy, flwr_datasets, opacus
        import peft, torch, transformers
        for name in {POSIX_ONLY!r}:
            sys.modules[name] = None
        for name in {names!r}:
            importlib.import_module(name)
        print("all imported")
    """
    ran = python(code)
    assert ran.stdout.strip() == "all imported", ran.stderr


# Declared dependencies

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_FOLDERS = (ROOT, ROOT / "tests", ROOT / "benchmarks")
LOCAL_ROOTS = {path.stem for folder in IMPORT_FOLDERS for path in folder.iterdir()}
UNDECLARED = {"pfl"}  # benchmarks/rivals needs it and says how to install it


def declared(*extras):
    """Distributions that pyproject.toml names for the package and for `extras`."""
    options = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in options[extra])]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("fedattn_app", ["pretrained"]),
        ("strategies", []),
        ("tests", ["pretrained", "test"]),
        ("benchmarks", ["pretrained", "test"]),
    ],
)
def test_every_imported_package_is_declared(folder, extras):
    roots = {name.split(".")[0] for path in files_of(folder) for name in imported(path)}
    roots -= {*sys.stdlib_module_names, *LOCAL_ROOTS, *UNDECLARED}
    distributions = packages_distributions()
    missing = {
        root
        for root in roots
        if not declared(*extras) & {canonical(name) for name in distributions.get(root, [root])}
    }
    assert missing == set()
