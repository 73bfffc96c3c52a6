"""Notes when the first batch is trained on, in whichever process that is.

Python imports this by itself where the folder is on its path, so that the app runs as it is.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType


class Hook:
    """Waits for the module of the optimizer and then for its first step."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as Python does, and look at it once it is there."""
        if name != "fedattn_app.training.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_watch(module: ModuleType) -> None:
            execute(module)
            watch(module)

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def watch(module: ModuleType) -> None:
    """Let the first step of the optimizer in `module` note the time in the file FIRST_BATCH."""
    step = module.FlatOptimizer.step

    def first_step(self: object) -> None:
        step(self)
        now = time.time()
        module.FlatOptimizer.step = step  # type: ignore[attr-defined]
        with suppress(FileExistsError), open(os.environ["FIRST_BATCH"], "x") as file:
            file.write(repr(now))

    module.FlatOptimizer.step = first_step  # type: ignore[attr-defined]


sys.meta_path.insert(0, Hook())
