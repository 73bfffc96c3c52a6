"""A run's folder says its state, and one run at a time writes there."""

import errno
import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers.run_folders import ARRAYS, begun, clients, make_config, row

from fedattn_app.errors import RunFailedError
from fedattn_app.results import run_state
from fedattn_app.results.resume import earlier_run
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.results.run_result import RunResult
from fedattn_app.results.run_state import FINAL_FILES, LOCK, STATUS, write_status
from fedattn_app.run_identity import RunIdentity


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch):
    monkeypatch.setattr(run_state, "LOCK_TIMEOUT_SECONDS", 0.1)


@pytest.fixture
def config(tmp_path):
    return make_config(output_dir=str(tmp_path / "run"), num_rounds=5)


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


def status(path):
    return json.loads((path / STATUS).read_text())


# The state


def test_a_run_says_how_far_it_is_and_that_it_has_ended(config):
    with begun(config) as folder:
        assert status(folder.path) == {"state": "running", "round": 0, "reason": None}
        for number in range(3):
            folder.add_round(row(number), clients(number))
            folder.write_checkpoint(number, ARRAYS)
            assert RunResult(folder.path).status["round"] == number
            assert RunResult(folder.path).state == "running"
        folder.finish({}, ARRAYS, {})
        assert status(folder.path) == {"state": "ended", "round": 2, "reason": None}
    assert RunResult(folder.path).state == "ended"


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RunFailedError("all clients failed"), "failed", "all clients failed"),
        (ZeroDivisionError("by\nzero"), "failed", "ZeroDivisionError: by zero"),
        (OSError(errno.EIO, "I/O error"), "failed", "OSError: [Errno 5] I/O error"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit"),
    ],
)
def test_a_run_that_ends_early_says_why(config, error, state, reason):
    with pytest.raises(type(error)), begun(config) as folder:
        raise error
    assert RunResult(folder.path).status == {"state": state, "round": 0, "reason": reason}


def test_an_error_after_the_end_does_not_change_the_state(config):
    with suppress(KeyboardInterrupt), begun(config) as folder:
        folder.finish({}, ARRAYS, {})
        raise KeyboardInterrupt
    assert RunResult(folder.path).state == "ended"


def test_a_run_that_is_refused_leaves_the_state_of_the_run_before(interrupted, refused):
    before = RunResult(interrupted).status
    with refused("already holds a run"), begun(make_config(output_dir=str(interrupted))):
        pass
    assert RunResult(interrupted).status == before


def test_a_status_is_not_what_anybody_wrote(config, refused):
    with begun(config) as folder:
        pass
    odd = [b"", b"[]", b"{}", b"\xff", b"[" * 50_000, b'{"state": "ended"}']
    odd += [
        json.dumps({"state": state, "round": server_round, "reason": reason}).encode()
        for state, server_round, reason in (("x", 1, None), ("ended", "1", None), ("ended", 1, 2))
    ]
    for content in odd:
        (folder.path / STATUS).write_bytes(content)
        with refused(folder.path / STATUS, "is not the status of a run"):
            _ = RunResult(folder.path).state


def test_a_status_is_written_although_there_is_no_room_for_another_file(tmp_path, monkeypatch):
    write_status(tmp_path, "running", 12, "a reason that is longer than the next one")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_state, "write_atomically", full)
    write_status(tmp_path, "failed", 3, "full")
    assert status(tmp_path) == {"state": "failed", "round": 3, "reason": "full"}
    with pytest.raises(OSError, match="No space left"):
        write_status(tmp_path / "none", "running", 1)


# The lock


def hold(config, ready):
    with begun(config):
        ready.touch()
        time.sleep(100)


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def is_refused(config):
    try:
        with begun(config):
            return False
    except ValueError as error:
        return "another run is writing there" in str(error)


def test_a_killed_run_has_died_and_its_folder_is_free(config, tmp_path, start, refused):
    ready = tmp_path / "ready"
    process = start(lambda: hold(config, ready))
    wait_for(ready)
    path = tmp_path / "run"
    assert RunResult(path).state == "running"
    with refused(f"output-dir = {path}", "another run is writing there"), begun(config):
        pass
    process.kill()
    process.join()
    assert RunResult(path).status == {
        "state": "died",
        "round": 0,
        "reason": "its process ended without saying why",
    }
    with begun(config):
        assert RunResult(path).state == "running"


def test_a_second_run_is_refused_in_another_thread_and_through_a_link(config, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with begun(config), ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_refused, config).result()
        assert pool.submit(is_refused, make_config(output_dir=str(link))).result()
    assert not is_refused(config)


def test_a_process_forked_from_the_run_does_not_keep_the_lock(config, start):
    with begun(config):
        child = start(lambda: os._exit(3 if is_refused(config) else 0))
        child.join()
        assert child.exitcode == 3
        start(lambda: time.sleep(100))
    assert not is_refused(config)


def test_the_lock_file_of_an_earlier_run_does_no_harm(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("anything")
    assert not is_refused(config)


def test_what_a_killed_run_was_writing_is_deleted_and_nothing_else(interrupted):
    leftovers = [
        interrupted / ".status.json.abcd_123.fedattn",
        interrupted / "checkpoint" / ".best.safetensors.00000000.fedattn",
    ]
    names = (".note.txt", "notes.2024", "status.json.abcd_123.fedattn", ".note.fedattn", ".note.71")
    others = [interrupted / name for name in names]
    for file in (*leftovers, *others):
        file.touch()
    config = make_config(resume_from=str(interrupted), num_rounds=5, dropout=0.25)
    with RunFolder(config) as folder, folder.reading_earlier_run():
        folder.begin(earlier=earlier_run(config, RunIdentity()))
    assert not any(file.exists() for file in leftovers)
    assert all(file.exists() for file in others)


def test_a_folder_is_not_resumed_while_a_run_writes_there(interrupted, tmp_path, refused):
    for settings in ({}, {"output_dir": str(tmp_path / "other")}):
        again = make_config(resume_from=str(interrupted), **settings)
        with RunFolder(make_config(resume_from=str(interrupted))) as first:
            with first.reading_earlier_run():
                pass
            with (
                refused(f"resume-from = {interrupted}", "another run is writing there"),
                RunFolder(again) as second,
                second.reading_earlier_run(),
            ):
                pass
    assert not (tmp_path / "other").exists()


def test_several_runs_may_resume_one_run_in_folders_of_their_own(interrupted, tmp_path):
    settings = {"resume_from": str(interrupted), "num_rounds": 5, "dropout": 0.25}
    configs = [make_config(output_dir=str(tmp_path / name), **settings) for name in "ab"]
    with RunFolder(configs[0]) as one, RunFolder(configs[1]) as other:
        for folder, config in zip((one, other), configs, strict=True):
            with folder.reading_earlier_run():
                earlier = earlier_run(config, RunIdentity())
            folder.begin(earlier=earlier)
        assert RunResult(one.path).history == RunResult(other.path).history
        assert RunResult(one.path).state == RunResult(other.path).state == "running"
    assert RunResult(interrupted).state == "interrupted"


def test_a_folder_is_locked_before_its_run_is_read(interrupted, refused):
    """Otherwise a run could go on from rounds to which another has added since."""
    config = make_config(resume_from=str(interrupted), num_rounds=5, dropout=0.25)
    with RunFolder(config) as first, first.reading_earlier_run():
        first.begin(earlier=earlier_run(config, RunIdentity()))
        with refused("another run is writing"), begun(make_config(output_dir=str(interrupted))):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_locked_is_not_written_but_read(
    interrupted, tmp_path, monkeypatch, refused, number
):
    def fails(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_state, "acquire_lock", fails)
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.is_file()}
    config = make_config(resume_from=str(interrupted), num_rounds=5, dropout=0.25)
    with refused("cannot be written", os.strerror(number)), RunFolder(config) as folder:
        with folder.reading_earlier_run():
            earlier = earlier_run(config, RunIdentity())
        folder.begin(earlier=earlier)
    assert {f: f.read_bytes() for f in interrupted.rglob("*") if f.is_file()} == before


def test_final_files_are_removed_together(config):
    with begun(config) as folder:
        folder.write_best(0, ARRAYS)
        folder.finish({}, ARRAYS, {})
        assert folder.finished
        assert all((folder.path / name).exists() for name in FINAL_FILES)
        folder.remove_final_files()
        assert not folder.finished
        assert not any((folder.path / name).exists() for name in FINAL_FILES)


def test_a_status_that_cannot_be_replaced_is_overwritten_or_stays(config, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with begun(config) as folder:
        pass
    path = folder.path / STATUS
    monkeypatch.setattr(run_state, "write_atomically", full)
    run_state.write_status(folder.path, "failed", 3, "a reason")
    assert json.loads(path.read_bytes()) == {"state": "failed", "round": 3, "reason": "a reason"}
    run_state.write_status(folder.path, "failed", 3, "ü" * 5000)
    assert json.loads(path.read_bytes())["reason"].startswith("ü")
    before = b'{"state": "ended", "round": 1, "reason": null}'
    path.write_bytes(before)
    with pytest.raises(OSError, match="No space"):
        run_state.write_status(folder.path, "interrupted", 10**9)
    assert path.read_bytes() == before


def test_many_readers_see_the_same_state(interrupted):
    run_state.write_status(interrupted, "running", 1)
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: RunResult(interrupted).state, range(200)))
    assert set(states) == {"died"}
