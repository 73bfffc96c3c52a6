"""How a run-config key is declared and checked.

A section is a frozen dataclass whose fields are keys, with dashes for underscores. A field
declares its default, what it means and what it may be; a value outside that raises `UserError`
with one line that names key, value and what is allowed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeAlias, cast

from fedattn_app.errors import UserError

ConfigValue: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Constraint:
    """What a value may be: one of `choices`, or a number within the bounds."""

    help: str
    choices: Collection[str] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf

    def allowed(self, kind: type) -> str:
        """Say what may be given, for a value of this type."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = []
        if self.above > -math.inf:
            bounds.append(f"> {self.above}")
        if self.minimum > -math.inf:
            bounds.append(f">= {self.minimum}")
        if self.maximum < math.inf:
            bounds.append(f"<= {self.maximum}")
        name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        return " ".join([name, " and ".join(bounds)]).strip()

    def admits(self, value: ConfigValue) -> bool:
        """Whether `value`, which has the right type, may be given."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return True
        within = self.above < value and self.minimum <= value <= self.maximum
        return within and math.isfinite(value)


def setting(default: Any, help: str, **rule: Any) -> Any:
    """Declare one run-config key; the keywords are the fields of `Constraint`."""
    return field(default=default, metadata={"rule": Constraint(help, **rule)})


def names_in(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated text."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def key_of(entry: Field[Any]) -> str:
    """Return the run-config key that a field stands for."""
    return entry.name.replace("_", "-")


@dataclass(frozen=True)
class Section:
    """Checks every field of a frozen dataclass against its rule when it is made."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            rule: Constraint = entry.metadata["rule"]
            kind: type = type(entry.default)
            value = getattr(self, entry.name)
            if kind is float and type(value) is int and abs(value) < 2**53:
                value = float(value)
                object.__setattr__(self, entry.name, value)
            if type(value) is not kind or not rule.admits(cast(ConfigValue, value)):
                shown = value if isinstance(value, (int, float)) else repr(value)
                raise UserError(f"{key_of(entry)} = {shown}: must be {rule.allowed(kind)}")

    def refuse_unowned(self, chooser: str, owners: Mapping[str, Sequence[str]]) -> None:
        """Raise `UserError` for a setting of other values of the field `chooser`.

        `owners` has those values by field; a setting may always be at its default.
        """
        chosen = getattr(self, chooser)
        for entry in fields(self):
            value, own = getattr(self, entry.name), owners.get(entry.name)
            if own and chosen not in own and value != entry.default:
                needed = " or ".join(f'"{owner}"' for owner in own)
                raise UserError(
                    f'{key_of(entry)} = {value}: does nothing with {chooser} = "{chosen}"; it '
                    f"needs {chooser} = {needed}"
                )
