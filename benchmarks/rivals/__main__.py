"""Run one rival and print what `Task.report` says: `python -m rivals NAME SHAPE FOLDER ROUNDS`."""

import os
import sys
from importlib import import_module

from rivals.task import Task


def main() -> None:
    """Race; of several processes that `torchrun` started, the first one speaks."""
    name, shape, folder, rounds = sys.argv[1:]
    task = Task(shape, folder, int(rounds))
    marks, state = import_module(f"rivals.{name}").race(task)
    if os.environ.get("RANK", "0") == "0":
        print(task.report(marks, state))


if __name__ == "__main__":
    main()
