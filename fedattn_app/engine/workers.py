"""Processes that work through the messages of a simulation, each on one core.

They are forked once and stay, so that models and tokenised data are made once in each. Arrays pass
through shared memory. Which process answers a message has no part in the answer.
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
from contextlib import suppress
from dataclasses import dataclass, field
from logging.handlers import QueueHandler
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import torch
from flwr.app import Context, Message, RecordDict
from flwr.app.message import make_message

from fedattn_app.engine import shared_memory
from fedattn_app.engine.shared_memory import Parcel

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

# Messages that are with a process: one that it works at, and one that waits, so that it need not.
AT_ONCE = 2
# At most so many messages for each process are out of order: their answers have to be kept.
AHEAD = 16
PARENT_DEATH_SIGNAL = 1  # of prctl(2)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 1 << 30
LARGEST_KEPT = 1 << 25  # more glibc does not take
FOREVER = 1e9  # seconds, for what has not been timed yet

log = logging.getLogger("fedattn")

# Answers a message, whatever happens, and may change the context's state.
Answering = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Task:
    """A message and the context of the node that it is for."""

    message: Message
    context: Context


@dataclass(frozen=True)
class Answer:
    """What came of a task: the reply, the node's state after it, and what was logged.

    Where the process died over it, `reply` is None and `died` says how.
    """

    reply: Message | None
    state: RecordDict
    lines: Sequence[logging.LogRecord] = ()
    seconds: float = 0.0
    died: str = ""


class Workers:
    """`count` processes that run `answering`."""

    def __init__(self, answering: Answering, count: int) -> None:
        self.answering = answering
        self.count = count
        self._workers: list[_Worker] = []
        self._seconds: dict[tuple[int, str], float] = {}  # by node and kind of message

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of `tasks`, each as soon as those before it are there.

        No two tasks may be of one node, whose state either would change.
        What took long the last time is begun first, so that the processes end together. A process
        that dies is replaced. Raises `RuntimeError` while another call is not at its end.
        """
        if any(worker.tasks for worker in self._workers):
            raise RuntimeError("the answers to other messages have not all been taken yet")
        contents = _Contents()
        waiting, answers, yielded = list(range(len(tasks))), dict[int, Answer](), 0
        try:
            while yielded < len(tasks):
                self._hand_out(tasks, waiting, yielded + AHEAD * self.count, contents)
                for worker in self._with_answers():
                    number = worker.tasks[0]
                    answers[number] = self._receive(worker, tasks[number], waiting)
                while yielded in answers:
                    yield answers.pop(yielded)
                    yielded += 1
        finally:
            contents.close()
            for worker in self._workers:
                if worker.tasks:  # nobody waits for its answers any more
                    self._end(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            self._end(worker)

    def _hand_out(
        self, tasks: Sequence[Task], waiting: list[int], end: int, contents: "_Contents"
    ) -> None:
        """Give every process something to do, from the tasks `waiting` before the number `end`."""
        for worker in self._workers:
            if not (worker.tasks or worker.process.is_alive()):
                self._end(worker)
        for place in range(self.count):
            if waiting and place not in {worker.place for worker in self._workers}:
                self._start(place)
        for depth in range(AT_ONCE):
            for worker in self._workers:
                ready = [number for number in waiting if number < end]
                if len(worker.tasks) == depth and ready:
                    number = min(ready, key=lambda n: self._rank(tasks[n], n, worker.place))
                    waiting.remove(number)
                    worker.tasks.append(number)
                    contents.give(worker, tasks[number])

    def _rank(self, task: Task, number: int, place: int) -> tuple[bool, float, int]:
        """Order tasks for a process: first its own nodes, whose data it has, and the longest.

        Of those that take about as long, within √2, the first in number is the first: then few
        answers have to wait for one before them.
        """
        node = task.message.metadata.dst_node_id
        length = round(2 * math.log2(self._seconds.get(_kind(task), FOREVER)))
        return node % self.count != place, -length, number

    def _start(self, place: int) -> None:
        ours, theirs = socket.socketpair()
        process = get_context("fork").Process(
            target=_work, args=(theirs, self.answering, os.getpid()), daemon=True
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():  # of threads, which the process does not use
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self._workers.append(_Worker(place, process, ours))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _end(self, worker: "_Worker") -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._workers = [other for other in self._workers if other is not worker]

    def _with_answers(self) -> list["_Worker"]:
        busy = {worker.connection: worker for worker in self._workers if worker.tasks}
        return [busy[ready] for ready in wait(list(busy)) if isinstance(ready, socket.socket)]

    def _receive(self, worker: "_Worker", task: Task, waiting: list[int]) -> Answer:
        try:
            answer: Answer = shared_memory.receive(worker.connection)
        except (EOFError, ConnectionError):
            self._end(worker)
            waiting.extend(worker.tasks[1:])
            return Answer(None, task.context.state, died=f"exit code {worker.process.exitcode}")
        worker.tasks.pop(0)  # not before, so that an interrupt up to here finds a busy worker
        self._seconds[_kind(task)] = answer.seconds
        return answer


@dataclass(eq=False)
class _Worker:
    """One process, seen from the parent."""

    place: int
    process: "ForkProcess"
    connection: socket.socket
    content: Parcel | None = None  # what it was sent last
    tasks: list[int] = field(default_factory=list)  # what it was given, oldest first


class _Contents:
    """The contents of messages, each packed once for all processes."""

    def __init__(self) -> None:
        self._parcels: dict[int, Parcel] = {}

    def give(self, worker: _Worker, task: Task) -> None:
        """Send `task` to `worker`, and first the content of its message unless it has that."""
        content = task.message.content
        parcel = self._parcels.get(id(content))
        if parcel is None:
            parcel = self._parcels[id(content)] = Parcel.of(content)
        with suppress(ConnectionError):  # from one that has died, as its answer will show
            if worker.content is not parcel:
                parcel.send(worker.connection)
                worker.content = parcel
            shared_memory.send(worker.connection, (task.message.metadata, task.context))

    def close(self) -> None:
        for parcel in self._parcels.values():
            parcel.close()


class _Lines(QueueHandler):
    """Collects log lines so that they can be sent."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.lines: list[logging.LogRecord] = []

    def enqueue(self, record: logging.LogRecord) -> None:
        self.lines.append(record)


def _kind(task: Task) -> tuple[int, str]:
    metadata = task.message.metadata
    return metadata.dst_node_id, metadata.message_type


def keep_memory() -> None:
    """Keep memory that a step lets go of: the next one takes it again, and anew it takes longer.

    Linux with glibc only.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)


def _work(connection: socket.socket, answering: Answering, parent: int) -> None:
    """Answer what comes until the `parent` goes. Interrupts are blocked: it alone hears them."""
    libc = ctypes.CDLL(None)
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked for a signal
        return
    keep_memory()
    torch.set_num_threads(1)
    handler = _Lines()
    log.handlers, log.propagate = [handler], False
    content = RecordDict()
    while True:
        given = shared_memory.receive(connection)
        if isinstance(given, RecordDict):
            content = given
            continue
        metadata, context = given
        began = time.perf_counter()
        message = make_message(metadata, RecordDict(dict(content.items())))
        reply = answering(message, context)
        seconds = time.perf_counter() - began
        answer = Answer(reply, context.state, tuple(handler.lines), seconds)
        shared_memory.send(connection, answer)
        handler.lines.clear()
