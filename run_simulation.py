"""One run from a script: ``python run_simulation.py --help``."""

import argparse
import sys
from typing import NoReturn

from fedattn_app.config import parse_run_config
from fedattn_app.errors import RunFailedError, UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main() -> int:
    """Run one federation.

    Returns the exit status: 0 on success, 1 for a failed run, 2 for a user's mistake, 130 for one
    who interrupts.
    """
    parser = _Parser(
        description="Simulate a federation on this machine; the last line is the results' folder."
    )
    parser.add_argument(
        "--engine",
        choices=("local", "flower"),
        default="local",
        help="local: ours; flower: Flower's own, on Ray",
    )
    parser.add_argument(
        "--num-supernodes",
        type=int,
        metavar="N",
        help="clients; by default 10, or as many as in the run that is carried on",
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
        help="processes of the local engine; by default one for each core",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="the same as the key output-dir")
    parser.add_argument("--quiet", action="store_true", help="print the folder only")
    try:
        arguments = parser.parse_args()
        run_config = parse_run_config(arguments.run_config)
        if arguments.output_dir is not None:
            run_config["output-dir"] = arguments.output_dir
        return _run(run_config, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(run_config: dict[str, bool | int | float | str], arguments: argparse.Namespace) -> int:
    from fedattn_app.simulation import simulate

    try:
        result = simulate(
            run_config,
            arguments.num_supernodes,
            engine=arguments.engine,
            workers=arguments.workers,
            quiet=arguments.quiet,
        )
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.quiet:
        print(result.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
