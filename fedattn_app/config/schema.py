"""How a run-config key is declared and checked.

A section is a frozen dataclass. Each of its fields is one run-config key, with dashes in place of
underscores, and declares its default, its meaning and its allowed values. A value that is not
allowed raises `UserError` with one line that names the key, the value and what is allowed.
"""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field, fields
from pkgutil import resolve_name
from typing import Any, ClassVar, TypeAlias, cast

from fedattn_app.errors import UserError

ConfigValue: TypeAlias = bool | int | float | str
# The allowed values of a text. A registry, which is a mapping by name, or a function is read
# whenever a value is checked, so that a name added later is allowed too.
Choices: TypeAlias = Collection[str] | Callable[[], Collection[str]]

TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
EXACT_FLOAT_LIMIT = 2**53  # whole numbers below it are floats without rounding
WHOLE_NUMBER_LIMIT = 2**63  # TOML and Flower have whole numbers of 64 bits
MAX_TEXT = 100_000  # characters of a text, which every node reads again for every message
MAX_SHOWN_TEXT = 1000  # characters of a text that an error repeats


@dataclass(frozen=True)
class Registered:
    """A choice of a key that is implemented in another package.

    `path` is a class or function as "module:name". `keys` are the fields of the key's section that
    have an effect with this choice, and not with every other.
    """

    path: str
    keys: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import and return the class or function; a node imports only what its run uses."""
        return resolve_name(self.path)


@dataclass(frozen=True)
class Constraint:
    """The meaning of a key and its allowed values: a list of names, or numbers within bounds."""

    help: str
    choices: Choices = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf

    @property
    def names(self) -> tuple[str, ...]:
        """The allowed names, registered ones included; empty for a key without such a list."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    def allowed(self, value_type: type) -> str:
        """Return the allowed values of a key of this type, in words."""
        if self.names:
            return "one of " + ", ".join(self.names)
        bounds = []
        if self.above > -math.inf:
            bounds.append(f"> {self.above}")
        if self.minimum > -math.inf:
            bounds.append(f">= {self.minimum}")
        if self.maximum < math.inf:
            bounds.append(f"<= {self.maximum}")
        return " ".join([TYPE_NAMES[value_type], " and ".join(bounds)]).strip()

    def allows(self, value: ConfigValue) -> bool:
        """Return whether `value`, which has the right type, is allowed."""
        if self.names:
            return value in self.names
        if isinstance(value, str):
            return True
        return (
            self.above < value and self.minimum <= value <= self.maximum and abs(value) < math.inf
        )


def setting(
    default: ConfigValue,
    help: str,
    *,
    choices: Choices = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
) -> Any:
    """Declare one run-config key as a field of a section.

    Args:
        default: the value of a run that does not give the key. Its type is the key's type.
        help: the meaning of the key, with its unit and the meaning of 0, as the docs show it.
        choices: the allowed names of a text; any text is allowed without them.
        minimum: the smallest allowed number.
        maximum: the largest allowed number.
        above: a number that every allowed number exceeds.
    """
    constraint = Constraint(help, choices, minimum, maximum, above)
    return field(default=default, metadata={"constraint": constraint})


def constraint_of(entry: Field[Any]) -> Constraint:
    """Return what `setting` declared for a field."""
    constraint: Constraint = entry.metadata["constraint"]
    return constraint


def key_of(entry: Field[Any]) -> str:
    """Return the run-config key of a field."""
    return key_named(entry.name)


def key_named(field_name: str) -> str:
    """Return the run-config key of the field `field_name`: its name with dashes."""
    return field_name.replace("_", "-")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated text, without the spaces around them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def as_toml(value: object) -> str:
    """Return a value as a user writes it in a TOML file: text in double quotes, `true`, `1e-05`.

    It is one line, in which three dots stand for the end of a very long text.
    """
    if isinstance(value, str):
        shown = value if len(value) <= MAX_SHOWN_TEXT else value[:MAX_SHOWN_TEXT] + "..."
        quoted = json.dumps(shown, ensure_ascii=False)
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_TEXT:
        return "a whole number of more than 300 digits"
    return repr(value)


@dataclass(frozen=True)
class Section:
    """A group of run-config keys. Every value is checked when the section is made.

    A whole number is accepted for a key that takes any number, and stored as a float. Raises
    `UserError` for a value of another type or outside the allowed ones.
    """

    title: ClassVar[str]  # the heading in the docs

    def __post_init__(self) -> None:
        for entry in fields(self):
            constraint, value_type = constraint_of(entry), type(entry.default)
            allowed = constraint.allowed(value_type)
            given = value = getattr(self, entry.name)
            if isinstance(given, str) and not _is_unicode(given):
                raise UserError(f"{key_of(entry)} = {given!r}: must be text that UTF-8 can encode")
            if isinstance(given, str) and len(given) > MAX_TEXT:
                raise UserError(
                    f"{key_of(entry)} = {as_toml(given)}: must be {allowed} of at most {MAX_TEXT} "
                    f"characters, not {len(given)}"
                )
            if type(given) is int and abs(given) >= WHOLE_NUMBER_LIMIT:
                raise UserError(
                    f"{key_of(entry)} = {as_toml(given)}: must be {allowed} and fit into 64 bits"
                )
            if value_type is float and type(given) is int and abs(given) < EXACT_FLOAT_LIMIT:
                value = float(given)
                object.__setattr__(self, entry.name, value)
            if type(value) is not value_type or not constraint.allows(cast(ConfigValue, value)):
                raise UserError(f"{key_of(entry)} = {as_toml(given)}: must be {allowed}")


def _is_unicode(text: str) -> bool:
    """Return whether `text` has no byte that was not UTF-8, and no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
