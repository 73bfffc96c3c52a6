"""Two runs at once: in one folder, or in one process."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from threading import Event

import pytest
import torch
from helpers.runs import CLIENTS, app_that, same_arrays, without_times

from fedattn_app.errors import RunFailedError, UserError
from fedattn_app.results.run_result import RunResult
from fedattn_app.simulation import simulate

ROOT = Path(__file__).parents[2]


# In one process


def test_a_second_simulation_in_another_thread_is_refused_at_once(tiny, ran, tmp_path):
    training, may_go_on = Event(), Event()

    def train():
        training.set()
        assert may_go_on.wait(60)

    config = tiny | {"output-dir": str(tmp_path / "first")}
    other = tiny | {"output-dir": str(tmp_path / "second")}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            simulate, config, CLIENTS, workers=1, quiet=True, clients=app_that(train)
        )
        assert training.wait(60)
        with pytest.raises(UserError, match="another simulation is running in this process"):
            simulate(other, CLIENTS, quiet=True)
        assert not (tmp_path / "second").exists()
        may_go_on.set()
    assert without_times(first.result()) == without_times(ran)
    assert same_arrays(first.result(), ran)
    assert same_arrays(simulate(other, CLIENTS, quiet=True), ran)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_simulation_inside_a_client_is_refused(tiny, tmp_path, workers):
    def train():
        simulate(tiny | {"output-dir": str(tmp_path / "inner")}, 2, quiet=True)

    with pytest.raises(RunFailedError, match="another simulation is running"):
        simulate(tiny, 2, workers=workers, quiet=True, clients=app_that(train))
    assert not (tmp_path / "inner").exists()
    assert RunResult(tiny["output-dir"]).state == "failed"


def test_a_simulation_may_follow_one_that_failed(tiny, tmp_path):
    def fail():
        raise RuntimeError("out of order")

    with pytest.raises(RunFailedError, match="all 2 clients failed"):
        simulate(tiny, 2, workers=1, quiet=True, clients=app_that(fail))
    simulate(tiny | {"output-dir": str(tmp_path / "next")}, 2, quiet=True)


def simulate_in_child(config, daemon):
    def run():
        torch.set_num_threads(1)  # OpenMP's other threads do not exist after a fork
        simulate(config, 2, quiet=True)

    child = get_context("fork").Process(target=run, daemon=daemon)
    child.start()
    child.join(100)
    child.kill()
    assert child.exitcode == 0
    assert RunResult(config["output-dir"]).state == "ended"


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="no fork on this platform")
def test_a_forked_process_may_simulate_while_another_thread_of_its_parent_does(tiny, tmp_path):
    training, may_go_on = Event(), Event()

    def train():
        training.set()
        assert may_go_on.wait(200)

    config = tiny | {"num-rounds": 1}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            simulate, config, CLIENTS, workers=1, quiet=True, clients=app_that(train)
        )
        assert training.wait(60)
        for daemon in (False, True):
            simulate_in_child(config | {"output-dir": str(tmp_path / f"{daemon}")}, daemon)
        may_go_on.set()
    assert first.result().state == "ended"


# In one folder


@pytest.fixture
def start(tmp_path, few_texts):
    """A function that starts the script and returns its process, which is killed after the test."""
    started = []

    def run(config):
        command = [sys.executable, ROOT / "run_simulation.py", "--num-supernodes", "2"]
        command += ["--workers", "1", "--run-config", f"{few_texts} {config}"]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def rounds(folder):
    return [row["round"] for row in RunResult(folder).history]


@pytest.mark.slow
def test_of_two_runs_with_one_folder_one_is_refused(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    both = [start('num-rounds=2 output-dir="run"'), start('num-rounds=2 output-dir="link"')]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (refused,) = filter(None, errors)
    assert len(refused.splitlines()) == 1
    assert "another run is writing there" in refused or "already holds a run" in refused
    assert rounds(tmp_path / "run") == [0, 1, 2]
    again = [start('num-rounds=4 resume-from="run"'), start('num-rounds=4 resume-from="link"')]
    errors = [process.communicate(timeout=200)[1] for process in again]
    assert sorted(process.returncode for process in again) == [0, 2]
    assert len("".join(errors).splitlines()) == 1
    assert rounds(tmp_path / "run") == [0, 1, 2, 3, 4]
    assert RunResult(tmp_path / "run").state == "ended"


@pytest.mark.parametrize(
    ("number", "status", "state"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGKILL, -9, "died"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.slow
def test_a_run_that_is_stopped_has_no_summary_and_can_be_resumed(
    start, tmp_path, number, status, state
):
    assert start('num-rounds=1 output-dir="run"').wait(200) == 0
    process = start('num-rounds=500 resume-from="run"')
    result = RunResult(tmp_path / "run")
    while result.status["round"] < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert result.state == "running"
    assert not (result.path / "summary.json").exists()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert result.state == state
    last = result.status["round"]
    resumed = simulate({"resume-from": str(result.path), "num-rounds": last + 1}, 2, quiet=True)
    assert (resumed.state, resumed.summary["rounds"]) == ("ended", last + 1)
    assert rounds(result.path) == list(range(last + 2))


def test_a_forked_process_can_simulate_after_its_parent(tmp_path, python):
    ran = python(
        """if True:
        import multiprocessing, sys
        from fedattn_app import simulate
        def run(name):
            keys = {"model": "tiny", "vocabulary": 512, "max-length": 16, "num-rounds": 1}
            keys |= {"output-dir": f"{sys.argv[1]}/{name}"}
            print(simulate(keys, 3, workers=1, quiet=True).state, flush=True)
        run("one")
        run("two")
        child = multiprocessing.get_context("fork").Process(target=run, args=("child",))
        child.start()
        child.join(60)
        child.kill()
        """,
        tmp_path,
    )
    assert ran.stdout.split() == ["ended"] * 3
