"""Run one federation from a script: ``python run_simulation.py --help``."""

import argparse
import signal
import sys
from types import FrameType
from typing import NoReturn

from fedattn_app.config import parse_run_config
from fedattn_app.console import exit_status, occupy_closed_descriptors, print_line
from fedattn_app.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other mistake of the user is reported."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main() -> int:
    """Run one federation with the arguments of the command line.

    Returns the exit status: 0 on success, 1 for a failed run, 2 for a user's mistake, and 130 when
    the user interrupts the run. A failure is one line on standard error.
    """
    return exit_status(_simulate)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description="Simulate a federation on this machine. "
        "The last line of the output is the folder with the results."
    )
    parser.add_argument(
        "--engine",
        choices=("local", "flower"),
        default="local",
        help="local: this project's engine (default); flower: Flower's own simulation, on Ray",
    )
    parser.add_argument(
        "--num-supernodes",
        type=int,
        metavar="N",
        help="number of clients (default: 10, or that of the run to resume)",
    )
    parser.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="'k=v k=v' | FILE.toml",
        help="settings that differ from the defaults in pyproject.toml; may be given repeatedly",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes of the local engine (default: one per core)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="folder for the results; the same as the key output-dir"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print only the folder with the results"
    )
    return parser


def _simulate() -> None:
    arguments = _make_parser().parse_args()
    run_config = parse_run_config(arguments.run_config)
    if arguments.output_dir is not None:
        run_config["output-dir"] = arguments.output_dir
    from fedattn_app.simulation import simulate  # takes seconds to import

    result = simulate(
        run_config,
        arguments.num_supernodes,
        engine=arguments.engine,
        workers=arguments.workers,
        quiet=arguments.quiet,
    )
    if arguments.quiet:
        print_line(str(result.path), sys.stdout)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End the run as an exception does, so that its folder says what happened."""
    sys.exit(128 + number)


if __name__ == "__main__":
    occupy_closed_descriptors()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
