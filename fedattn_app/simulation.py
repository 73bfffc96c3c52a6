"""Simulate a federation on this machine, from scripts, notebooks and tests."""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import current_process
from typing import Any

import torch
from flwr.app import Context, Message, MessageType
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from tqdm import tqdm

from fedattn_app import client_app, server_app
from fedattn_app.config import Config, num_selected
from fedattn_app.console import SafeStream, print_line, printing
from fedattn_app.data.loading import check_split
from fedattn_app.engine import shared_memory
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.errors import UserError
from fedattn_app.files import user_path
from fedattn_app.flower_compat import task_identity
from fedattn_app.privacy.protections import protection_of
from fedattn_app.results.checkpoint import Checkpoint
from fedattn_app.results.resume import settings_of
from fedattn_app.results.run_result import RunResult
from fedattn_app.server.partition_grid import PartitionGrid

ENGINES = ("local", "flower")
DEFAULT_NUM_CLIENTS = 10

# The threads of torch do not survive a fork, and a forked process would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

_RUNNING_LOCK = threading.Lock()
_RUNNING: list[int] = []  # the process and the thread that are running a simulation


def simulate(
    config: Config | Mapping[str, Any],
    num_supernodes: int | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    quiet: bool = False,
    clients: ClientApp = client_app.app,
) -> RunResult:
    """Run one federation of simulated clients and return its results.

    Raises `UserError` for a mistake in the arguments, and while this process is running another
    simulation. Raises `RunFailedError` if the run cannot continue.

    Args:
        config: run-config keys and their values, or a `Config`. A key that is missing has its
            default or, with ``resume-from``, the value of that run.
        num_supernodes: the number of clients; by default 10, or that of the run that is resumed.
        engine: ``local``, the engine of this project, or ``flower``, Flower's own engine on Ray.
        workers: the number of processes of the local engine, by default one per core. The results
            do not depend on it. With 1, all clients train in this process; so they do on systems
            other than Linux, and in a process that may not start others.
        quiet: print warnings only.
        clients: the app that answers for all clients: the project's, or one that wraps it.
    """
    config = _completed(config)
    if num_supernodes is None:
        num_supernodes = _num_earlier_clients(config) or DEFAULT_NUM_CLIENTS
    if type(num_supernodes) is not int or num_supernodes < 1:
        raise UserError(f"num-supernodes = {num_supernodes!r}: must be a whole number >= 1")
    if engine not in ENGINES:
        raise UserError(f"engine = {engine!r}: must be one of {', '.join(ENGINES)}")
    if workers is not None and (type(workers) is not int or workers < 1 or engine != "local"):
        raise UserError(
            f'workers = {workers!r}: must be a whole number >= 1, and needs engine = "local"'
        )
    if config.federation.min_clients > num_supernodes:
        raise UserError(
            f"min-clients = {config.federation.min_clients}: "
            f"the simulation has only {num_supernodes} clients"
        )
    level = logging.WARNING if quiet else logging.INFO
    with _only_run_of_process():
        check_split(config.data, config.federation.seed, num_supernodes)
        if engine == "flower":
            with printing(level=level):
                return _run_flower(config, num_supernodes, clients)
        with (
            _progress_bar(config, num_supernodes, quiet) as bar,
            printing(partial(_print_above, bar), level),
            task_identity(),
        ):
            return _run_local(config, num_supernodes, workers or _cores(), bar, clients)


@contextmanager
def _only_run_of_process() -> Iterator[None]:
    """Raise `UserError` if this process is running a simulation.

    Runs share the process's cache, its number of torch threads and its identity for Flower. A
    process that is forked during a run inherits it only if the run itself forked it.
    """
    me = threading.get_ident()
    with _RUNNING_LOCK:
        if _RUNNING and (_RUNNING[0] == os.getpid() or _RUNNING[1] == me):
            raise UserError(
                "simulate: another simulation is running in this process; start the next one when "
                "it has ended, or in a process of its own"
            )
        _RUNNING[:] = os.getpid(), me
    try:
        yield
    finally:
        _RUNNING.clear()


def _completed(config: Config | Mapping[str, Any]) -> Config:
    """Return the complete settings.

    Missing ones come from the run that is resumed, if there is one, or else from the defaults.
    Raises `UserError` for a mistake in `config`, and for a run that cannot be resumed.
    """
    if isinstance(config, Mapping):
        resumed = config.get("resume-from")
        earlier = {}
        if isinstance(resumed, str) and resumed:  # `Config` refuses a value of another type
            earlier = settings_of(user_path("resume-from", resumed))
        config = Config.from_run_config({**earlier, **config})
    if not isinstance(config, Config):
        raise TypeError(f"config must be a Config or a mapping, not {type(config).__name__}")
    if config.output.resume_from and (kept := protection_of(config).kept_by_clients):
        raise UserError(
            f"resume-from: a simulation with {kept} cannot be resumed, because its clients kept "
            "them in memory"
        )
    return config


def _num_earlier_clients(config: Config) -> int:
    resumed = config.output.resume_from
    if not resumed:
        return 0
    return Checkpoint.read(user_path("resume-from", resumed)).num_partitions


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run_local(
    config: Config, num_supernodes: int, workers: int, bar: "tqdm[Any]", clients: ClientApp
) -> RunResult:
    def advance(reply: Message) -> None:
        if reply.metadata.message_type != MessageType.QUERY:
            bar.update()

    if not shared_memory.AVAILABLE or current_process().daemon:  # a daemon may not start processes
        workers = 1
    workers = min(workers, num_supernodes)
    grid = LocalGrid(clients, num_supernodes, _run_config(config), advance, workers)
    with closing(grid):
        return server_app.run(PartitionGrid(grid), config)


def _run_flower(config: Config, num_supernodes: int, clients: ClientApp) -> RunResult:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of it
    from flwr.simulation import run_simulation

    results: list[RunResult] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(server_app.run(PartitionGrid(grid), config))

    run_simulation(
        server_app=app,
        client_app=ConfiguredClientApp(clients, _run_config(config)),
        num_supernodes=num_supernodes,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"log_to_driver": False},
        },
    )
    return results[0]


class ConfiguredClientApp(ClientApp):
    """A ClientApp with its own run-config, which Flower's `run_simulation` does not pass on."""

    def __init__(self, inner: ClientApp, run_config: UserConfig) -> None:
        super().__init__()
        self.inner = inner
        self.run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the message under the run-config given at construction."""
        return self.inner(message, replace(context, run_config=self.run_config))


def _run_config(config: Config) -> UserConfig:
    return dict(config.to_run_config())


def _progress_bar(config: Config, num_supernodes: int, quiet: bool) -> "tqdm[Any]":
    federation, resumed = config.federation, config.output.resume_from
    done = len(RunResult(user_path("resume-from", resumed)).history) - 1 if resumed else 0
    per_round = sum(
        num_selected(num_supernodes, fraction)
        for fraction in (federation.fraction_train, federation.fraction_evaluate)
        if fraction
    )
    stream = SafeStream(sys.stderr)
    return tqdm(
        total=(federation.num_rounds - done) * per_round,
        unit=" messages",
        leave=False,
        file=stream,
        disable=quiet or not stream.isatty(),
    )


def _print_above(bar: "tqdm[Any]", line: str, stream: SafeStream) -> None:
    bar.clear()
    print_line(line, stream)
    bar.refresh()
