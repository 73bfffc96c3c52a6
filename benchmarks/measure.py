"""What the benchmarks of steps have in common: text-like tokens, and the memory of a process."""

from pathlib import Path

import numpy as np
import torch

from fedattn_app.data import Examples


def text_like(count: int, length: int, vocabulary: int, labels: int, seed: int = 1) -> Examples:
    """Return `count` texts of `length` tokens whose frequencies fall as 1 / rank, as words' do.

    Token 0 is padding and does not occur.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, vocabulary)
    ids = rng.choice(vocabulary - 1, (count, length), p=frequency / frequency.sum()) + 1
    return Examples(
        torch.from_numpy(ids.astype(np.int32)),
        torch.full((count,), length, dtype=torch.int32),
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
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status[key].split()[0]) * 1024 / 1e6


def together(process: int) -> float:
    """Return the megabytes of a process and all that it started, shared memory counted once.

    What other processes use too, such as the code of a library, counts in part. Linux only.
    """
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        started = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0.0
    own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return own * 1024 / 1e6 + sum(together(child) for child in started)
