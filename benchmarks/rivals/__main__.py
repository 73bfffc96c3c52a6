"""Run one rival and print the `Task.report`: `python -m rivals NAME SHAPE FOLDER ROUNDS`."""

import os
import sys
from importlib import import_module

from rivals.task import Task


def main() -> None:
    """Run the rival; if `torchrun` started several processes, only the first one prints."""
    name, shape, folder, rounds = sys.argv[1:]
    task = Task(shape, folder, int(rounds))
    times, state = import_module(f"rivals.{name}").race(task)
    if os.environ.get("RANK", "0") == "0":
        print(task.report(times, state))


if __name__ == "__main__":
    main()
