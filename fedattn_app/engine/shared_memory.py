"""Send objects between processes of this machine through shared memory.

A parcel is an anonymous file in memory. It holds a pickle (protocol 5), followed by the data of the
arrays in the object. Only the file's descriptor passes through a socket, and the receiver's arrays
are read-only views of the file. The file has no name, so nothing is left behind when a process is
killed. Unpickling is safe here because the other end of the socket is a fork of this process.

Linux only: `AVAILABLE` says whether this machine can do it.
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

# libc is called directly because some Python builds lack `os.memfd_create`, and because `mmap.mmap`
# keeps one descriptor open per mapping, of which a process may only have about a thousand.
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if LIBC:
    LIBC.mmap.restype = ctypes.c_void_p
AVAILABLE = hasattr(LIBC, "memfd_create")
MFD_CLOEXEC = 1  # from memfd_create(2)
ALIGNMENT = 64  # bytes
HEADER = struct.Struct("qq")  # length of the pickle in bytes, number of arrays
ARRAY_RANGE = struct.Struct("qq")  # first byte of an array's data, and the byte after its last


class Parcel:
    """A packed object, which can be sent any number of times until it is closed.

    Make one with `Parcel.pack`.
    """

    def __init__(self, header: bytes, descriptor: int) -> None:
        self._header = header
        self._descriptor = descriptor

    @classmethod
    def pack(cls, value: object) -> Self:
        """Copy `value` into a new parcel.

        Raises what `pickle` raises for an object that cannot be pickled, and `OSError` when there
        is not enough memory.
        """
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        end, ranges = len(pickled) + ARRAY_RANGE.size * len(arrays), []
        for data in arrays:
            start = end + -end % ALIGNMENT
            end = start + data.nbytes
            ranges.append((start, end))
        parcel = cls(HEADER.pack(len(pickled), len(arrays)), _memory_file())
        try:
            with open(parcel._descriptor, "wb", closefd=False) as file:
                file.write(pickled)
                file.writelines(ARRAY_RANGE.pack(*limits) for limits in ranges)
                for (start, _), data in zip(ranges, arrays, strict=True):
                    file.seek(start)
                    file.write(data)
        except BaseException:
            parcel.close()
            raise
        return parcel

    def send(self, receiver: socket.socket) -> None:
        """Send the object; raises `ConnectionError` when the other end is closed."""
        socket.send_fds(receiver, [self._header], [self._descriptor])

    def close(self) -> None:
        """Close the file. What others have received remains valid."""
        os.close(self._descriptor)


def send(receiver: socket.socket, value: object) -> None:
    """Send `value` once; raises as `Parcel.pack` and `Parcel.send` do."""
    parcel = Parcel.pack(value)
    try:
        parcel.send(receiver)
    finally:
        parcel.close()


def receive(sender: socket.socket) -> Any:
    """Wait for an object and return it; raises `EOFError` when the other end is closed."""
    header, descriptors, *_ = socket.recv_fds(sender, HEADER.size, 1)
    if not header:
        raise EOFError
    length, count = HEADER.unpack(header)
    try:
        memory = _map(descriptors[0])
    finally:
        os.close(descriptors[0])
    ranges = ARRAY_RANGE.iter_unpack(memory[length : length + ARRAY_RANGE.size * count])
    buffers = [memory[start:end] for start, end in ranges]
    return pickle.loads(memory[:length], buffers=buffers)


def _memory_file() -> int:
    """Create an anonymous file in memory and return its descriptor."""
    assert LIBC
    descriptor: int = LIBC.memfd_create(b"fedattn", MFD_CLOEXEC)
    if descriptor < 0:
        raise _libc_error()
    return descriptor


def _map(descriptor: int) -> memoryview:
    """Return a file's content, which is unmapped when the last view of it is gone."""
    assert LIBC
    size = os.fstat(descriptor).st_size
    length, start = ctypes.c_size_t(size), ctypes.c_long(0)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    address = LIBC.mmap(None, length, mmap.PROT_READ, flags, descriptor, start)
    if address == ctypes.c_void_p(-1).value:
        raise _libc_error()
    content = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(content, LIBC.munmap, ctypes.c_void_p(address), length).atexit = False
    return memoryview(content).cast("B").toreadonly()


def _libc_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
