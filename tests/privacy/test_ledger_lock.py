"""The lock of the privacy ledger: threads, processes, forks, and holders that are killed."""

import errno
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from flwr.app import RecordDict

from fedattn_app.errors import UserError
from fedattn_app.privacy import ledger as ledger_module
from fedattn_app.privacy.ledger import Entry, Ledger

ENTRY = Entry("train", 1.1, 0.25, 4, 7, 1, 2.5, 1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.json"


@pytest.fixture
def start():
    """A function that runs another function in a forked process, which is killed after the test."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this platform")
    started = []

    def fork(function):
        started.append(multiprocessing.get_context("fork").Process(target=function))
        started[-1].start()
        return started[-1]

    yield fork
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def short_timeout(monkeypatch):
    monkeypatch.setattr(ledger_module, "LOCK_TIMEOUT_SECONDS", 0.1)


def hold(path, ready):
    with Ledger(RecordDict(), path).exclusive():
        ready.touch()
        time.sleep(100)


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def test_threads_with_ledgers_of_their_own_lose_no_entry(path):
    def add(run):
        ledger = Ledger(RecordDict(), path)
        for server_round in range(20):
            ledger.add(replace(ENTRY, run=run, server_round=server_round))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, range(3)))
    ledger = Ledger(RecordDict(), path)
    for run in range(3):
        assert [entry.server_round for entry in ledger.entries_of("train", run)] == list(range(20))


def test_threads_that_share_a_ledger_lose_no_entry(path):
    ledger = Ledger(RecordDict(), path)

    def add(run):
        for server_round in range(20):
            ledger.add(replace(ENTRY, run=run, server_round=server_round))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, range(3)))
    assert len(ledger.entries) == len(Ledger(RecordDict(), path).entries) == 60


def test_a_file_system_without_locks_stops_the_node(path, monkeypatch, refused):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with refused(path, "cannot be written (Function not implemented)"):
        Ledger(RecordDict(), path).add(ENTRY)
    assert not path.exists()


@pytest.mark.usefixtures("short_timeout")
def test_another_thread_cannot_add_while_the_lock_is_held(path, refused):
    def add():
        with refused(path, "locked by another process for 0.1 s"):
            Ledger(RecordDict(), path).add(ENTRY)

    with Ledger(RecordDict(), path).exclusive(), ThreadPoolExecutor(1) as pool:
        pool.submit(add).result()


@pytest.mark.usefixtures("short_timeout")
def test_the_lock_is_free_once_its_holder_has_been_killed(path, tmp_path, start):
    ready = tmp_path / "ready"
    holder = start(lambda: hold(path, ready))
    wait_for(ready)
    with pytest.raises(UserError, match="locked"):
        Ledger(RecordDict(), path).add(ENTRY)
    holder.kill()
    holder.join()
    Ledger(RecordDict(), path).add(ENTRY)


@pytest.mark.usefixtures("short_timeout")
def test_a_process_forked_from_the_holder_neither_keeps_nor_releases_the_lock(
    path, tmp_path, start
):
    with Ledger(RecordDict(), path).exclusive():
        start(lambda: None).join()  # as it ends, it must not release the lock
        child = start(lambda: os._exit(3 if fails_to_add(path) else 0))
        child.join()
        assert child.exitcode == 3
        start(lambda: time.sleep(100))
    Ledger(RecordDict(), path).add(ENTRY)  # although the last child is alive


def fails_to_add(path):
    try:
        Ledger(RecordDict(), path).add(ENTRY)
    except UserError:
        return True
    return False


def test_the_lock_file_lies_next_to_the_ledger_and_may_hold_anything(path):
    lock = path.with_name(".ledger.json.lock")
    lock.write_text("left by an earlier version")
    Ledger(RecordDict(), path).add(ENTRY)
    assert lock.exists()
