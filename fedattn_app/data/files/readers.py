"""Read a data file of any format.

Every cell is read as it is written, with the standard library and pyarrow. A reader that guesses
types would turn the text "007" into 7 and the label "true" into True.
"""

import csv
import gzip
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from fedattn_app.data.files.cells import Cells, Request
from fedattn_app.data.files.csv_reader import read_csv
from fedattn_app.data.files.json_reader import read_json
from fedattn_app.data.files.layout import COMPRESSED, suffix_of
from fedattn_app.data.files.opening import check_content, undecodable_line
from fedattn_app.data.files.parquet_reader import read_parquet
from fedattn_app.errors import UserError

Reader = Callable[[Path, Request], Cells]

# By the suffixes in `layout.SUFFIXES`.
READERS: Mapping[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".parquet": read_parquet,
}


def read_cells(file: Path, request: Request) -> Cells:
    """Return the wanted columns of a file, whose suffix must be in `READERS`.

    Raises `UserError` if the file cannot be read, lacks a column, or has a row that is malformed,
    the last unless the request is secret.
    """
    suffix = suffix_of(file.name)
    try:
        reader = READERS[suffix.removesuffix(COMPRESSED)]
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would wait for somebody who writes to it
            raise UserError(f"{file}: is not a regular file")
        if not (request.secret and reader is read_json):  # whose first bytes are those of a row
            check_content(file)
        return reader(file, request)
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(
            f"{file}: line {undecodable_line(file)} is not UTF-8 text; save it as UTF-8"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: is a damaged gzip file ({first_line(error)})") from None
    except (
        *(ValueError, OSError, TypeError, AttributeError, RecursionError, csv.Error),
        *(NotImplementedError, OverflowError),
    ) as error:
        raise UserError(f"{file}: cannot be read as {suffix} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Return the first line of the error's text, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
