"""Readers of data files, one per suffix.

Every cell is read as it is written, with the standard library and pyarrow. A reader that guesses
types would turn the text "007" into 7 and the label "true" into True.
"""

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedattn_app.errors import UserError

# The values of each column, by the column's name.
Columns = Mapping[str, Sequence[Any]]


def read_columns(file: Path) -> Columns:
    """Return the columns of a file by name, each with one cell per row.

    Raises `UserError` if the file cannot be read. Its suffix must be in `READERS`.
    """
    suffix = file.suffix.lower()
    try:
        return READERS[suffix](file)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    except (ValueError, OSError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as {suffix} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Return the first line of the error's text, or its type if it has no text."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _read_csv(file: Path) -> Columns:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            raise ValueError("a column name occurs twice in the header")
        columns: dict[str, list[str | None]] = {name: [] for name in names}
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more than {len(names)} cells")
            for name in names:
                columns[name].append(row[name])
    return columns


def _read_json(file: Path) -> Columns:
    """Return the columns of JSON Lines, or of one JSON array of objects.

    A value that a row lacks is None.
    """
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse_line(number, line) for number, line in lines if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parse_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}") from None


def _read_parquet(file: Path) -> Columns:
    from pyarrow import parquet

    columns: Columns = parquet.read_table(file).to_pydict()
    return columns


READERS: Mapping[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
