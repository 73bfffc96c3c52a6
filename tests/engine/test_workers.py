"""The worker processes of the local engine: order, failures, clean ends."""

import os
import resource
import signal
import time
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from helpers.worker_tasks import metrics_of, reply, reply_pid, tasks_for

from fedattn_app.engine import shared_memory
from fedattn_app.engine.workers import (
    MAX_ANSWERS_AHEAD_PER_WORKER,
    MAX_TASKS_PER_WORKER,
    Workers,
)
from fedattn_app.errors import RunFailedError
from fedattn_app.transport.lazy_array import lazy_record

pytestmark = pytest.mark.skipif(
    not shared_memory.AVAILABLE, reason="memfd_create exists on Linux only"
)


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


# Memory


@contextmanager
def largest_parcel(size):
    """Let this process and its workers exchange no parcel of more than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_message_without_memory_ends_the_run_in_one_line(workers_of):
    tasks = tasks_for([1, 2])
    with largest_parcel(100), pytest.raises(RunFailedError) as caught:
        list(workers_of(reply_pid).run(tasks))
    assert str(caught.value) == (
        "no memory to exchange messages with the worker processes (File too large); workers = 1 "
        "needs none"
    )


def test_a_reply_without_memory_is_a_failure_that_keeps_the_nodes_state(workers_of):
    def large_reply(message, context):
        context.state["seen"] = MetricRecord({"node": context.node_id})
        size = 1_000_000 if context.node_id == 1 else 1
        return Message(RecordDict({"arrays": lazy_record({"w": np.zeros(size)})}), reply_to=message)

    workers = workers_of(large_reply)
    with largest_parcel(100_000):
        failed, answered = workers.run(tasks_for([1, 2]))
    assert "no memory to exchange messages" in failed.reply.error.reason
    assert failed.state["seen"]["node"] == 1
    assert answered.reply.has_content()
    with largest_parcel(100_000):  # the same workers go on
        assert len(list(workers.run(tasks_for([2, 3])))) == 2
