"""Every command and every Python block of README.md and docs/ runs, or fits what it calls.

A command is run where that takes seconds: with few rounds and a tiny model, in a folder that has
the data and the models which the pages name. Commands that install, or that start daemons, are
checked against the options and keys that the program has. A command of any other program fails.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from helpers.data_files import write
from helpers.pages import FEDERATION_KEYS, PAGES, ROOT, blocks_of

import run_simulation
from fedattn_app.cli import app as fedattn
from fedattn_app.config import Config, parse_run_config
from fedattn_app.errors import UserError
from fedattn_app.policy.owner_policy import NODE_KEYS
from fedattn_app.simulation import simulate

BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PROGRAMS = ("pip", "python", "pytest", "flwr", "flower-superlink", "fedattn", ".ci/run")
QUICK = {"num-rounds": 1, "model": "tiny", "vocabulary": 512, "max-length": 16}


def commands_of(block):
    """The commands of a block as lists of words; a shell operator other than && fails."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = [*lexer, "&&"]
        assert not {";", "|", ">", "<", "&", "||", ">>"} & set(words), f"{block.place}: {line}"
        while words:
            end = words.index("&&")
            if words[:end]:
                commands.append(tuple(words[:end]))
            words = words[end + 1 :]
    return commands


def is_shell(block):
    """Whether a block has commands: those that are only shown are marked as text."""
    return block.language == "sh" or block.text.split(maxsplit=1)[0] in PROGRAMS


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = {words: block for block in BLOCKS if is_shell(block) for words in commands_of(block)}


def options(words, values):
    """Split words into options by name, each with its values, and the other words.

    `values` has the options that take a value.
    """
    given, others, rest = {}, [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            given.setdefault(name, [])
            if equals or name in values:
                given[name].append(value if equals else rest.pop(0))
        else:
            others.append(word)
    return given, others


@cache
def options_of(*program):
    """The names of all options in a program's own help."""
    name, *command = program
    # The environment of these tests may be older than the console script.
    start = [sys.executable, "-m", "fedattn_app.cli"] if name == "fedattn" else [BIN / name]
    ran = subprocess.run(
        [*start, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={"PATH": str(BIN), "COLUMNS": "200", "FLWR_TELEMETRY_ENABLED": "0"},
    )
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", ran.stdout))


def pairs(texts):
    """The keys and values of `key=value` texts, as Flower reads them."""
    return parse_run_config(texts)


def check_pip(words):
    given, requirements = options(words, values=())
    assert set(given) <= {"-e"}
    assert requirements
    for requirement in requirements:
        match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", requirement)
        assert match, f"{requirement} is not this project"
        extras = set((match[1] or "").split(",")) - {""}
        assert extras <= set(PROJECT["project"]["optional-dependencies"])


def check_flwr_run(words):
    given, positional = options(words, values=("--run-config", "--federation-config"))
    assert set(given) <= options_of("flwr", "run")
    assert set(pairs(given.get("--federation-config", []))) <= FEDERATION_KEYS
    Config.from_run_config(pairs(given.get("--run-config", [])))
    app, *superlinks = positional
    assert app == "."
    declared = [tomllib.loads(block.text) for block in BLOCKS if block.language == "toml"]
    known = {name for table in declared for name in table.get("superlink", {})}
    assert set(superlinks) <= known, "no page shows how to declare this SuperLink"


def check_daemon(words, *program):
    without_value = {"--insecure", "--disable-runtime-dependency-installation"}
    named = {word for word in words if word.startswith("-")}
    assert named <= options_of(*program)
    given, others = options(words, values=named - without_value)
    assert others == []
    assert set(pairs(given.get("--node-config", []))) <= NODE_KEYS


def run_python(*arguments):
    """Run a script or module of this project in a Python of its own."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def check_benchmark(script, words):
    """Run a benchmark without arguments; of any other, its docstring shows the same arguments."""
    if not words:
        run_python(script)
        return
    usage = ast.get_docstring(ast.parse((ROOT / script).read_text())) or ""
    shown = re.findall(rf"python {re.escape(script)}(.*)", usage)
    assert len(words) in [len(shlex.split(arguments)) for arguments in shown]


def check_pytest(words):
    """Check that the paths exist, and that pytest accepts the options."""
    _, paths = options(words, values=("-m", "-n", "-k"))
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []
    collect_one_file(tuple(word for word in words if word not in paths))


@cache
def collect_one_file(words):
    command = [sys.executable, "-m", "pytest", *words, "-n", "0", "--collect-only", "-q"]
    command += ["--noconftest", "-p", "no:cacheprovider", "tests/test_readme.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ran.returncode in (0, 5), ran.stdout + ran.stderr  # 5: no test of the file is selected


def quick(given):
    """The settings that make a run short, without those that do not fit the `given` ones."""
    if "resume-from" in given:
        return {"num-rounds": QUICK["num-rounds"] + 1}
    added = {k: v for k, v in QUICK.items() if k == "num-rounds" or k not in given}
    if "model" in given:
        added.pop("vocabulary", None)  # a pretrained model has its own
    return added


def run_script(words, monkeypatch, capsys):
    given, _ = options(words, values=("--run-config", "--num-supernodes", "--output-dir"))
    settings = quick(pairs(given.get("--run-config", [])))
    added = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    monkeypatch.setattr(
        sys, "argv", ["run_simulation.py", *words, "--quiet", "--run-config", added]
    )
    assert run_simulation.main() == 0, capsys.readouterr().err
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == settings["num-rounds"]


def run_fedattn(words, monkeypatch):
    """Run a command on this project, with approvals in the working folder."""
    named = [str(ROOT) if word == "." else word for word in words]
    monkeypatch.setenv("FEDATTN_APPROVED", str(Path.cwd() / "approved"))
    monkeypatch.setattr(sys, "argv", ["fedattn", *named])
    assert fedattn.main() == 0


@pytest.fixture
def reader_folder(tmp_path, monkeypatch, pretrained_folder):
    """The working folder of someone who follows the pages: it has what the commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split, count in (("train", 200), ("test", 40)):
        texts = [f"note {k}: {('chest pain', 'itchy rash')[k % 2]} today" for k in range(count)]
        labels = [("cardiology", "dermatology")[k % 2] for k in range(count)]
        write(tmp_path / "my" / "folder" / f"{split}.csv", texts, labels)
    # A hub id that is also a folder is read as the folder.
    (tmp_path / "distilbert-base-uncased").symlink_to(pretrained_folder("distilbert"))
    (policy,) = (block for block in BLOCKS if block.text.startswith("# policy.toml"))
    (tmp_path / "policy.toml").write_text(policy.text)
    return tmp_path


@pytest.fixture
def earlier_run(reader_folder):
    """A short run in the folder that the pages resume."""
    simulate({**QUICK, "output-dir": "that/folder"}, 4, workers=1, quiet=True)


@pytest.fixture
def check(reader_folder, monkeypatch, capsys, request):
    """A function that runs a command, or checks that it fits its program."""

    def check(words):
        match words:
            case ["pip", "install", *rest]:
                check_pip(rest)
            case ["flwr", "run", *rest]:
                check_flwr_run(rest)
            case ["flower-superlink", *rest]:
                check_daemon(rest, "flower-superlink")
            case ["fedattn", "node", *rest]:
                check_daemon(rest, "fedattn", "node")
            case ["fedattn", *rest]:
                run_fedattn(rest, monkeypatch)
            case ["python", "run_simulation.py", *rest]:
                if any("resume-from" in word for word in rest):
                    request.getfixturevalue("earlier_run")
                run_script(rest, monkeypatch, capsys)
            case ["python", "-m", module] if module.startswith("fedattn_app."):
                run_python("-m", module)
            case ["python", script, *rest] if script.startswith("benchmarks/"):
                check_benchmark(script, rest)
            case ["pytest", *rest]:
                check_pytest(rest)
            case [".ci/run"]:
                assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
            case _:
                raise AssertionError(f"no test knows how to check {words}")

    return check


@pytest.mark.parametrize(
    "words", COMMANDS, ids=[f"{block.place} {words[0]}" for words, block in COMMANDS.items()]
)
def test_commands_run(words, check):
    check(words)


@pytest.mark.parametrize(
    "command",
    [
        "pip install -e '.[no-such-extra]'",
        "pip install no-such-package",
        "flwr run . --no-such-option",
        "flwr run . no-such-superlink",
        "flwr run . --run-config 'no-such-key=1'",
        "flwr run . --run-config 'num-rounds=0'",
        "flwr run . --federation-config 'no-such-key=1'",
        "flower-superlink --no-such-option",
        "flower-supernode --superlink HOST:8000",
        "fedattn node --no-such-option",
        "fedattn node --node-config 'no-such-key=1'",
        "fedattn approve --no-such-option .",
        "fedattn approve no-such-folder",
        "fedattn no-such-command",
        "python run_simulation.py --no-such-option",
        "python run_simulation.py --run-config 'no-such-key=1'",
        "python benchmarks/payloads.py one argument too many",
        "python no_such_script.py",
        "pytest tests/no_such_file.py",
        "pytest --no-such-option",
        "no-such-program",
    ],
)
def test_wrong_commands_fail(command, check):
    with pytest.raises((AssertionError, UserError)):
        check(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, reader_folder):
    """The blocks of a page run one after the other; rows of a registry are dictionary entries."""
    namespace = {"__name__": "page"}
    for block in blocks_of(page):
        if block.language == "python":
            try:
                code = compile(block.text, block.place, "exec")
            except SyntaxError:
                compile(f"{{{block.text}}}", block.place, "eval")
            else:
                exec(code, namespace)
