"""Read the settings that a user gives: pairs on the command line, or a TOML file."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedattn_app.config.schema import ConfigValue
from fedattn_app.config.settings import with_current_names
from fedattn_app.errors import UserError

BACKSLASH_HINT = "in double quotes, write a backslash twice or as /, or use single quotes"
_BACKSLASH_FAULT = re.compile(r"Unescaped|hex value")  # in the text of a TOML error
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_PAIR = re.compile(r"""\s*([^\s=]+)\s*=\s*('[^']*'|"[^"]*"|\S+)\s*""")


def parse_run_config(items: Iterable[str]) -> dict[str, ConfigValue]:
    """Return the settings, by key, that the arguments of ``--run-config`` give.

    If a key is given twice, the last value counts. Keys and values are not checked here.

    Args:
        items: Each is a text ``'key=value key=value'`` or the path of a ``.toml`` file. From the
            ``config.toml`` of a run, ``output-dir`` and ``resume-from`` are left out, so that the
            run can be repeated.

    Raises `UserError` for a file that cannot be read, and for an item that is neither.
    """
    merged: dict[str, Any] = {}
    for item in items:
        merged.update(_read_toml(Path(item)) if item.endswith(".toml") else parse_pairs(item))
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number with thousands of digits
        hint = f"; {BACKSLASH_HINT}" if _BACKSLASH_FAULT.search(str(error)) else ""
        raise UserError(f"{path}: not a TOML file ({error}){hint}") from None
    if table.pop("versions", None):  # only a run's own config.toml has this table
        table.pop("output-dir", None)
        table.pop("resume-from", None)
        return with_current_names(table)
    return table


def parse_pairs(text: str) -> dict[str, Any]:
    """Return the values, by key, in a text ``'key=value key=value'``; raises `UserError`."""
    if _PAIR.sub("", text):
        raise UserError(f"{text!r}: must be key=value pairs or the path of a .toml file")
    values: dict[str, Any] = {}
    for key, value in _PAIR.findall(text):
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:  # no TOML, or a number with thousands of digits
            hint = BACKSLASH_HINT if _is_path_like(value) else "put text in quotes"
            raise UserError(f"{key} = {value}: not a TOML value; {hint}") from None
        if _is_path_like(value) and _CONTROL_CHARACTER.search(values[key]):
            raise UserError(f"{key} = {value}: holds a control character; {BACKSLASH_HINT}")
    return values


def _is_path_like(value: str) -> bool:
    """Whether the TOML text has double quotes with a backslash in them, as in a path of Windows."""
    return value.startswith('"') and "\\" in value
