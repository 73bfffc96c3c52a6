"""Objects that pass between processes of this machine, through memory that both see.

A parcel is an anonymous file in memory that holds a pickle (protocol 5) and, beside it, the data of
the arrays in it. Only its descriptor passes through a socket, and what the receiver gets are
read-only views. The file has no name, so that nothing is left behind however the processes end.
Unpickling is safe here, and here only: the other end of the socket, which has no name either, is
this very program, forked. Linux only.
"""

import ctypes
import mmap
import os
import pickle
import socket
import struct
import sys
import weakref
from typing import Any, Self

# Asked directly: Python's own `memfd_create` is missing from the builds of conda and uv, and its
# `mmap` keeps a descriptor open for each mapping, of which a process may have only 1,024.
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if LIBC:
    LIBC.mmap.restype = ctypes.c_void_p
AVAILABLE = hasattr(LIBC, "memfd_create")
CLOSE_ON_EXEC = 1  # of memfd_create(2)
ALIGNMENT = 64
# How long the pickle is, and how many pairs of numbers after it say where its arrays lie.
HEADER = struct.Struct("qq")
PLACE = struct.Struct("qq")


class Parcel:
    """A packed object, to be sent as often as you like until it is closed."""

    def __init__(self, header: bytes, file: int) -> None:
        self._header = header
        self._file = file

    @classmethod
    def of(cls, value: object) -> Self:
        """Pack `value`."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        end, places = len(pickled) + PLACE.size * len(raw), []
        for data in raw:
            start = end + -end % ALIGNMENT
            end = start + data.nbytes
            places.append((start, end))
        parcel = cls(HEADER.pack(len(pickled), len(raw)), _file_in_memory())
        try:
            with open(parcel._file, "wb", closefd=False) as file:
                file.write(pickled)
                file.writelines(PLACE.pack(*place) for place in places)
                for (start, _), data in zip(places, raw, strict=True):
                    file.seek(start)
                    file.write(data)
        except BaseException:
            parcel.close()
            raise
        return parcel

    def send(self, receiver: socket.socket) -> None:
        """Send it; raises `ConnectionError` where nobody listens."""
        socket.send_fds(receiver, [self._header], [self._file])

    def close(self) -> None:
        """Let go of the file; what was received of it stays."""
        os.close(self._file)


def send(receiver: socket.socket, value: object) -> None:
    """Send `value`."""
    parcel = Parcel.of(value)
    try:
        parcel.send(receiver)
    finally:
        parcel.close()


def receive(sender: socket.socket) -> Any:
    """Wait for an object and return it; raises `EOFError` when the other end is gone."""
    header, descriptors, *_ = socket.recv_fds(sender, HEADER.size, 1)
    if not header:
        raise EOFError
    length, count = HEADER.unpack(header)
    try:
        memory = _mapped(descriptors[0])
    finally:
        os.close(descriptors[0])
    places = PLACE.iter_unpack(memory[length : length + PLACE.size * count])
    buffers = [memory[start:end] for start, end in places]
    return pickle.loads(memory[:length], buffers=buffers)


def _file_in_memory() -> int:
    assert LIBC
    descriptor: int = LIBC.memfd_create(b"fedattn", CLOSE_ON_EXEC)
    if descriptor < 0:
        raise _error()
    return descriptor


def _mapped(descriptor: int) -> memoryview:
    """Return the content of a file, which stays as long as any view of it."""
    assert LIBC
    size = os.fstat(descriptor).st_size
    length, start = ctypes.c_size_t(size), ctypes.c_long(0)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    address = LIBC.mmap(None, length, mmap.PROT_READ, flags, descriptor, start)
    if address == ctypes.c_void_p(-1).value:
        raise _error()
    content = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(content, LIBC.munmap, ctypes.c_void_p(address), length).atexit = False
    return memoryview(content).cast("B").toreadonly()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
