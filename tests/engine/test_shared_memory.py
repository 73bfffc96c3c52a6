import os
import resource
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedattn_app.engine import shared_memory
from fedattn_app.engine.shared_memory import ALIGNMENT, HEADER, Parcel, receive, send

pytestmark = [
    pytest.mark.skipif(not shared_memory.AVAILABLE, reason="memfd_create exists on Linux only"),
    pytest.mark.usefixtures("no_garbage"),
]


@pytest.fixture
def ends():
    """The two ends of a socket."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def mappings():
    return Path("/proc/self/maps").read_text().count("memfd:fedattn")


VALUES = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.float16([1.5, -2]),
    "bool": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">i4"),
    "no dimensions": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every other element": np.arange(10)[::2],
}


def test_arrays_arrive_unchanged_read_only_and_aligned(ends):
    send(ends[0], VALUES)
    got = receive(ends[1])
    assert got.keys() == VALUES.keys()
    for name, values in VALUES.items():
        assert (got[name].dtype, got[name].shape) == (values.dtype, values.shape), name
        assert got[name].tobytes() == values.tobytes(), name
    for name in ("float32", "float16", "bool", "Fortran order"):
        assert not got[name].flags.writeable
        assert got[name].ctypes.data % ALIGNMENT == 0, name
    with pytest.raises(ValueError, match="read-only"):
        got["float32"][0, 0] = 1


def test_the_pickle_contains_no_array_data(ends):
    parcel = Parcel.pack({"large": np.ones(1_000_000), "small": np.ones(1)})
    parcel.send(ends[0])
    parcel.close()
    header, files, *_ = socket.recv_fds(ends[1], HEADER.size, 1)
    length, arrays = HEADER.unpack(header)
    assert length < 1000
    assert arrays == 2
    assert 8_000_000 < os.fstat(files[0]).st_size < 8_001_000
    os.close(files[0])


def test_a_parcel_can_be_sent_many_times_and_outlives_its_sender(ends):
    parcel = Parcel.pack([np.arange(5)])
    for _ in range(3):
        parcel.send(ends[0])
    parcel.close()
    ends[0].close()
    got = [receive(ends[1])[0].tolist() for _ in range(3)]
    assert got == [[0, 1, 2, 3, 4]] * 3
    with pytest.raises(EOFError):
        receive(ends[1])


def test_received_arrays_need_no_descriptor_and_freed_ones_no_memory(ends):
    open_before, mapped_before = descriptors(), mappings()
    kept = []
    for number in range(50):
        send(ends[0], np.full(10, number))
        kept.append(receive(ends[1]))
    assert descriptors() == open_before
    assert mappings() == mapped_before + 50
    assert [array[9] for array in kept] == list(range(50))
    part = kept[7][2:4]
    kept.clear()
    assert mappings() == mapped_before + 1
    assert part.tolist() == [7, 7]


def test_sending_to_a_closed_socket_is_a_connection_error(ends):
    before = descriptors()
    ends[1].close()
    with pytest.raises(ConnectionError):
        send(ends[0], "hello")
    assert descriptors() == before - 1


@contextmanager
def max_file_size(num_bytes):
    """A context in which no file can grow beyond `num_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_pack_leaves_no_descriptor():
    before = descriptors()
    with pytest.raises((AttributeError, TypeError, ValueError), match="pickle"):
        Parcel.pack(lambda: 0)
    with max_file_size(1000), pytest.raises(OSError, match="File too large"):
        Parcel.pack(np.zeros(10_000))
    assert descriptors() == before
