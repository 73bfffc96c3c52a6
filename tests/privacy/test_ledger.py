"""The ledger: entries are on disk before they are used, and are never lost."""

import errno
import json
import math
import multiprocessing
import os
import time
from dataclasses import asdict, replace

import pytest
from flwr.app import RecordDict
from helpers.permissions import modes_in, umask

from fedattn_app.errors import UserError
from fedattn_app.privacy import ledger as ledger_module
from fedattn_app.privacy.accounting import Steps
from fedattn_app.privacy.ledger import Entry, Ledger

FIRST = Entry("train", 1.1, 0.25, 4, 7, 1, 2.5, 1e-5)
SECOND = Entry("evaluate", 30.0, 1.0, 1, 7, 1, 2.6, 1e-5)
OTHER_RUN = replace(FIRST, run=8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.json"


@pytest.fixture(params=["file", "copy"])
def storage(request, path):
    """The path of a ledger, or None for a ledger in the copy only."""
    return path if request.param == "file" else None


def test_a_new_ledger_is_empty(storage):
    ledger = Ledger(RecordDict(), storage)
    assert ledger.entries == ledger.mechanisms == ledger.entries_of("train") == []


def test_entries_keep_their_order(storage):
    copy = RecordDict()
    ledger = Ledger(copy, storage)
    for entry in (FIRST, SECOND, OTHER_RUN):
        ledger.add(entry)
    for again in (ledger, Ledger(copy, storage)):
        assert again.entries == [FIRST, SECOND, OTHER_RUN]
        assert again.mechanisms == [Steps(1.1, 0.25, 4), Steps(30.0, 1.0, 1), Steps(1.1, 0.25, 4)]
        assert again.entries_of("train") == [FIRST, OTHER_RUN]
        assert again.entries_of("train", 8) == [OTHER_RUN]
        assert again.entries_of("evaluate", 8) == []


def test_the_file_survives_a_restart_and_equals_the_copy(path):
    Ledger(RecordDict(), path).add(FIRST)
    copy = RecordDict()
    ledger = Ledger(copy, path)
    assert ledger.entries == [FIRST]
    ledger.add(SECOND)
    assert Ledger(RecordDict(), path).entries == Ledger(copy).entries == [FIRST, SECOND]


def test_the_entry_is_on_disk_when_add_returns(path, monkeypatch):
    """Each file is synced, renamed and its folder synced: first the ledger, then the count."""
    done = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), rename(*names)))
    Ledger(RecordDict(), path).add(FIRST)
    assert done == ["sync", "rename", "sync"] * 2


def test_numbers_are_read_back_bit_for_bit(storage):
    odd = replace(FIRST, noise_multiplier=0.1 + 0.2, epsilon=math.inf, run=2**63 - 1, delta=1e-300)
    copy = RecordDict()
    Ledger(copy, storage).add(odd)
    assert Ledger(copy, storage).entries == [odd]


def test_an_entry_with_impossible_values_is_refused():
    for wrong in ({"steps": 0}, {"sample_rate": 0.0}, {"kind": "sing"}, {"steps": True}):
        with pytest.raises(ValueError, match=r"is out of range|is not"):
            replace(FIRST, **wrong)


# Files that are not a ledger


def ledger_text(*rows, **changes):
    return json.dumps({"format": ledger_module.FORMAT, "entries": list(rows), **changes})


def row(**changes):
    return {**asdict(FIRST), **changes}


def without(key):
    return {k: v for k, v in row().items() if k != key}


WRONG = {
    "nothing": "",
    "spaces": "  \n",
    "no JSON": "privacy?",
    "a list": "[]",
    "a list of entries": json.dumps([row()]),
    "null": "null",
    "a text": '"ledger"',
    "a number": "1",
    "no keys": "{}",
    "no format": json.dumps({"entries": []}),
    "another format": ledger_text(row(), format="fedattn privacy ledger 2"),
    "no entries": json.dumps({"format": ledger_module.FORMAT}),
    "entries null": ledger_text(entries=None),
    "entries a number": ledger_text(entries=3),
    "entries an object": ledger_text(entries={}),
    "entries a text": ledger_text(entries=""),
    "entries twice": ledger_text(row()).replace("}]", '}], "entries": []'),
    "steps twice": ledger_text(row()).replace('"steps": 4', '"steps": 4, "steps": 1'),
    "entries of texts": ledger_text("train"),
    "entries of null": ledger_text(None),
    "deeply nested": "[" * 100_000,
    "an unknown key": ledger_text(row(colour="red")),
    **{f"no {key}": ledger_text(without(key)) for key in row()},
    **{f"{key} a text": ledger_text(row(**{key: "1"})) for key in row()},
    **{f"{key} null": ledger_text(row(**{key: None})) for key in row()},
    "negative steps": ledger_text(row(steps=-4)),
    "no steps": ledger_text(row(steps=0)),
    "half a step": ledger_text(row(steps=0.5)),
    "steps true": ledger_text(row(steps=True)),
    "negative noise": ledger_text(row(noise_multiplier=-1.0)),
    "negative epsilon": ledger_text(row(epsilon=-1.0)),
    "rate 0": ledger_text(row(sample_rate=0.0)),
    "rate 2": ledger_text(row(sample_rate=2.0)),
    **{
        f"{key} NaN": ledger_text(row(**{key: math.nan}))
        for key in ("noise_multiplier", "sample_rate", "epsilon", "steps", "delta")
    },
    "delta 0": ledger_text(row(delta=0.0)),
    "delta 1": ledger_text(row(delta=1.0)),
    "noise infinite": ledger_text(row(noise_multiplier=math.inf)),
    "wrong second entry": ledger_text(row(), row(steps=-1)),
}


def test_a_file_written_by_hand_is_read(path):
    """The files below are variations of this one, each with one fault."""
    path.parent.mkdir()
    path.write_text(ledger_text(row(), asdict(SECOND)))
    assert Ledger(RecordDict(), path).entries == [FIRST, SECOND]


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_a_ledger_is_refused_and_not_changed(refused, path, content):
    path.parent.mkdir()
    path.write_text(content)
    with refused(path, "is not a readable privacy ledger"):
        Ledger(RecordDict(), path)
    assert path.read_text() == content


@pytest.mark.parametrize("length", [0, 1, 40, 100, 250, -4, -2])
def test_a_truncated_file_is_refused_and_not_changed(refused, path, length):
    ledger = Ledger(RecordDict(), path)
    ledger.add(FIRST)
    ledger.add(SECOND)
    truncated = path.read_bytes()[:length]
    path.write_bytes(truncated)
    for attempt in (lambda: Ledger(RecordDict(), path), lambda: ledger.add(OTHER_RUN)):
        with refused(path, "is not a readable privacy ledger"):
            attempt()
    assert path.read_bytes() == truncated


def test_a_file_that_is_not_utf8_is_refused(refused, path):
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00")
    with refused(path, "is not a readable privacy ledger"):
        Ledger(RecordDict(), path)


def test_a_folder_in_place_of_the_file_is_refused(refused, path):
    path.mkdir(parents=True)
    with refused(path, "Is a directory"):
        Ledger(RecordDict(), path)


# Links


@pytest.mark.parametrize("target", ["gone.json", "gone/ledger.json", "kept.json"])
@pytest.mark.parametrize("name", ["ledger.json", ".ledger.json.count", ".ledger.json.lock"])
def test_a_link_in_place_of_a_file_is_refused_and_not_followed(refused, path, name, target):
    path.parent.mkdir(0o700)
    kept = path.parent / "kept.json"
    kept.write_text(ledger_text(row()))
    path.with_name(name).symlink_to(target)
    with refused(f"state-dir = {path.parent}", f"{name} in it: is a link"):
        Ledger(RecordDict(), path)
    assert path.with_name(name).is_symlink()
    assert kept.read_text() == ledger_text(row())
    assert {each.name for each in path.parent.iterdir()} == {name, "kept.json"}


@pytest.mark.parametrize("name", ["ledger.json", ".ledger.json.count", ".ledger.json.lock"])
def test_a_link_that_appears_later_is_refused_before_anything_is_spent(refused, path, name):
    ledger = Ledger(RecordDict(), path)
    ledger.add(FIRST)
    path.with_name(name).rename(path.with_name("moved"))
    path.with_name(name).symlink_to("moved")
    before = path.with_name("moved").read_bytes()
    with refused(f"{name} in it: is a link"):
        ledger.add(SECOND)
    assert path.with_name("moved").read_bytes() == before
    assert ledger.entries == [FIRST]


def test_the_folder_may_be_a_link(path, tmp_path):
    (tmp_path / "disk").mkdir(0o700)
    path.parent.symlink_to("disk")
    Ledger(RecordDict(), path).add(FIRST)
    assert path.parent.is_symlink()
    assert Ledger(RecordDict(), tmp_path / "disk" / path.name).entries == [FIRST]


# Permissions


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_only_this_user_may_read_what_is_written(path, mask):
    with umask(mask):
        Ledger(RecordDict(), path).add(FIRST)
        Ledger(RecordDict(), path).add(SECOND)
    assert modes_in(path.parent) == {
        "": 0o700,
        "ledger.json": 0o600,
        ".ledger.json.count": 0o600,
        ".ledger.json.lock": 0o600,
    }


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722, 0o1777])
def test_a_folder_that_others_can_write_is_refused(refused, path, mode):
    Ledger(RecordDict(), path).add(FIRST)
    before = path.read_bytes()
    path.parent.chmod(mode)
    with refused(f"state-dir = {path.parent}", "others can write to it", "chmod 700"):
        Ledger(RecordDict(), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["ledger.json", ".ledger.json.count", ".ledger.json.lock"])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(refused, path, name, mode):
    ledger = Ledger(RecordDict(), path)
    ledger.add(FIRST)
    path.with_name(name).chmod(mode)
    for attempt in (lambda: Ledger(RecordDict(), path), lambda: ledger.add(SECOND)):
        with refused(f"state-dir = {path.parent}", f"{name} in it: others can write", "chmod go-w"):
            attempt()
    path.with_name(name).chmod(0o600)
    assert Ledger(RecordDict(), path).entries == [FIRST]


# Files that lost entries


@pytest.mark.parametrize(
    "entries",
    [None, [], [FIRST], [SECOND, FIRST], [FIRST, replace(SECOND, noise_multiplier=99.0)]],
    ids=["removed", "empty", "fewer", "other order", "other noise"],
)
def test_a_file_without_entries_of_the_copy_is_refused(refused, path, entries):
    copy = RecordDict()
    ledger = Ledger(copy, path)
    ledger.add(FIRST)
    ledger.add(SECOND)
    if entries is None:
        path.unlink()
    else:
        path.write_text(ledger_text(*map(asdict, entries)))
    before = path.read_text() if path.exists() else None
    for attempt in (lambda: Ledger(copy, path), lambda: ledger.add(OTHER_RUN)):
        with refused(path, "lacks entries that this node has written"):
            attempt()
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize("entries", [None, [], [FIRST]])
def test_a_restarted_node_refuses_a_file_with_fewer_entries_than_counted(refused, path, entries):
    for entry in (FIRST, SECOND):
        Ledger(RecordDict(), path).add(entry)
    if entries is None:
        path.unlink()
    else:
        path.write_text(ledger_text(*map(asdict, entries)))
    with refused(path, "lacks entries that this node has written"):
        Ledger(RecordDict(), path)


def test_a_file_with_more_entries_than_the_copy_is_used(path):
    """Another process of the node may have added them, or an earlier one that was killed."""
    copy = RecordDict()
    ledger = Ledger(copy, path)
    ledger.add(FIRST)
    Ledger(RecordDict(), path).add(SECOND)
    ledger.add(OTHER_RUN)
    assert ledger.entries == Ledger(copy, path).entries == [FIRST, SECOND, OTHER_RUN]


# Files that cannot be written


def test_a_folder_that_cannot_be_made_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    with refused(f"state-dir = {tmp_path / 'file'}", "Not a directory"):
        Ledger(RecordDict(), tmp_path / "file" / "ledger.json")
    path, copy = tmp_path / "file" / "below" / "ledger.json", RecordDict()
    ledger = Ledger(copy, path)
    with refused(path, "cannot be written"):
        ledger.add(FIRST)
    assert not copy


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_loses_no_entry_and_leaves_no_file(refused, monkeypatch, path, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copy = RecordDict()
    ledger = Ledger(copy, path)
    ledger.add(FIRST)
    files = set(path.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with refused(path, "cannot be written", "No space left"):
            ledger.add(SECOND)
    assert set(path.parent.iterdir()) == files
    assert Ledger(copy, path).entries == [FIRST]
    ledger.add(SECOND)
    assert Ledger(copy, path).entries == [FIRST, SECOND]


def test_files_left_by_a_killed_process_do_no_harm(path):
    path.parent.mkdir()
    path.with_name(f".{path.name}.{os.getpid()}").write_text("half an entr")  # earlier versions
    path.with_name(f".{path.name}.abcd_123.fedattn").write_text("half an entr")
    path.with_name(f".{path.name}.lock").write_text("")
    ledger = Ledger(RecordDict(), path)
    ledger.add(FIRST)
    assert Ledger(RecordDict(), path).entries == [FIRST]


def in_two_processes(work):
    """Call `work` with 1 and with 2, each in its own process, at the same time."""
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=work, args=(run,), daemon=True) for run in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_two_processes_at_the_same_time_lose_no_entry(path):
    def spend(run):
        ledger = Ledger(RecordDict(), path)
        for server_round in range(40):
            ledger.add(replace(FIRST, run=run, server_round=server_round))

    in_two_processes(spend)
    ledger = Ledger(RecordDict(), path)
    for run in (1, 2):
        assert [entry.server_round for entry in ledger.entries_of("train", run)] == list(range(40))
    assert len(ledger.entries) == 80


def test_no_other_process_adds_an_entry_under_the_lock(path):
    ledgers = {run: Ledger(RecordDict(), path) for run in (1, 2)}

    def spend_once(run):
        ledger = ledgers[run]
        with ledger.exclusive():
            if not ledger.entries:
                time.sleep(0.3)
                ledger.add(replace(FIRST, run=run))
                ledger.add(replace(SECOND, run=run))

    in_two_processes(spend_once)
    first, second = Ledger(RecordDict(), path).entries
    assert (first.kind, second.kind, first.run) == ("train", "evaluate", second.run)


def test_the_lock_is_released_after_an_error(path):
    ledger = Ledger(RecordDict(), path)
    with pytest.raises(KeyError), ledger.exclusive():
        raise KeyError
    Ledger(RecordDict(), path).add(FIRST)
    ledger.add(SECOND)
    assert ledger.entries == Ledger(RecordDict(), path).entries == [FIRST, SECOND]


def test_the_cause_of_an_error_is_suppressed(path):
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(UserError) as caught:
        Ledger(RecordDict(), path)
    assert caught.value.__suppress_context__
