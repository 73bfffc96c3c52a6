"""The format of the files in `benchmarks/results`: JSON Lines.

The first line of a file is ``{"about": {...}}``: date, machine, versions, seeds and settings. Every
other line is one row, which is a run or a measurement.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedattn_app.files import write_atomically

Row = dict[str, Any]

PACKAGES = ("flwr", "torch", "opacus", "transformers", "peft")


@dataclass(frozen=True)
class Results:
    """The content of one results file."""

    about: Row
    rows: list[Row]


def describe(settings: Mapping[str, Any]) -> Row:
    """Return today's date, this machine, the versions of the packages, and `settings`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "date": f"{date.today()}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {gpu}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **settings,
    }


def read(path: Path) -> Results:
    """Read a results file.

    A last line without a line break is ignored: the process that wrote it was stopped.
    """
    lines = path.read_text().splitlines(keepends=True)
    header, *rows = (json.loads(line) for line in lines if line.endswith("\n"))
    return Results(header["about"], rows)


def write(path: Path, about: Mapping[str, Any], rows: Iterable[Row] = ()) -> None:
    """Write a results file, replacing the one at `path`; its folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line({"about": about}), *map(_line, rows)]
    write_atomically(path, "".join(lines).encode())


def append(path: Path, row: Row) -> None:
    """Add one row to the end of a results file."""
    with path.open("a") as file:
        file.write(_line(row))


def command_line(description: str | None, **paths: str) -> list[Path]:
    """Return the paths on the command line, in the order of `paths`, which maps names to help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, text in paths.items():
        parser.add_argument(name, type=Path, help=text, metavar=name.upper())
    return list(vars(parser.parse_args()).values())


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"
