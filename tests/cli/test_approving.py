"""``fedattn approve``, ``approved`` and ``revoke`` as an owner runs them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from helpers.bundles import bundle_of, files_of, pyproject

from fedattn_app.bundles.bundle import MAX_BYTES, sha256_of
from fedattn_app.cli import app

ROOT = Path(__file__).parents[2]
FILES = {"pyproject.toml": pyproject("someone", "small"), "app.py": "client = server = None\n"}


@pytest.fixture
def bundle(tmp_path):
    """A function that writes a bundle of files to a .fab file, and returns its path."""

    def bundle(name="small.fab", **changes):
        files = {**FILES, **changes}
        path = tmp_path / name
        path.write_bytes(bundle_of({k: v for k, v in files.items() if v is not None}))
        return path

    return bundle


def test_the_first_bundle_is_listed_and_approved(fedattn, bundle):
    path = bundle()
    status, output, errors = fedattn("approve", path)
    assert (status, errors) == (0, "")
    first, *listed, empty, approved, sha256 = output.splitlines()
    assert first.startswith("someone/small 1.0.0, the first bundle of this name")
    assert [line.split() for line in listed] == [
        [sha256_of(text.encode()), str(len(text)), name] for name, text in sorted(FILES.items())
    ]
    assert (empty, approved, sha256) == ("", "approved:", sha256_of(path.read_bytes()))
    status, output, _ = fedattn("approved")
    assert status == 0
    assert re.fullmatch(rf"{sha256}  [\d:T+-]+  someone/small 1.0.0\n", output)


def test_another_bundle_is_compared_with_the_last_approved_one(fedattn, bundle):
    fedattn("approve", bundle())
    hidden = "import os  # \x1b[1A\x1b[2K\u202e\n"
    new = bundle("new.fab", **{"app.py": FILES["app.py"] + hidden, "other.py": "a\n\rb\n"})
    status, output, _ = fedattn("approve", new)
    lines = output.splitlines()
    assert status == 0
    assert lines[0].startswith("someone/small 1.0.0, compared with the last approved one, 1.0.0 ")
    assert [line.split() for line in lines[1:3]] == [
        ["+1", "-0", "app.py"],
        ["+2", "-0", "other.py", "(new", "file)"],
    ]
    assert r"+import os  # \x1b[1A\x1b[2K\u202e" in lines
    assert r"+\rb" in lines
    assert "\x1b" not in output
    assert lines[-1] == sha256_of(new.read_bytes())
    assert len(fedattn("approved")[1].splitlines()) == 2


def test_a_bundle_of_another_name_is_not_compared(fedattn, bundle):
    fedattn("approve", bundle())
    other = bundle("other.fab", **{"pyproject.toml": pyproject("someone", "other")})
    assert "the first bundle of this name" in fedattn("approve", other)[1]


def test_the_same_bundle_is_approved_once(fedattn, bundle):
    fedattn("approve", bundle())
    status, output, _ = fedattn("approve", bundle("copy.fab"))
    assert status == 0
    assert "is the bundle that was approved last" in output
    assert len(fedattn("approved")[1].splitlines()) == 1


def test_showing_approves_nothing(fedattn, bundle):
    status, output, _ = fedattn("approve", "--show", bundle())
    assert status == 0
    assert "not approved, only shown" in output
    assert fedattn("approved") == (
        0,
        f"no bundle is approved in {Path('approved').absolute()}\n",
        "",
    )
    assert not Path("approved").exists()


def test_a_revoked_bundle_is_gone(fedattn, bundle):
    sha256 = fedattn("approve", bundle())[1].split()[-1]
    assert fedattn("revoke", sha256[:8]) == (0, f"revoked {sha256}  someone/small 1.0.0\n", "")
    assert "no bundle is approved" in fedattn("approved")[1]
    status, output, errors = fedattn("revoke", sha256)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {sha256!r}: no approved bundle")


def test_a_damaged_copy_is_shown_in_the_list(fedattn, bundle):
    sha256 = fedattn("approve", bundle())[1].split()[-1]
    Path("approved", f"{sha256}.fab").unlink()
    assert "copy missing or changed: refused" in fedattn("approved")[1]


def test_the_option_names_another_folder(fedattn, bundle):
    assert fedattn("approve", bundle(), "--approved", "other")[0] == 0
    assert "someone/small" in fedattn("approved", "--approved", "other")[1]
    assert "no bundle" in fedattn("approved")[1]


def test_an_app_in_a_folder_is_built(fedattn, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for left in ("notes.txt", "secret.key", "__pycache__/app.cpython-311.pyc"):
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).write_text("left")
    status, output, _ = fedattn("approve", "small")
    assert status == 0
    assert "notes.txt" not in output
    stored = Path("approved", f"{output.split()[-1]}.fab").read_bytes()
    assert set(files_of(stored)) == set(FILES)


def make_folder_without_name(path):
    path.mkdir()
    (path / "pyproject.toml").write_text("[project]\nversion = '1'\n")


WRONG = {
    "missing": (lambda path: None, "no such file or folder"),
    "empty": (lambda path: path.write_bytes(b""), "not a bundle"),
    "text": (lambda path: path.write_text("text"), "not a bundle: File is not a zip file"),
    "half": (lambda path: path.write_bytes(bundle_of(FILES)[:200]), "not a bundle"),
    "large": (lambda path: path.write_bytes(b" " * (MAX_BYTES + 1)), "more than 10485760 bytes"),
    "no folder": (lambda path: path.mkdir(), "cannot be built: pyproject.toml not found"),
    "no name": (make_folder_without_name, 'cannot be built: Property "name" missing'),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "no such file or folder"),
    "a pyc": (lambda path: path.write_bytes(bundle_of(FILES | {"a.pyc": b""})), "'a.pyc'"),
}


@pytest.mark.parametrize(("make", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_no_bundle_is_one_line_and_changes_nothing(make, reason, fedattn, bundle):
    make(Path("wrong"))
    status, output, errors = fedattn("approve", "wrong")
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert "wrong" in errors
    assert reason in errors
    assert not Path("approved").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["approve"], ["approve", "a", "b"], ["approve", "--no-such"], ["no-such"], ["revoke"]),
        *(["approved", "more"], ["revoke", "1234567"], ["approve", "a\0b"], ["--no-such"]),
        ["approve", "x", "--approved"],
    ],
)
def test_a_wrong_argument_is_one_line(arguments, fedattn):
    status, output, errors = fedattn(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["approve", "--help"], ["revoke", "--help"]])
def test_help_is_printed(arguments, fedattn):
    status, output, errors = fedattn(*arguments)
    assert (status, errors) == (0, "")
    assert output.startswith("Usage: fedattn")


def test_a_list_that_others_can_write_stops_every_command(fedattn, bundle):
    fedattn("approve", bundle())
    Path("approved").chmod(0o777)
    for arguments in (["approve", bundle()], ["approved"], ["revoke", "0" * 8]):
        status, output, errors = fedattn(*arguments)
        assert (status, output) == (2, "")
        assert "others can write to it" in errors
    Path("approved").chmod(0o700)


# The hash of this project's bundle


def copy_project(target, umask):
    """Copy what is in the project's bundle, with times and modes of its own."""
    for name in (
        "fedattn_app",
        "strategies",
        "README.md",
        "LICENSE",
        "pyproject.toml",
        ".gitignore",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copyfile(source, target / name)
    for number, path in enumerate(sorted(target.rglob("*"))):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        os.utime(path, (10**9 + number * umask, 10**9 + number * umask))


def leave_behind(folder):
    """Put into `folder` what work on the project leaves there."""
    left = {
        "runs/one/config.toml": "a = 1",
        "runs/one/history.jsonl": "{}",
        "out/summary.json": "{}",
        "fedattn_app/__pycache__/types.cpython-311.pyc": "old",
        "tests/test_new.py": "def test(): pass\n",
        "docs/new.md": "# New\n",
        "notebooks/new.ipynb": "{}",
        "benchmarks/new.py": "",
        "notes.csv": "text,label\n",
        "new.py": "",
        ".gitignore": "",
        "fedattn_app/notes.md": "# Notes\n",
        "fedattn_app/README.md": "# Notes\n",
    }
    for name, text in left.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def flwr_build(folder):
    """Run ``flwr build`` on `folder`, and return the SHA-256 of what it makes."""
    out = folder.with_name(f"{folder.name}-built")
    out.mkdir()
    command = [Path(sys.executable).with_name("flwr"), "build", "--app", folder]
    subprocess.run(command, cwd=out, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.fab")
    return sha256_of(built.read_bytes())


def test_flwr_build_of_the_same_tree_has_the_hash_that_is_approved(fedattn, tmp_path):
    first, second = tmp_path / "one", tmp_path / "deep" / "another-name"
    second.parent.mkdir()
    copy_project(first, 0o022)
    copy_project(second, 0o077)
    leave_behind(second)
    sha256 = fedattn("approve", second)[1].split()[-1]
    assert {flwr_build(first), flwr_build(second)} == {sha256}
    assert fedattn("approve", ROOT)[1].split()[-1] == sha256
    with (second / "strategies" / "__init__.py").open("a") as file:
        file.write("\n")
    assert fedattn("approve", second)[1].split()[-1] != sha256


def test_the_bundle_has_only_what_runs(fedattn):
    files = files_of(
        Path("approved", f"{fedattn('approve', ROOT)[1].split()[-1]}.fab").read_bytes()
    )
    others = {name for name in files if not name.startswith(("fedattn_app/", "strategies/"))}
    assert others == {"pyproject.toml", "README.md", "LICENSE"}
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fedattn_app", "strategies")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert set(files) - others == sources


# The program


def run_python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_needs_neither_torch_nor_flower():
    ran = run_python(
        "-c",
        "import sys; sys.argv = ['fedattn', '--help']\n"
        "from fedattn_app.cli.app import main\n"
        "assert main() == 0\n"
        "print({name.split('.')[0] for name in sys.modules} & {'torch', 'flwr'})",
    )
    assert ran.stdout.splitlines()[-1] == "set()", ran.stderr


def test_the_console_script_and_the_module_are_this_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("fedattn", scripts["fedattn"], "console_scripts").load() is app.main
    ran = run_python("-m", "fedattn_app.cli", "no-such")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: No such command 'no-such'.\n"
