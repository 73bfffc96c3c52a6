"""Which parameters travel, which stay on their node, and which are not trained.

The value of the key `shared` is one of `SCOPES`, or a regular expression that must match whole
dotted parameter names.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedattn_app.config import LORA_SCOPES, as_toml
from fedattn_app.errors import UserError
from fedattn_app.models.families import family_of

_LORA_MATRICES = {"lora": "[AB]", "lora-a": "A", "lora-b": "B"}
SCOPES = ("all", "attention", "attention+head", "head", "all-but-attention", *LORA_SCOPES)


@dataclass(frozen=True)
class Scope:
    """The parameter names of a model in three disjoint sets.

    `shared` parameters are trained and travel. `personal` parameters are trained and stay on their
    node. `frozen` parameters are never trained and are the same on every node.
    """

    shared: frozenset[str]
    personal: frozenset[str]
    frozen: frozenset[str]

    @property
    def trainable(self) -> frozenset[str]:
        """The names of the parameters that local training changes."""
        return self.shared | self.personal


def scope_of(shared: str, local: str, family: str, names: Collection[str]) -> Scope:
    """Divide the parameters of a model by the settings `shared` and `local`.

    With adapters, the adapted parameters are always frozen.

    Args:
        shared: One of `SCOPES`, or a regular expression over `names`.
        local: What happens to the parameters that are not shared: "frozen" or "personal".
        family: The model's key in `FAMILIES`.
        names: All parameter names of the model.

    Raises:
        UserError: If the regular expression is invalid or matches no name, or if `shared` is a
            named scope that needs the family's row and `FAMILIES` has none.
    """
    every_name = frozenset(names)
    selected = _matching(shared, _pattern(shared, family, every_name), every_name)
    personal: frozenset[str] = frozenset()
    if local == "personal":
        trained = _pattern("lora", family, every_name) if shared in LORA_SCOPES else ".*"
        personal = frozenset(filter(re.compile(trained).fullmatch, every_name)) - selected
    return Scope(selected, personal, every_name - selected - personal)


def _pattern(shared: str, family: str, names: Iterable[str]) -> str:
    if shared == "all":
        return ".*"
    if shared not in SCOPES:
        return shared
    layout = family_of(family, names, shared)
    if shared in LORA_SCOPES:
        return rf".*\.lora_{_LORA_MATRICES[shared]}\..*|{layout.head}"
    attention = rf"{layout.projections()}\.(weight|bias)"
    return {
        "attention": attention,
        "head": layout.head,
        "attention+head": f"{attention}|{layout.head}",
        "all-but-attention": rf"(?!(?:{attention})$).*",
    }[shared]


def _matching(shared: str, pattern: str, names: Iterable[str]) -> frozenset[str]:
    try:
        selected = frozenset(filter(re.compile(pattern).fullmatch, names))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"shared = {as_toml(shared)}: not one of {', '.join(SCOPES)}, and not a valid regex "
            f"({error})"
        ) from None
    if not selected:
        raise UserError(
            f"shared = {as_toml(shared)}: not one of {', '.join(SCOPES)}, and matches no "
            f"parameter; the names are {', '.join(sorted(names))}"
        )
    return selected
