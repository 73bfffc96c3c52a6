"""Objects that pass between processes of this machine with their arrays in shared memory.

A parcel is a pickle (protocol 5) without the arrays' data, which lie in an anonymous file in memory
whose descriptor goes along. The receiver's arrays are read-only views of that file. It has no name,
so that nothing is left behind however the processes end. Linux only.
"""

import mmap
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, Self

AVAILABLE = sys.platform == "linux"
ALIGNMENT = 64


@dataclass(frozen=True)
class Parcel:
    """A packed object: `places` are the (start, end) of its arrays in `file`, if it has any."""

    pickled: bytes
    places: Sequence[tuple[int, int]]
    file: int | None

    @classmethod
    def of(cls, value: object) -> Self:
        """Pack `value`."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        if not buffers:
            return cls(pickled, [], None)
        descriptor = os.memfd_create("fedattn")
        places = []
        with open(descriptor, "wb", buffering=1 << 16, closefd=False) as file:
            for buffer in buffers:
                file.seek(-file.tell() % ALIGNMENT, os.SEEK_CUR)
                start = file.tell()
                places.append((start, start + file.write(buffer.raw())))
        return cls(pickled, places, descriptor)

    def send(self, connection: "Connection[Any, Any]", receiver: int) -> None:
        """Send it to the process `receiver`, as often as you like until it is closed."""
        connection.send((self.pickled, self.places))
        if self.file is not None:
            reduction.send_handle(connection, self.file, receiver)

    def close(self) -> None:
        """Let go of the file; what was received of it stays."""
        if self.file is not None:
            os.close(self.file)


def send(connection: "Connection[Any, Any]", receiver: int, value: object) -> None:
    """Send `value` to the process `receiver` at the other end."""
    parcel = Parcel.of(value)
    try:
        parcel.send(connection, receiver)
    finally:
        parcel.close()


def receive(connection: "Connection[Any, Any]") -> Any:
    """Wait for an object and return it; raises `EOFError` when the other end is gone."""
    pickled, places = connection.recv()
    if not places:
        return pickle.loads(pickled)
    descriptor = reduction.recv_handle(connection)
    try:
        memory = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
    return pickle.loads(pickled, buffers=[memory[start:end] for start, end in places])
