"""The script `run_simulation.py`: its output, its errors and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

import run_simulation
from fedattn_app.results.run_result import RunResult

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """A function that runs the script in an empty folder.

    It returns the exit status, the lines of output and the lines of errors.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_simulation.py", *arguments])
        status = run_simulation.main()
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err.splitlines()

    return call


def write_files(folder):
    (folder / "good.csv").write_text("text,label\n" + "a b,x\nc d,y\n" * 20)
    (folder / "no_label.csv").write_text("text,target\nhello,yes\n")
    (folder / "latin.csv").write_bytes("text,label\ncaf\xe9,x\n".encode("latin-1"))
    (folder / "one.csv").write_text("text,label\n" + "a b,x\n" * 40)
    (folder / "empty.csv").write_text("")
    (folder / "bad.toml").write_text("num-rounds = = 3")
    (folder / "typo.toml").write_text("num-round = 3")
    (folder / "occupied").write_text("a file, not a folder")


MISTAKES = {
    "unknown key": ("num-round=3", "num-round: no such run-config key; did you mean num-rounds?"),
    "misspelt key in a file": ("typo.toml", "did you mean num-rounds?"),
    "broken file": ("bad.toml", "not a TOML file"),
    "missing file": ("none.toml", "cannot be read"),
    "wrong type": ('num-rounds="three"', 'num-rounds = "three": must be a whole number >= 1'),
    "no rounds": ("num-rounds=0", "num-rounds = 0: must be a whole number >= 1"),
    "not a number": ("learning-rate=nan", "learning-rate = nan"),
    "wrong choice": ('strategy="fedsomething"', "must be one of"),
    "bare word": ("shared=all", "put text in quotes"),
    "no pairs": ("hello", "must be key=value pairs"),
    "empty scope": ('shared="atention"', "matches no parameter; the names are"),
    "broken scope": ('shared="("', "not a valid regex"),
    "nothing personal": ('shared="all" local="personal"', "no parameter that is trained stays"),
    "no data path": ('dataset="file"', "needs the path of a file"),
    "missing data": ('dataset="file" data-path="none.csv"', "does not exist"),
    "missing column": ('dataset="file" data-path="no_label.csv"', "no column 'label'"),
    "odd encoding": ('dataset="file" data-path="latin.csv"', "not UTF-8"),
    "empty data": ('dataset="file" data-path="empty.csv"', "empty.csv: is empty"),
    "unknown label": ('dataset="file" data-path="good.csv" labels="x,z"', "unknown label 'y'"),
    "one label": ('dataset="file" data-path="one.csv"', "at least 2"),
    "too many clients": ('dataset="file" data-path="good.csv"', "only 40 training examples"),
    "unknown partition column": (
        'dataset="file" data-path="good.csv" partitioner="natural" partition-by="ward"',
        "no column 'ward' (partition-by)",
    ),
    "hub out of reach": ('dataset="no/such"', 'use dataset = "file"'),
    "no path": (r'output-dir="a\u0000b"', "holds a control character"),
    "not UTF-8": ('output-dir="caf\udce9"', r"output-dir = 'caf\udce9': must be text that UTF-8"),
    "half a pair": ('labels="a,\ud83d"', r"labels = 'a,\ud83d': must be text that UTF-8"),
    "no path but a number": ("resume-from=5", "resume-from = 5: must be text"),
    "too long a path": (f'data-path="{"x" * 300}.csv" dataset="file"', "cannot be used as a path"),
    "no such home": ('output-dir="~nobody-here/x"', "cannot be used as a path"),
    "output is a file": ('output-dir="occupied"', "cannot be written"),
    "output below a file": ('output-dir="occupied/run"', "cannot be written"),
    "nothing to resume": ('resume-from="none"', "holds no checkpoint"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(script, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given, expected = MISTAKES[name]
    clients = "50" if name == "too many clients" else "4"
    status, out, err = script("--num-supernodes", clients, "--run-config", given)
    assert (status, len(err)) == (2, 1), err
    assert err[0].startswith("error: ")
    assert expected in err[0]
    assert not any("round" in line for line in out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_shows_no_traceback_in_a_shell(tmp_path):
    ran = subprocess.run(
        [sys.executable, ROOT / "run_simulation.py", "--run-config", "num-rounds=0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 2
    assert ran.stderr == "error: num-rounds = 0: must be a whole number >= 1\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-supernodes", "abc"),
        ("--engine", "spark"),
        ("--workers", "two"),
        ("--workers", "0"),
        ("--workers", "-1"),
        ("--workers", "2", "--engine", "flower"),
        ("stray",),
        ("--nothing",),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(script, arguments):
    status, out, err = script(*arguments)
    assert (status, out, len(err)) == (2, [], 1)


TINY = 'model="tiny" vocabulary=512 num-rounds=1'


def test_a_run_prints_its_folder_last(script, tmp_path):
    status, out, err = script("--num-supernodes", "2", "--run-config", TINY)
    assert (status, err) == (0, [])
    (folder,) = (tmp_path / "runs").iterdir()
    assert out[-1] == f"results in {folder}"


def test_a_quiet_run_prints_only_its_folder(script, tmp_path):
    arguments = ("--num-supernodes", "2", "--run-config", TINY, "--quiet", "--output-dir", "here")
    assert script(*arguments) == (0, [str(tmp_path / "here")], [])


def test_the_config_file_of_a_run_repeats_it(script, tmp_path):
    given = TINY + " learning-rate=0.01"
    script("--num-supernodes", "2", "--run-config", given, "--output-dir", "first")
    again = ("--run-config", "first/config.toml", "--output-dir", "second", "--num-supernodes", "2")
    assert script(*again)[0] == 0
    first, second = (RunResult(tmp_path / name).arrays for name in ("first", "second"))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_results_are_never_overwritten(script):
    arguments = ("--num-supernodes", "2", "--run-config", TINY, "--output-dir", "here")
    assert script(*arguments)[0] == 0
    status, _, err = script(*arguments)
    assert status == 2
    assert "already holds a run" in err[0]


def test_a_failed_run_is_one_line_and_status_1(script):
    given = TINY + " learning-rate=1e30"
    status, _, err = script("--num-supernodes", "2", "--run-config", given)
    assert status == 1
    assert "all 2 clients failed" in err[-1]
    assert not any("Traceback" in line for line in err)


def test_a_full_disk_is_one_line_and_status_1_and_the_run_can_be_finished(script, tmp_path):
    resource = pytest.importorskip("resource")
    arguments = ("--num-supernodes", "2", "--workers", "1", "--run-config")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # too small for a final model
    try:
        status, _, err = script(*arguments, TINY, "--output-dir", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file = tmp_path / "run" / "model.safetensors"
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith(f"error: {file}: cannot be written (File too large)")
    assert RunResult(file.parent).status["reason"] == err[0].removeprefix("error: ")
    assert script(*arguments, 'resume-from="run"', "--quiet") == (0, [str(file.parent)], [])
    assert [row["round"] for row in RunResult(file.parent).history] == [0, 1]
    assert RunResult(file.parent).state == "ended"
