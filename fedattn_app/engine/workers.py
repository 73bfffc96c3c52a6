"""Worker processes that answer the messages of a simulation, one per core.

The processes are forked once and stay alive, so each builds models and tokenises data only once.
Messages and replies pass through shared memory. A reply does not depend on which process made it.
"""

import ctypes
import logging
import math
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import torch
from flwr.app import Context, Message, RecordDict

from fedattn_app.engine import shared_memory
from fedattn_app.engine.shared_memory import Parcel
from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import failure_reply, message_with_metadata

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

# One task that a worker is running and one that waits, so that the worker is never idle.
MAX_TASKS_PER_WORKER = 2
# Answers that arrive before an earlier one must be kept; this limits their number, per worker.
MAX_ANSWERS_AHEAD_PER_WORKER = 16
UNKNOWN_SECONDS = 1e9  # assumed for a node that has not been timed: longer than any other

PR_SET_PDEATHSIG = 1  # from prctl(2)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from mallopt(3)
TRIM_THRESHOLD_BYTES = 1 << 30
MMAP_THRESHOLD_BYTES = 1 << 25  # the largest value that glibc accepts

log = logging.getLogger("fedattn")

# Returns the reply to a message, never raises, and may change the context's state.
MessageHandler = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Task:
    """A message and the context of the node that receives it."""

    message: Message
    context: Context


@dataclass(frozen=True)
class Answer:
    """The result of a task.

    Args:
        reply: The reply, or None if the worker process died.
        state: The node's state after the message.
        log_records: What was logged while the message was handled.
        seconds: How long that took.
        death_cause: If the worker died, its exit code in words.
    """

    reply: Message | None
    state: RecordDict
    log_records: Sequence[logging.LogRecord] = ()
    seconds: float = 0.0
    death_cause: str = ""


class Workers:
    """A pool of `count` processes that call `handle`. They start with the first task."""

    def __init__(self, handle: MessageHandler, count: int) -> None:
        self.handle = handle
        self.count = count
        self._workers: list[_Worker] = []
        self._seconds: dict[tuple[int, str], float] = {}  # by node and message type

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of `tasks`, each as soon as all before it have arrived.

        All tasks must be for different nodes, because each may change its node's state. Tasks that
        took longest the last time start first, so that all workers finish at about the same time.
        A worker that dies is replaced. Raises `RuntimeError` while another call is unfinished.
        """
        if any(worker.tasks for worker in self._workers):
            raise RuntimeError("the answers to other messages have not all been taken yet")
        sender = _ContentSender()
        waiting, answers, num_yielded = list(range(len(tasks))), dict[int, Answer](), 0
        try:
            while num_yielded < len(tasks):
                end = num_yielded + MAX_ANSWERS_AHEAD_PER_WORKER * self.count
                self._assign(tasks, waiting, end, sender)
                for worker in self._wait_for_answers():
                    number = worker.tasks[0]
                    answers[number] = self._receive(worker, tasks[number], waiting)
                while num_yielded in answers:
                    yield answers.pop(num_yielded)
                    num_yielded += 1
        finally:
            sender.close()
            for worker in self._workers:
                if worker.tasks:  # the caller stopped early
                    self._end(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            self._end(worker)

    def _assign(
        self, tasks: Sequence[Task], waiting: list[int], end: int, sender: "_ContentSender"
    ) -> None:
        """Send tasks to all workers that have room, after replacing workers that have died.

        Args:
            tasks: All tasks.
            waiting: The numbers of the unassigned tasks; those that are assigned are removed.
            end: Only tasks with a number below `end` are assigned.
            sender: Sends the tasks.
        """
        for worker in self._workers:
            if not (worker.tasks or worker.process.is_alive()):
                self._end(worker)
        for slot in range(self.count):
            if waiting and slot not in {worker.slot for worker in self._workers}:
                self._start(slot)
        for num_assigned in range(MAX_TASKS_PER_WORKER):
            for worker in self._workers:
                ready = [number for number in waiting if number < end]
                if len(worker.tasks) == num_assigned and ready:
                    number = min(ready, key=lambda n: self._priority(tasks[n], n, worker.slot))
                    waiting.remove(number)
                    worker.tasks.append(number)
                    sender.send(worker, tasks[number])

    def _priority(self, task: Task, number: int, slot: int) -> tuple[bool, float, int]:
        """Return a sort key: a worker prefers its own nodes, then long tasks, then low numbers.

        A worker's own nodes are those whose data it already holds. Durations within a factor of √2
        count as equal, so that tasks start roughly in order and few answers wait for earlier ones.
        """
        node = task.message.metadata.dst_node_id
        duration = round(2 * math.log2(self._seconds.get(_timing_key(task), UNKNOWN_SECONDS)))
        return node % self.count != slot, -duration, number

    def _start(self, slot: int) -> None:
        ours, theirs = socket.socketpair()
        process = get_context("fork").Process(
            target=_worker_main, args=(theirs, self.handle, os.getpid()), daemon=True
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():  # about threads, which the worker does not use
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self._workers.append(_Worker(slot, process, ours))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _end(self, worker: "_Worker") -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._workers = [other for other in self._workers if other is not worker]

    def _wait_for_answers(self) -> list["_Worker"]:
        """Wait until at least one worker has answered or died, and return all such workers."""
        busy = {worker.connection: worker for worker in self._workers if worker.tasks}
        return [busy[ready] for ready in wait(list(busy)) if isinstance(ready, socket.socket)]

    def _receive(self, worker: "_Worker", task: Task, waiting: list[int]) -> Answer:
        """Return the worker's answer to `task`.

        If the worker has died, the answer has no reply, and its other tasks go back to `waiting`.
        """
        try:
            answer: Answer = shared_memory.receive(worker.connection)
        except (EOFError, ConnectionError):
            self._end(worker)
            waiting.extend(worker.tasks[1:])
            cause = f"exit code {worker.process.exitcode}"
            return Answer(None, task.context.state, death_cause=cause)
        except OSError as error:
            raise _no_memory(error) from None
        worker.tasks.pop(0)  # only now: an interrupt before this line must find the worker busy
        self._seconds[_timing_key(task)] = answer.seconds
        return answer


@dataclass(eq=False)
class _Worker:
    """The parent's record of one worker process."""

    slot: int
    process: "ForkProcess"
    connection: socket.socket
    content: Parcel | None = None  # the message content that the process received last
    tasks: list[int] = field(default_factory=list)  # numbers of its unanswered tasks, oldest first


class _ContentSender:
    """Sends tasks to workers and packs each message content once, for all workers."""

    def __init__(self) -> None:
        self._parcels: dict[int, Parcel] = {}  # by id of the content

    def send(self, worker: _Worker, task: Task) -> None:
        """Send `task` to `worker`, without the content if the worker already has it.

        Raises `RunFailedError` if there is no memory for it.
        """
        content = task.message.content
        try:
            parcel = self._parcels.get(id(content))
            if parcel is None:
                parcel = self._parcels[id(content)] = Parcel.pack(content)
            if worker.content is not parcel:
                parcel.send(worker.connection)
                worker.content = parcel
            shared_memory.send(worker.connection, (task.message.metadata, task.context))
        except ConnectionError:
            pass  # the worker has died, which `_receive` will find
        except OSError as error:
            raise _no_memory(error) from None

    def close(self) -> None:
        for parcel in self._parcels.values():
            parcel.close()


class _LogCollector(QueueHandler):
    """Keeps log records in a list, in a form that can be pickled."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.records: list[logging.LogRecord] = []

    def enqueue(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _no_memory(error: OSError) -> RunFailedError:
    return RunFailedError(
        f"no memory to exchange messages with the worker processes ({error.strerror}); "
        "workers = 1 needs none"
    )


def _timing_key(task: Task) -> tuple[int, str]:
    metadata = task.message.metadata
    return metadata.dst_node_id, metadata.message_type


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for later use instead of returning it to the system.

    Every training step frees and allocates the same blocks, and fresh memory is slow to obtain.
    Linux with glibc only.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _worker_main(connection: socket.socket, handle: MessageHandler, parent_pid: int) -> None:
    """Answer messages until the parent process ends, in a process that ignores SIGINT."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent ended before the call of prctl
        return
    keep_freed_memory()
    torch.set_num_threads(1)
    collector = _LogCollector()
    log.handlers, log.propagate = [collector], False
    content = RecordDict()
    while True:
        received = shared_memory.receive(connection)
        if isinstance(received, RecordDict):
            content = received
            continue
        metadata, context = received
        began = time.perf_counter()
        message = message_with_metadata(metadata, RecordDict(dict(content.items())))
        reply = handle(message, context)
        seconds = time.perf_counter() - began
        answer = Answer(reply, context.state, tuple(collector.records), seconds)
        try:
            shared_memory.send(connection, answer)
        except ConnectionError:
            return  # the parent has ended
        except OSError as error:
            failed = failure_reply(message, str(_no_memory(error)))
            shared_memory.send(connection, replace(answer, reply=failed))
        collector.records.clear()
