"""Synthetic texts, and the memory of processes, for the benchmarks of steps and of scale."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch


def text_like(count: int, length: int, vocabulary: int, labels: int, seed: int = 1) -> Examples:
    """Return `count` texts of `length` random tokens with random labels.

    Token frequencies fall as 1 / rank, as those of words do. Token 0 is padding and does not occur.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, vocabulary)
    ids = rng.choice(vocabulary - 1, (count, length), p=frequency / frequency.sum()) + 1
    return Examples(
        TextBatch.of(
            torch.from_numpy(ids.astype(np.int32)), torch.full((count,), length, dtype=torch.int32)
        ),
        torch.from_numpy(rng.integers(0, labels, count)),
    )


def start_peak_memory() -> float:
    """Start a new measurement of this process's peak memory (Linux only).

    Returns the resident memory now, in megabytes.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _own_memory("VmRSS")


def peak_memory() -> float:
    """Return the peak resident memory, in megabytes, since `start_peak_memory` (Linux only)."""
    return _own_memory("VmHWM")


def family_memory(process: int) -> float:
    """Return the memory of a process and all its descendants, in megabytes (Linux only).

    Memory that several processes share is counted once. Mapped files, such as libraries, count with
    the largest amount that any one of the processes maps.
    """
    own_and_shared, files = [0], [0]
    for member in _family(process):
        with suppress(FileNotFoundError, ProcessLookupError, KeyError):  # the process has ended
            rollup = _kilobytes(Path(f"/proc/{member}/smaps_rollup"))
            own_and_shared.append(rollup["Pss_Anon"] + rollup["Pss_Shmem"])
            files.append(_kilobytes(Path(f"/proc/{member}/status"))["RssFile"])
    return (sum(own_and_shared) + max(files)) * 1024 / 1e6


def _own_memory(key: str) -> float:
    return _kilobytes(Path("/proc/self/status"))[key] * 1024 / 1e6


def _family(process: int) -> Iterator[int]:
    yield process
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in list(Path(f"/proc/{process}/task").iterdir()):
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


def _kilobytes(path: Path) -> dict[str, int]:
    """Return the entries of a file in /proc that are given in kB."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[2:] == ["kB"]}
