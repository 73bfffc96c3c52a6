"""Without room for a file a run ends in one line, and what was there stays whole."""

import errno
import os
import sys
from contextlib import contextmanager
from itertools import count

import pytest
from helpers.run_folders import ARRAYS, clients, make_config, row

from fedattn_app.errors import RunFailedError
from fedattn_app.files import append, read_arrays, write_atomically
from fedattn_app.models.parameters import fingerprint
from fedattn_app.results import run_folder
from fedattn_app.results.checkpoint import ACCOUNTANT, BEST, BUDGETS, CHECKPOINT
from fedattn_app.results.resume import earlier_run
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.results.run_result import RunResult
from fedattn_app.run_identity import RunIdentity

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")

SPENT = {"clients": "x" * 400}
FILES = (
    *("config.toml", "history.jsonl", "clients.jsonl", "status.json"),
    *(str(CHECKPOINT), str(BEST), str(ACCOUNTANT), str(BUDGETS)),
    *("model.safetensors", "best.safetensors", "summary.json"),
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Save the time of asking git and of waiting for the disk."""
    monkeypatch.setattr(run_folder, "recorded_versions", dict)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@contextmanager
def largest_file(size):
    """Let this process write no file of more than `size` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(config):
    """Write all files of a run of two rounds, or of the rest of the run that it resumes."""
    with RunFolder(config) as folder:
        with folder.reading_earlier_run():
            earlier = earlier_run(config, RunIdentity())
        folder.begin(earlier=earlier)
        for number in range(len(earlier.history), 3):
            folder.write_budgets(SPENT)
            folder.write_accountant(SPENT)
            folder.add_round(row(number), clients(number) * 3)
            folder.write_checkpoint(number, ARRAYS)
            folder.write_best(number, ARRAYS)
        folder.finish({"accuracy": 0.5, "more": "y" * 300}, ARRAYS, {"labels": "z" * 200})
    return RunResult(folder.path)


def content(result):
    arrays = [result.path / name for name in (CHECKPOINT, BEST, "best.safetensors")]
    rows = result.history, result.clients, result.summary, result.state
    return *rows, fingerprint(result.arrays), [fingerprint(read_arrays(p)[0]) for p in arrays]


@contextmanager
def full_disk(monkeypatch, num_writes):
    """Let `num_writes` pieces of data reach the disk, and no more."""
    numbers = count()

    def limited(descriptor):
        if next(numbers) >= num_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", limited)
        yield


def test_a_run_ends_in_one_line_at_every_write_and_resumes(tmp_path, monkeypatch):
    whole = content(run(make_config(output_dir=str(tmp_path / "whole"), num_rounds=2)))
    named = set()
    for num_writes in count():
        path = tmp_path / f"{num_writes}"
        config = make_config(output_dir=str(path), num_rounds=2)
        with full_disk(monkeypatch, num_writes):
            try:
                run(config)
            except RunFailedError as error:
                reason = str(error)
            else:
                break
        assert len(reason.splitlines()) == 1
        assert "cannot be written (No space left on device)" in reason
        named.add(reason.split(": ")[0].removeprefix(f"{path}{os.sep}"))
        assert {p.name for p in path.rglob(".*")} == {".lock"}
        if num_writes:
            status = RunResult(path).status
            assert (status["state"], status["reason"]) == ("failed", reason)
        for name in (CHECKPOINT, BEST, "model.safetensors", "best.safetensors"):
            if (path / name).exists():
                assert fingerprint(read_arrays(path / name)[0]) == fingerprint(ARRAYS)
        if (path / CHECKPOINT).exists():
            assert f"the rounds so far are in {path}" in reason
            config = make_config(resume_from=str(path), num_rounds=2)
        assert content(run(config)) == whole, num_writes
    assert content(RunResult(path)) == whole
    assert named == set(FILES)


@pytest.mark.parametrize("num_writes", range(0, 10, 2))
def test_a_finished_run_that_is_resumed_without_room_stays_whole(tmp_path, monkeypatch, num_writes):
    path = tmp_path / "run"
    before = content(run(make_config(output_dir=str(path), num_rounds=2)))
    with full_disk(monkeypatch, num_writes), pytest.raises(RunFailedError):
        run(make_config(resume_from=str(path), num_rounds=3))
    *rows, state, arrays, files = content(RunResult(path))
    assert rows == list(before[:3])
    assert (arrays, files) == before[4:]
    assert state in ("failed", "ended")  # ended: nothing at all could be written


def test_what_is_appended_is_there_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "rows"
    append(file, b"first\n")
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        append(file, b"second\n")
    assert file.read_bytes() == b"first\n"
    append(file, b"second\n")
    assert file.read_bytes() == b"first\nsecond\n"


def test_what_is_replaced_has_its_old_content_or_its_new(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, b"old")
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        write_atomically(file, b"longer than ten")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
