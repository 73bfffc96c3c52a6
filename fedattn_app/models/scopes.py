"""Which parameters travel, which stay on a node, and which nobody trains.

A scope is the name of one below, or a regular expression over whole dotted parameter names.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedattn_app.config import LORA_SCOPES
from fedattn_app.errors import UserError
from fedattn_app.models.families import family_of

_LORA = {"lora": "[AB]", "lora-a": "A", "lora-b": "B"}
SCOPES = ("all", "attention", "attention+head", "head", "all-but-attention", *LORA_SCOPES)


@dataclass(frozen=True)
class Scope:
    """Parameter names by what becomes of them; each is in exactly one of the three sets.

    `shared` parameters are trained and travel, `personal` ones are trained and stay on their
    node, `frozen` ones are the same everywhere from the start to the end.
    """

    shared: frozenset[str]
    personal: frozenset[str]
    frozen: frozenset[str]

    @property
    def trainable(self) -> frozenset[str]:
        """What local training changes."""
        return self.shared | self.personal


def scope_of(shared: str, local: str, family: str, names: Collection[str]) -> Scope:
    """Sort the parameters `names` of a model of this `family` by the keys `shared` and `local`.

    With adapters, what they adapt is frozen whatever `local` says. Raises `UserError` for a
    regular expression that cannot be read or that matches no name, and for a named scope of a
    family that is not among `FAMILIES`.
    """
    known = frozenset(names)
    selected = _matching(shared, _pattern(shared, family, known), known)
    rest: frozenset[str] = frozenset()
    if local == "personal":
        trained = _pattern("lora", family, known) if shared in LORA_SCOPES else ".*"
        rest = frozenset(filter(re.compile(trained).fullmatch, known)) - selected
    return Scope(selected, rest, known - selected - rest)


def _pattern(shared: str, family: str, names: Iterable[str]) -> str:
    if shared == "all":
        return ".*"
    if shared not in SCOPES:
        return shared
    its = family_of(family, names, shared)
    if shared in LORA_SCOPES:
        return rf".*\.lora_{_LORA[shared]}\..*|{its.head}"
    attention = rf"{its.projections()}\.(weight|bias)"
    return {
        "attention": attention,
        "head": its.head,
        "attention+head": f"{attention}|{its.head}",
        "all-but-attention": rf"(?!(?:{attention})$).*",
    }[shared]


def _matching(shared: str, pattern: str, names: Iterable[str]) -> frozenset[str]:
    try:
        selected = frozenset(filter(re.compile(pattern).fullmatch, names))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"shared = {shared!r}: neither one of {', '.join(SCOPES)} nor a regex ({error})"
        ) from None
    if not selected:
        raise UserError(
            f"shared = {shared!r}: is none of {', '.join(SCOPES)} and matches no parameter; "
            f"the names are {', '.join(sorted(names))}"
        )
    return selected
