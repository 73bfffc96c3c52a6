"""State between messages: it is read back bit for bit, or an error is raised."""

import errno
import os

import numpy as np
import pytest
from flwr.app import RecordDict
from helpers.permissions import modes_in, umask

from fedattn_app.clients.node_state import ContextState, FolderState

ARRAYS = {
    "weight": np.float32([[1.5, -0.0], [np.nan, 1e-45]]),
    "steps": np.int64([3]),
    "column first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "of this node"


@pytest.fixture(params=["folder", "context"])
def state(request, folder):
    return FolderState(folder) if request.param == "folder" else ContextState(RecordDict())


def assert_same(left, right):
    assert {k: (v.dtype, v.shape) for k, v in left.items()} == {
        k: (v.dtype, v.shape) for k, v in right.items()
    }
    assert {k: v.tobytes() for k, v in left.items()} == {k: v.tobytes() for k, v in right.items()}


def test_load_returns_none_if_nothing_was_saved(state):
    assert state.load("personal") is None


def test_saved_arrays_are_read_back_bit_for_bit(state):
    state.save("personal", ARRAYS)
    assert_same(state.load("personal"), ARRAYS)
    assert state.load("other") is None


def test_a_scalar_stays_a_scalar(state):
    state.save("personal", {"scalar": np.array(2.5, np.float32)})
    assert_same(state.load("personal"), {"scalar": np.array(2.5, np.float32)})


def test_saving_replaces_earlier_arrays(state):
    state.save("personal", ARRAYS)
    state.save("other", {"x": np.float32([1])})
    state.save("personal", {"y": np.float32([2])})
    assert_same(state.load("personal"), {"y": np.float32([2])})
    assert_same(state.load("other"), {"x": np.float32([1])})


def test_a_new_process_reads_the_folder(folder):
    FolderState(folder).save("personal", ARRAYS)
    assert_same(FolderState(folder).load("personal"), ARRAYS)
    assert [file.name for file in folder.iterdir()] == ["personal.safetensors"]


def test_a_full_disk_loses_no_arrays_and_leaves_no_file(refused, monkeypatch, folder):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = FolderState(folder)
    state.save("personal", ARRAYS)
    monkeypatch.setattr(os, "fsync", full)
    with refused(f"state-dir = {folder}", "No space left"):
        state.save("personal", {"y": np.float32([2])})
    assert_same(state.load("personal"), ARRAYS)
    assert [file.name for file in folder.iterdir()] == ["personal.safetensors"]


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_damaged_file_is_refused(refused, folder, length):
    state = FolderState(folder)
    state.save("personal", ARRAYS)
    file = folder / "personal.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with refused(file, "cannot be read"):
        state.load("personal")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_folder_is_refused(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    with refused(f"state-dir = {file / below}"):
        FolderState(file / below).save("personal", ARRAYS)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_only_this_user_may_read_what_is_saved(folder, mask):
    with umask(mask):
        FolderState(folder).save("personal", ARRAYS)
    assert modes_in(folder.parent) == {
        "": 0o700,
        folder.name: 0o700,
        f"{folder.name}/personal.safetensors": 0o600,
    }


def test_others_may_no_longer_read_a_folder_of_an_earlier_version(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    file = folder / "personal.safetensors"
    file.touch(0o644)
    FolderState(folder).save("personal", ARRAYS)
    assert modes_in(folder) == {"": 0o700, file.name: 0o600}


@pytest.mark.parametrize("call", ["load", "save"])
def test_what_others_can_change_is_neither_read_nor_written(refused, folder, call):
    def attempt():
        return state.load("personal") if call == "load" else state.save("personal", ARRAYS)

    state = FolderState(folder)
    state.save("personal", {"x": np.float32([1])})
    file = folder / "personal.safetensors"
    before = file.read_bytes()
    folder.chmod(0o770)
    with refused(f"state-dir = {folder}", "others can write to it"):
        attempt()
    folder.chmod(0o700)
    file.chmod(0o606)
    with refused(f"state-dir = {folder}", f"{file.name} in it: others can write"):
        attempt()
    file.chmod(0o600)
    file.rename(folder / "moved")
    file.symlink_to("moved")
    with refused(f"state-dir = {folder}", f"{file.name} in it: is a link"):
        attempt()
    assert (folder / "moved").read_bytes() == before
