"""What the benchmarks of steps have in common: text-like tokens, and the memory of a process."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import paths  # noqa: F401
import torch

from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch


def text_like(count: int, length: int, vocabulary: int, labels: int, seed: int = 1) -> Examples:
    """Return `count` texts of `length` tokens whose frequencies fall as 1 / rank, as words' do.

    Token 0 is padding and does not occur.
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


def start_peak() -> float:
    """Return the megabytes that are resident in this process, and measure its peak from here on.

    Linux only.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak() -> float:
    """Return the most megabytes that were resident since `start_peak`."""
    return _resident("VmHWM")


def _resident(key: str) -> float:
    return _fields(Path("/proc/self/status"))[key] * 1024 / 1e6


def together(process: int) -> float:
    """Return the megabytes of a process and all that it started, shared memory counted once.

    Of the files that they map, such as libraries, it counts those of the process with the most.
    Linux only.
    """
    shares, files = [0], [0]
    for member in _family(process):
        with suppress(FileNotFoundError, ProcessLookupError, KeyError):  # it has ended
            rollup = _fields(Path(f"/proc/{member}/smaps_rollup"))
            shares.append(rollup["Pss_Anon"] + rollup["Pss_Shmem"])
            files.append(_fields(Path(f"/proc/{member}/status"))["RssFile"])
    return (sum(shares) + max(files)) * 1024 / 1e6


def _family(process: int) -> Iterator[int]:
    yield process
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in list(Path(f"/proc/{process}/task").iterdir()):
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


def _fields(path: Path) -> dict[str, int]:
    """Return what a file of /proc gives in kB."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[2:] == ["kB"]}
