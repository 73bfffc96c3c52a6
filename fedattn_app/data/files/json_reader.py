"""Read JSON Lines, or one JSON array of objects."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from fedattn_app.data.files.cells import Cells, FaultyRows, Request, list_names
from fedattn_app.data.files.layout import COMPRESSED, suffix_of
from fedattn_app.data.files.opening import open_text
from fedattn_app.errors import UserError

# An object, or the reason why there is none.
Row = dict[str, Any] | str

SHAPE = "a JSON file must be one object on each line, or one array of objects (.json)"
ARRAY_SUFFIX = ".json"
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[][{},]', re.DOTALL)
_TYPES = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}


def read_json(file: Path, request: Request) -> Cells:
    """Return the wanted values of JSON Lines, or of one JSON array of objects.

    Only a file ``.json`` may be an array; in other files, a line that begins with ``[`` is a row
    that is not an object. A value that is null or not a number (NaN) is None.

    Raises `UserError` if a row is not an object or lacks a wanted key, unless the request is
    secret. Raises `UnicodeDecodeError`, `OSError`, `EOFError`, `ValueError` or `RecursionError` if
    the text cannot be read.
    """
    names = list(request.columns.values())
    with open_text(file) as stream:
        may_be_array = suffix_of(file.name).removesuffix(COMPRESSED) == ARRAY_SUFFIX
        if may_be_array and _first_character(stream) == "[":
            return _read_rows(file, request, _array(stream.read(), names), has_lines=False)
        return _read_rows(file, request, _lines(stream, names), has_lines=True)


def _first_character(stream: TextIO) -> str:
    while (start := stream.read(1)).isspace():
        pass
    stream.seek(0)
    return start


def _lines(stream: TextIO, names: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the line and the row of every line that is not blank."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield number, _as_row(_decoder.decode(line), names)
            except (ValueError, RecursionError) as error:
                yield number, _fault(error)


def _array(text: str, names: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the number and the row of every element of a JSON array.

    Raises `ValueError` or `RecursionError` if the text is not one array, where the end of an
    element that cannot be read is at the next comma or bracket outside of it.
    """
    at = _skip_space(text, 0) + 1
    for number in count(1):
        start = _skip_space(text, at)
        if number == 1 and text[start : start + 1] == "]":
            at = start
        else:
            row: Row
            try:
                value, at = _decoder.raw_decode(text, start)
                row = _as_row(value, names)
            except (ValueError, RecursionError) as error:
                at = _end_of_element(text, start)
                if at == start:
                    raise
                row = _fault(error)
            yield number, row
            at = _skip_space(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if text[at : at + 1] != "]" or _skip_space(text, at + 1) < len(text):
        raise json.JSONDecodeError("one array of objects is expected", text, at)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _end_of_element(text: str, start: int) -> int:
    """Return the position of the comma or bracket behind an element; `start` if there is none."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if depth == 0 and token[0] in ",]}":
            return token.start() if token[0] != "}" else start
        depth += (token[0] in "[{") - (token[0] in "]}")
    return start


class _Repetitive(dict[str, Any]):
    """An object with a key that occurs twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.occurrences = Counter(key for key, _ in pairs)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repetitive(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def _fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}); {SHAPE}"
    return f"cannot be read as JSON ({error})"


def _as_row(value: Any, names: Sequence[str]) -> Row:
    if isinstance(value, _Repetitive):
        twice = [name for name in names if value.occurrences[name] > 1]
        if twice:
            return f"cannot be read as JSON (an object has the key {twice[0]!r} twice)"
    if isinstance(value, dict):
        return value
    found = "null" if value is None else _TYPES[type(value)]
    expected = ", ".join(f'"{name}": …' for name in dict.fromkeys(names))
    return f"an object such as {{{expected}}} is expected, not {found}"


def _read_rows(
    file: Path, request: Request, rows: Iterable[tuple[int, Row]], has_lines: bool
) -> Cells:
    numbers = array("Q")
    columns: dict[str, list[Any]] = {name: [] for name in request.columns.values()}
    lacking: dict[str, list[int]] = {name: [] for name in columns}  # rows without the key
    names: dict[str, None] = {}
    faulty = FaultyRows(file, request.secret)
    for number, row in rows:
        if isinstance(row, str):
            faulty.add(len(numbers), f"{_place(number, has_lines)}: {row}")
            row = dict.fromkeys(columns)
        elif not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
        for name, column in columns.items():
            value = row.get(name)
            if value is None and name not in row:
                lacking[name].append(len(numbers))
            column.append(value)
        numbers.append(number)
    if not numbers or not (names or request.secret):
        raise UserError(f"{file}: is empty")
    if not request.secret:  # whether a row has the key would reveal something about it
        for key, name in request.columns.items():
            if len(lacking[name]) == len(numbers):
                try:
                    request.check_absent(key, list(names), str(file))
                except UserError as error:
                    shape = f"; {SHAPE}" if len(numbers) == 1 else ""
                    raise UserError(f"{error}{shape}") from None
                del columns[name]
            elif lacking[name] and key not in request.optional:
                others = len(lacking[name]) - 1
                raise UserError(
                    f"{file}: {_place(numbers[lacking[name][0]], has_lines)}: {name!r} ({key}) is "
                    f"missing{f', as in {others} other rows' * bool(others)}; "
                    f"the keys in the file are {list_names(list(names))}"
                )
    return Cells(columns, faulty.numbers, numbers if has_lines else None)


def _place(number: int, has_lines: bool) -> str:
    return f"{'line' if has_lines else 'row'} {number}"
