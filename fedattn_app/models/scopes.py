"""Which parameters travel, which stay on their node, and which are not trained.

The value of the key `shared` is one of `SCOPES`, or a regular expression that must match whole
dotted parameter names. The expression is the run's, and every node evaluates it, so it is given to
RE2, whose time grows only linearly with the length of a name. Python's own engine backtracks: it
would never return from ``([a-z]+.?)+!``.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import re2

from fedattn_app.config import LORA_SCOPES, as_toml
from fedattn_app.errors import UserError
from fedattn_app.models.families import family_of

_LORA_MATRICES = {"lora": "[AB]", "lora-a": "A", "lora-b": "B"}
# RE2 takes up to a second to read so many characters, if each is a class of Unicode, and up to
# three to match the names of a large model in so much memory.
MAX_REGEX_LENGTH = 10_000
MAX_REGEX_MEMORY = 1 << 18  # bytes
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
        UserError: If the regular expression is invalid, too large, or matches no name, or if
            `shared` is a named scope that needs the family's row and `FAMILIES` has none.
    """
    every_name = frozenset(names)
    matches = _matcher(shared, family, every_name)
    selected = frozenset(filter(matches, every_name))
    if not selected:
        raise UserError(
            f"shared = {as_toml(shared)}: not one of {', '.join(SCOPES)}, and matches no "
            f"parameter; the names are {', '.join(sorted(every_name))}"
        )
    personal: frozenset[str] = frozenset()
    if local == "personal":
        trained = _pattern("lora", family, every_name) if shared in LORA_SCOPES else ".*"
        personal = frozenset(filter(re.compile(trained).fullmatch, every_name)) - selected
    return Scope(selected, personal, every_name - selected - personal)


def _matcher(shared: str, family: str, names: Iterable[str]) -> Callable[[str], object]:
    """Return a function that says whether `shared` selects a name."""
    if shared in SCOPES:
        return re.compile(_pattern(shared, family, names)).fullmatch
    if len(shared) > MAX_REGEX_LENGTH:
        raise UserError(
            f"shared = {as_toml(shared)}: must be one of {', '.join(SCOPES)}, or a regex of at "
            f"most {MAX_REGEX_LENGTH} characters"
        )
    options = re2.Options()
    options.max_mem = MAX_REGEX_MEMORY
    options.never_capture = True  # what groups have matched is of no use and takes time
    options.log_errors = False
    try:
        fullmatch: Callable[[str], object] = re2.compile(shared, options).fullmatch
    except re2.error as error:
        raise UserError(
            f"shared = {as_toml(shared)}: not one of {', '.join(SCOPES)}, and not a valid regex "
            f"of RE2, which has no lookaround and no backreferences ({_reason(error)})"
        ) from None
    return fullmatch


def _reason(error: Exception) -> str:
    """Return RE2's reason without the part of the expression that it repeats after a colon."""
    [reason] = error.args
    return str(reason.decode(errors="replace")).partition(": ")[0]


def _pattern(shared: str, family: str, names: Iterable[str]) -> str:
    """Return Python's regular expression for a named scope."""
    if shared == "all":
        return ".*"
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
