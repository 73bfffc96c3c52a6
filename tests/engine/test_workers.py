"""The worker processes of the local engine: order, failures, equal results, clean ends."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children, current_process
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from helpers.runs import same_arrays, without_times

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine import shared_memory
from fedattn_app.engine.local_grid import FIRST_NODE_ID, LocalGrid
from fedattn_app.engine.workers import (
    MAX_ANSWERS_AHEAD_PER_WORKER,
    MAX_TASKS_PER_WORKER,
    Task,
    Workers,
)
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate
from fedattn_app.transport.lazy_array import lazy_record

pytestmark = pytest.mark.skipif(
    not shared_memory.AVAILABLE, reason="memfd_create exists on Linux only"
)

ROOT = Path(__file__).parents[2]
CLIENTS = 3


@pytest.fixture(autouse=True)
def _leaves_no_process():
    with task_identity():
        yield
    assert active_children() == []


@pytest.fixture
def workers_of():
    """A function that makes workers, which are closed after the test."""
    made = []

    def make(handle, count=2):
        made.append(Workers(handle, count))
        return made[-1]

    yield make
    for workers in made:
        workers.close()


def tasks_for(nodes, **run_config):
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(4.0))})})
    return [
        Task(Message(content, node, "train"), Context(1, node, {}, RecordDict(), run_config))
        for node in nodes
    ]


def reply(message, **metrics):
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def metrics_of(answers, key):
    return [answer.reply.content["metrics"][key] for answer in answers]


def reply_pid(message, context):
    """Reply with the id of the process and of the node."""
    return reply(message, pid=os.getpid(), node=context.node_id)


# Order


def test_answers_are_in_the_order_of_tasks_whichever_is_ready_first(workers_of):
    def slower_first(message, context):
        time.sleep(0.02 * (10 - context.node_id))
        return reply(message, node=context.node_id)

    workers = workers_of(slower_first, 3)
    for nodes in (list(range(10)), [7, 2, 9, 4]):
        assert metrics_of(workers.run(tasks_for(nodes)), "node") == nodes


def test_the_number_of_answers_ahead_is_limited(workers_of, tmp_path):
    def first_waits_for_others(message, context):
        if context.node_id:
            (tmp_path / str(context.node_id)).touch()
            return reply(message, begun=0)
        begun = -1
        while begun < (begun := len(list(tmp_path.iterdir()))):
            time.sleep(0.5)
        return reply(message, begun=begun)

    workers = workers_of(first_waits_for_others)
    begun = metrics_of(workers.run(tasks_for(range(6 * MAX_ANSWERS_AHEAD_PER_WORKER))), "begun")[0]
    limit = 2 * MAX_ANSWERS_AHEAD_PER_WORKER
    # The tasks that wait for the first worker cannot have begun.
    assert limit - MAX_TASKS_PER_WORKER <= begun < limit


def test_the_longest_tasks_start_first(workers_of, tmp_path):
    seconds = {1: 0.0, 2: 0.4, 3: 0.05}

    def note(message, context):
        with (tmp_path / "begun").open("a") as file:
            file.write(f"{context.node_id} ")
        time.sleep(seconds[context.node_id])
        return reply(message, node=context.node_id)

    workers = workers_of(note, 1)
    for _ in range(2):
        assert metrics_of(workers.run(tasks_for([1, 2, 3])), "node") == [1, 2, 3]
    assert (tmp_path / "begun").read_text() == "1 2 3 2 3 1 "


# Start and end of processes


def test_no_process_starts_before_the_first_answer_is_requested(workers_of):
    unused = workers_of(reply_pid).run(tasks_for([1]))
    assert active_children() == []
    unused.close()


def test_processes_stay_until_they_are_closed(workers_of):
    workers = workers_of(reply_pid)
    first, second = (set(metrics_of(workers.run(tasks_for(range(4))), "pid")) for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert os.getpid() not in first
    workers.close()
    assert not any(Path(f"/proc/{number}").exists() for number in first)
    assert len(list(workers.run(tasks_for([1])))) == 1  # they can start again


def killing_once(flag):
    """Answer as `reply_pid`, but node 2 kills its process unless the file `flag` exists."""

    def handle(message, context):
        if context.node_id == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        context.state["seen"] = MetricRecord({"seen": 1})
        return reply_pid(message, context)

    return handle


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_that_dies_costs_one_answer_and_is_replaced(workers_of, tmp_path, count):
    workers = workers_of(killing_once(tmp_path / "flag"), count)
    tasks = tasks_for(range(8))
    tasks[2].context.state["before"] = MetricRecord({"kept": 1})
    answers = list(workers.run(tasks))
    assert [k for k, answer in enumerate(answers) if answer.reply is None] == [2]
    assert answers[2].death_cause == "exit code -9"
    assert list(answers[2].state) == ["before"]
    assert all(list(answer.state) == ["seen"] for k, answer in enumerate(answers) if k != 2)
    again = list(workers.run(tasks_for(range(8))))
    assert metrics_of(again, "node") == list(range(8))
    assert len(active_children()) == count


def test_an_idle_process_that_is_killed_costs_nothing(workers_of):
    workers = workers_of(reply_pid)
    before = set(metrics_of(workers.run(tasks_for(range(4))), "pid"))
    os.kill(min(before), signal.SIGKILL)
    while len(active_children()) == 2:
        time.sleep(0.01)
    answers = list(workers.run(tasks_for(range(4))))
    assert metrics_of(answers, "node") == [0, 1, 2, 3]
    assert set(metrics_of(answers, "pid")) & before == before - {min(before)}


def test_a_run_ends_even_if_every_task_kills_its_process(workers_of):
    workers = workers_of(lambda message, context: os._exit(3))
    answers = list(workers.run(tasks_for(range(6))))
    assert [answer.death_cause for answer in answers] == ["exit code 3"] * 6


def slow_after_the_first(message, context):
    time.sleep(60 * (context.node_id > 0))
    return reply_pid(message, context)


def test_a_caller_that_stops_early_leaves_no_process(workers_of):
    workers = workers_of(slow_after_the_first)
    answers = workers.run(tasks_for(range(6)))
    began = time.perf_counter()
    next(answers)
    answers.close()
    assert active_children() == []
    assert metrics_of(workers.run(tasks_for([0])), "node") == [0]
    assert time.perf_counter() - began < 30


def test_two_runs_do_not_mix(workers_of):
    workers = workers_of(reply_pid)
    answers = workers.run(tasks_for(range(8)))
    first = next(answers)
    with pytest.raises(RuntimeError, match="have not all been taken"):
        next(workers.run(tasks_for([9])))
    assert metrics_of([first, *answers], "node") == list(range(8))


def test_a_task_that_cannot_be_pickled_is_an_error_and_the_workers_remain_usable(workers_of):
    workers = workers_of(reply_pid)
    with pytest.raises((AttributeError, TypeError, ValueError), match="pickle"):
        list(workers.run([*tasks_for([1, 2]), *tasks_for([3], odd=lambda: 0)]))
    assert metrics_of(workers.run(tasks_for(range(4))), "node") == [0, 1, 2, 3]


def test_an_interrupt_during_an_answer_does_not_mix_up_runs(workers_of, monkeypatch):
    def interrupted(sender):
        raise KeyboardInterrupt

    workers = workers_of(reply_pid, 1)
    answers = workers.run(tasks_for([8, 9]))
    next(answers)
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(answers)
    assert metrics_of(workers.run(tasks_for(range(4))), "node") == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_garbage")
def test_many_runs_do_not_leak_descriptors(workers_of, tmp_path):
    def with_arrays(message, context):
        record = lazy_record({"w": np.zeros(1000)})
        context.state["w"] = record
        return Message(RecordDict({"w": record}), reply_to=message)

    flag = tmp_path / "flag"
    flag.touch()
    workers = workers_of(lambda m, c: (killing_once(flag)(m, c), with_arrays(m, c))[1])
    kept = list(workers.run(tasks_for(range(4))))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        kept.extend(workers.run(tasks_for(range(8))))
    flag.unlink()  # now a process dies and is replaced
    kept.extend(workers.run(tasks_for(range(8))))
    assert len(os.listdir("/proc/self/fd")) == before


# The grid


@pytest.fixture
def grid_of():
    """A function that makes a grid of two workers whose training is a function."""
    made = []

    def make(train, num_supernodes=4):
        app = ClientApp()
        app.train()(train)
        made.append(LocalGrid(app, num_supernodes, {}, workers=2))
        return made[-1]

    yield make
    for grid in made:
        grid.close()


def train_on(grid, partitions):
    tasks = tasks_for(FIRST_NODE_ID + partition for partition in partitions)
    return list(grid.send_and_receive([task.message for task in tasks]))


class UnusualError(Exception):
    """An exception that cannot be pickled, like many with more than one argument."""

    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")
        self.function = lambda: left


def test_an_exception_is_the_reply_of_its_client(grid_of):
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            raise UnusualError("this", "that")
        return reply(message, ok=1)

    replies = train_on(grid_of(train), range(4))
    assert [answer.has_error() for answer in replies] == [False, True, False, False]
    assert replies[1].error.reason == "UnusualError: this and that"


def test_log_lines_of_clients_are_logged_in_the_order_of_messages(grid_of, caplog):
    def train(message, context):
        node = context.node_config["partition-id"]
        time.sleep(0.02 * (4 - node))
        client_app.log.debug("below the level")
        client_app.log.info("client %d begins", node)
        client_app.log.warning("client %d ends", node)
        return reply(message, ok=1)

    caplog.set_level("INFO", "fedattn")
    train_on(grid_of(train), range(4))
    steps = [("INFO", "begins"), ("WARNING", "ends")]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [(level, f"client {k} {step}") for k in range(4) for level, step in steps]


def test_a_nodes_state_follows_it_to_any_process(grid_of):
    def train(message, context):
        before = context.state.array_records.get("count", {"count": Array(np.zeros(1))})
        count = before["count"].numpy() + 1
        context.state["count"] = ArrayRecord({"count": Array(count)})
        return reply(message, count=float(count[0]), pid=os.getpid())

    grid = grid_of(train)
    pids = {}
    # A node moves to the other process when that one has no nodes of its own to serve.
    for number, partitions in enumerate([[0, 1, 2, 3], [3, 1], [1, 0], [1, 3]]):
        for answer in train_on(grid, partitions):
            metrics = answer.content["metrics"]
            pids.setdefault(answer.metadata.src_node_id, []).append(metrics["pid"])
            assert metrics["count"] == len(pids[answer.metadata.src_node_id]), number
    assert any(len(set(mine)) == 2 for mine in pids.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_that_a_client_clears_is_empty_afterwards(workers):
    app = ClientApp()

    @app.train()
    def train(message, context):
        found = len(context.state)
        if found:
            context.state.clear()
        else:
            context.state["a"] = MetricRecord({"x": 1})
        return reply(message, found=found)

    grid = LocalGrid(app, 2, {}, workers=workers)
    found = [[a.content["metrics"]["found"] for a in train_on(grid, range(2))] for _ in range(3)]
    grid.close()
    assert found == [[0, 0], [1, 1], [0, 0]]


def test_a_node_gets_one_message_at_a_time(grid_of):
    with pytest.raises(ValueError, match="one message at a time"):
        train_on(grid_of(reply_pid), [1, 1])


# Whole runs

PRIVATE = {"privacy": "dp-sgd", "noise-multiplier": 1.0, "reproducible-noise": True}
SETTINGS = {
    "frozen": {},
    "personal": {"local": "personal", "shared": "attention"},
    "dp-sgd": PRIVATE | {"evaluate-epsilon": 1.0, "shared": "head"},
    "client-dp": {"privacy": "client-dp", "noise-multiplier": 1.0, "reproducible-noise": True},
    "uneven shares": {"partitioner": "dirichlet", "alpha": 0.3, "fraction-train": 0.7},
}


@pytest.fixture
def small(tiny, tmp_path):
    """Run-config of a federation on a few short texts."""
    path = tmp_path / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(60)]
    path.write_text("\n".join(["text,label", *rows]))
    data = {"dataset": "file", "data-path": str(path), "validation-fraction": 0.3}
    return tiny | data | {"max-length": 8, "vocabulary": 128}


@pytest.mark.parametrize("name", SETTINGS)
def test_any_number_of_workers_gives_the_same_bits(small, tmp_path, name):
    one, *others = (
        simulate(
            small | SETTINGS[name] | {"output-dir": str(tmp_path / f"{workers}")},
            CLIENTS,
            workers=workers,
            quiet=True,
        )
        for workers in (1, 2, 3)
    )
    assert one.history[-1]["evaluate"] is not None
    for other in others:
        assert without_times(other) == without_times(one)
        assert same_arrays(other, one)


def test_a_client_whose_process_dies_fails_in_that_round_only(small, tmp_path, caplog):
    flag = tmp_path / "flag"
    app = ClientApp()

    def passing(message, context):
        if context.node_config["partition-id"] == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    for register in (app.train, app.evaluate):
        register()(passing)
    app.query()(client_app.describe)
    config = Config.from_run_config(small)
    grid = LocalGrid(app, CLIENTS, dict(config.to_run_config()), workers=2)
    result = server_app.run(PartitionGrid(grid), config)
    grid.close()
    assert [row["failures"] for row in result.history] == [0, 1, 0]
    trained = [
        (row["round"], row["partition"])
        for row in result.clients
        if row["num_examples"] is not None
    ]
    assert trained == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert "client 1 failed: its process died: exit code -9" in caplog.text


def test_a_process_that_may_not_start_others_does_everything_itself(small, monkeypatch):
    # As in a process of a multiprocessing pool, which may not have children.
    monkeypatch.setitem(current_process()._config, "daemon", True)
    assert simulate(small, CLIENTS, workers=2, quiet=True).summary["rounds"] == 2


# The end of the parent


def alive_in_session(leader):
    """Ids of the living processes in the session that process `leader` started."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # the process has just ended
            continue
        if int(session) == leader and state not in "ZX":
            alive.append(int(path.parent.name))
    return alive


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def named_memory():
    """Named files in shared memory, except those of Ray."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("plasma", "sem."))}


def test_an_interrupt_ends_the_script_and_its_processes(small, tmp_path):
    before = named_memory()
    settings = tmp_path / "settings.toml"
    settings.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in small.items()))
    more = ["--run-config", "num-rounds=100000", "--num-supernodes", "3", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, ROOT / "run_simulation.py", "--run-config", settings, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        # A shell that runs the tests in the background may have made them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as script:
        lines = iter(script.stdout.readline, "")
        assert any(line.startswith("round      2") for line in lines)
        assert len(alive_in_session(script.pid)) == 3
        os.killpg(script.pid, signal.SIGINT)  # all processes receive it, as from a terminal
        _, errors = script.communicate(timeout=60)
    assert script.returncode == 130
    assert [line.split(";")[0] for line in errors.splitlines()] == ["interrupted"]
    assert alive_in_session(script.pid) == []
    assert named_memory() <= before


def test_workers_end_when_their_parent_is_killed():
    code = """if True:
        import time
        from fedattn_app.engine.workers import Workers
        from fedattn_app.flower_compat import task_identity
        from test_workers import tasks_for
        with task_identity():
            answers = Workers(lambda message, context: time.sleep(100), 2).run(tasks_for(range(4)))
            next(answers)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"},
        start_new_session=True,
    ) as parent:
        wait_until(lambda: len(alive_in_session(parent.pid)) == 3)
        parent.kill()
    wait_until(lambda: alive_in_session(parent.pid) == [], 10)
