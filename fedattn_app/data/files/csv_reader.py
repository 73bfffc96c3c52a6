"""Read CSV and TSV files strictly: no row is lost, and no cell gets another's content.

Python's `csv` module reads any text as some rows. So a row with too few or too many cells is a
fault here, and so is a quoted cell that does not end where a cell may end. That leaves two stray
quotes in two rows, where the second happens to stand before a comma: they make one cell of all
rows between them. Its lines then look like rows of their own (see `swallowed_rows`), which is a
fault too.
"""

import csv
import logging
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fedattn_app.data.files.cells import Cells, FaultyRows, Request, bare_name, count
from fedattn_app.data.files.layout import suffix_of
from fedattn_app.data.files.opening import open_text
from fedattn_app.data.files.swallowed_rows import LINE_END, Layout, comparable, num_rows_inside
from fedattn_app.errors import UserError

log = logging.getLogger("fedattn")

REMEDY = "write a text with a quote in it in quotes, and the quote itself twice"
QUOTE_FAULT = f"a quote opens a cell here, and none closes it at the end of a cell; {REMEDY}"
NUL_FAULT = "holds NUL characters: it is UTF-16, damaged, or not text; save it as UTF-8"
SPACE_FAULT = "a space stands between a comma and a quote; remove it"
LINE_END_FAULT = (
    "ends in a carriage return alone, unlike other lines; write a text with line ends in quotes, "
    "or save the file with one kind of line end"
)
ROW_NAME_FAULT = (
    "each row has one cell more than the header, and the first cells are different numbers: the "
    "header seems to lack the name of the first column; add it"
)
EXCEL_DELIMITER_MARK = "sep="  # the first cell of a first line "sep=,"
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


def read_csv(file: Path, request: Request) -> Cells:
    """Return the wanted columns of a CSV or TSV file with a header, without its blank rows.

    Raises `UserError` if the header lacks a column, and for a malformed row unless the request is
    secret. Raises `UnicodeDecodeError`, `OSError` or `EOFError` if the text cannot be read.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if suffix_of(file.name).startswith(".tsv") else ","
    with open_text(file) as stream:
        lines = _Lines(stream)
        records = _records(lines, delimiter)
        names: Sequence[str] = ()
        for line, _, cells in records:
            if cells is None:
                raise UserError(f"{file}: line {line}, the header: {QUOTE_FAULT}")
            if any(map(str.strip, cells)) and cells[0] != EXCEL_DELIMITER_MARK:
                names = cells
                break
        if not names:
            raise UserError(f"{file}: is empty")
        if any("\0" in name for name in names):
            raise UserError(f"{file}: {NUL_FAULT}")
        return _Rows(file, request, names, delimiter).read(records, lines)


class _Rows:
    """Gathers the wanted cells of the rows below the header."""

    def __init__(self, file: Path, request: Request, names: Sequence[str], delimiter: str) -> None:
        self.file = file
        self.secret = request.secret
        self.declared = request.labels
        self.delimiter = delimiter
        self.names = names
        self.width = len(names)
        # Spreadsheets end the header with columns that have no name.
        self.num_named = max(at for at, name in enumerate(names, 1) if name.strip())
        self.unnamed = [at for at, name in enumerate(names) if at and not name.strip()]
        self.positions = _positions(file, request, names, delimiter)
        self.label_position = self.positions.get(request.columns["label-column"])
        self.columns: dict[str, list[str | None]] = {name: [] for name in self.positions}
        self.lines = array("Q")
        self.faulty = FaultyRows(file, request.secret)
        self.multiline: list[tuple[int, list[str]]] = []  # row numbers, and all cells
        self.left_out = Counter[str]()
        self.first_cells: list[str] = []  # of the rows with one cell more than the header
        self.row_ends: dict[str, int] = {}  # the first line with each last character of a row

    def read(self, records: "Iterator[tuple[int, int, list[str] | None]]", raw: "_Lines") -> Cells:
        unnamed_lines, last_name = array("Q"), self.names[-1]
        targets = [(at, self.columns[name].append) for name, at in self.positions.items()]
        for line, num_lines, cells in records:
            if cells is None or len(cells) != self.width or not cells[0] or cells[-1] == last_name:
                if cells is not None and self._is_left_out(cells):
                    continue
                if cells is not None and len(cells) == self.width + 1 and last_name.strip():
                    self.first_cells.append(cells[0])
                if fault := self._fault(line, cells):
                    self.faulty.add(len(self.lines), fault)
                    cells = None
            self.lines.append(line)
            self.row_ends.setdefault(raw.record[-1][-1], line)
            if cells is None:
                for _, append in targets:
                    append(None)
                continue
            for at, append in targets:
                append(cell := cells[at])
                if cell[:1].isspace() and not self.secret:
                    self._check_space(cell, "".join(raw.record), line)
            if num_lines > 1:
                self.multiline.append((len(self.lines) - 1, cells))
            if self.unnamed and any(cells[at].strip() for at in self.unnamed if at < len(cells)):
                unnamed_lines.append(line)
        self._check_multiline()
        if not self.secret:
            self._check_characters()
            self._check_structure()
        self._log_unused(unnamed_lines)
        return Cells(self.columns, self.faulty.numbers, self.lines)

    def _is_left_out(self, cells: Sequence[str]) -> bool:
        """Whether a row is blank, or the header again, as where files were put together.

        Under `secret` only blank lines are left out: other cells would decide about the number of
        examples.
        """
        if not cells or self.secret:
            return not cells
        if len(cells) < 2 <= self.num_named and not "".join(cells).strip(" \t\x1a"):
            return True  # \x1a ended the files of DOS
        if not any(cells):
            what = "without content"
        elif list(map(bare_name, cells)) == list(map(bare_name, self.names)):
            what = "equal to the header"
        else:
            return False
        self.left_out[what] += 1
        return True

    def _log_unused(self, unnamed_lines: Sequence[int]) -> None:
        for what, number in self.left_out.items():
            log.warning("%s: %s %s left out", self.file, count(number, "row"), what)
        if unnamed_lines:
            log.warning(
                "%s: columns without a name are not used, though %s cells there, first in line %d",
                self.file,
                "1 row has" if len(unnamed_lines) == 1 else f"{len(unnamed_lines)} rows have",
                unnamed_lines[0],
            )

    def _fault(self, line: int, cells: list[str] | None) -> str:
        """Return why a row cannot be used; empty if only unnamed columns make it odd."""
        if cells is None:
            return f"line {line}: {QUOTE_FAULT}"
        extra = any(cells[self.width :])
        if len(cells) < self.num_named or extra:
            columns = self.width if extra else self.num_named
            return f"line {line} has {count(len(cells), 'cell')} for {count(columns, 'column')}"
        return ""

    def _check_multiline(self) -> None:
        """Find cells that have swallowed rows."""
        if self.label_position is None or not self.multiline:
            return
        layout = Layout(self.delimiter, self.num_named, self.width, self.label_position)
        known = {comparable(label) for label in self.declared}
        if not self.secret:  # one row must not decide about another
            name = next(n for n, at in self.positions.items() if at == self.label_position)
            found = {label for label in self.columns[name] if label and not LINE_END.search(label)}
            known |= {comparable(label) for label in found} - {""}
        for row, cells in self.multiline:
            if num_rows := num_rows_inside(cells, layout, known):
                self.faulty.add(
                    row,
                    f"line {self.lines[row]}: a quote opens a cell here that contains {num_rows} "
                    f"lines like rows of their own; {REMEDY}; if it is one text, save the file as "
                    "JSON Lines or Parquet",
                )
                for column in self.columns.values():
                    column[row] = None

    def _check_space(self, cell: str, raw: str, line: int) -> None:
        """Find a quoted cell behind a space, where the quotes are no quotes for the reader."""
        bare = cell.strip()
        is_quoted = len(bare) > 1 and bare[0] == bare[-1] == '"'
        if is_quoted and (raw.startswith(cell) or self.delimiter + cell in raw):
            raise UserError(f"{self.file}: line {line}: {SPACE_FAULT}")

    def _check_characters(self) -> None:
        """Find NUL characters, and labels with quotes that are not quotes for the reader."""
        for name, column in self.columns.items():
            is_label = self.positions[name] == self.label_position
            for cell in set(column) if is_label else column:
                if cell is None:
                    continue
                if "\0" in cell:
                    raise self._error_at(column.index(cell), NUL_FAULT)
                if is_label and cell[:1].isspace() and cell.lstrip()[:1] == '"':
                    raise self._error_at(column.index(cell), SPACE_FAULT)

    def _check_structure(self) -> None:
        """Find rows shifted by one column, and carriage returns that have split a row."""
        if {"\r", "\n"} <= self.row_ends.keys():
            first = self.row_ends["\r"]
            raise UserError(f"{self.file}: line {first} {LINE_END_FAULT}")
        numbers = set(filter(str.isdecimal, self.first_cells))
        if 1 < len(self.lines) == len(numbers) == len(self.first_cells):
            raise UserError(f"{self.file}: {ROW_NAME_FAULT}")

    def _error_at(self, row: int, fault: str) -> UserError:
        return UserError(f"{self.file}: line {self.lines[row]}: {fault}")


def _positions(
    file: Path, request: Request, names: Sequence[str], delimiter: str
) -> dict[str, int]:
    if any(name[:1].isspace() and name.lstrip()[:1] == '"' for name in names):
        raise UserError(f"{file}: the header: {SPACE_FAULT}")
    try:
        return request.find(names, str(file))
    except UserError as error:
        for other, plural in OTHER_DELIMITERS.items():
            if other != delimiter and other in names[0]:
                raise UserError(
                    f"{error}; the cells seem to be separated by {plural}: "
                    f"save the file with {OTHER_DELIMITERS[delimiter]}"
                ) from None
        raise


class _Lines:
    """The lines of a file, of which those of the current record can be read again."""

    def __init__(self, stream: TextIO) -> None:
        self._next = stream.__next__
        self._again: list[str] = []  # from the last to the first
        self.record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._next()
        self.record.append(line)
        return line

    def read_again(self, first: int) -> None:
        """Go back to the line number `first`, from 0, of the record."""
        self._again += reversed(self.record[first:])


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[int, int, list[str] | None]]:
    """Yield the first line, the number of lines, and the cells of each record.

    The cells are None if a quoted cell ends wrongly. Such a record is the one line where this cell
    begins, and the next record begins on the line below: a stray quote takes no other row with it.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    first = 1
    while True:
        lines.record.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            before = _lines_before_fault(lines.record, delimiter)
            lines.read_again(before + 1)
            yield first + before, 1, None
            first += before + 1
        else:
            num_lines = len(lines.record)
            yield first, num_lines, cells
            first += num_lines


def _lines_before_fault(record: Sequence[str], delimiter: str) -> int:
    """Return the number of lines above the one where the quoted cell with a wrong end begins."""
    cell = re.compile(rf'"(?:[^"]|"")*+"(?={delimiter}|[\r\n]|\Z)|(?!")[^{delimiter}\r\n]*+')
    text, at = "".join(record), 0
    while match := cell.match(text, at):
        at = match.end() + 1
    num_lines = 0
    for line in record:
        at -= len(line)
        if at < 0:
            break
        num_lines += 1
    return min(num_lines, len(record) - 1)
