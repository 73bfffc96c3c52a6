"""What several commands take, and how they print."""

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from fedattn_app.bundles.comparison import printable
from fedattn_app.console import print_line

ApprovedFolder = Annotated[
    str | None,
    typer.Option(
        "--approved",
        metavar="FOLDER",
        show_default=False,
        help="Folder of the approved bundles (default: the environment variable "
        "FEDATTN_APPROVED, else ~/.fedattn/approved).",
    ),
]


def print_lines(lines: Iterable[str]) -> None:
    """Print `lines` to standard output, with an escape for all that is not seen as itself."""
    for line in lines:
        print_line(printable(line), sys.stdout)
