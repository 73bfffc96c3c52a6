"""Writes the time at which the first batch has been trained on, in any process of a run.

Python imports a module of this name at its start if the module's folder is on the search path, so
that `benchmarks/startup.py` measures the app without changing it.
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
    """An import hook that watches the module of the optimizer."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as Python does, and watch its optimizer once it is imported."""
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
    """Make the optimizer's first step write the time to the file that FIRST_BATCH names."""
    step = module.FlatOptimizer.step

    def first_step(self: object) -> None:
        step(self)
        now = time.time()
        module.FlatOptimizer.step = step
        with suppress(FileExistsError), open(os.environ["FIRST_BATCH"], "x") as file:
            file.write(repr(now))

    module.FlatOptimizer.step = first_step


sys.meta_path.insert(0, Hook())
