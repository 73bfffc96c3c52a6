"""Which parameters travel, which stay on a node, and which nobody trains.

A scope is the name of one below, or a regular expression over whole dotted parameter names.
Every family of models names its parts in its own way; `FAMILIES` is the one place that knows how.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedattn_app.errors import UserError
from fedattn_app.model_config import ATTENTION_ROLES, LORA_SCOPES

BUILT_IN = "fedattn"


@dataclass(frozen=True)
class Family:
    """Where the models of one family keep their self-attention and their head.

    `attention` is a regex for the dotted name of one layer's self-attention, final dot included;
    `query`, `key`, `value` and `output` are regexes for the names of the four projections below
    it. `head` is a regex for the parameters between the encoder's output and the logits.
    With `positions_after_padding` the positions of tokens count from the number after that of the
    padding token.
    """

    attention: str
    query: str
    key: str
    value: str
    output: str
    head: str
    positions_after_padding: bool = False

    def projections(self, roles: Iterable[str] = ATTENTION_ROLES) -> str:
        """Return a regex for the module names of the projections with these `roles`."""
        below = "|".join(getattr(self, role) for role in roles)
        return f"{self.attention}(?:{below})"


def _like_bert(
    prefix: str, head: str, projection: str = "", positions_after_padding: bool = False
) -> Family:
    return Family(
        attention=rf"{prefix}\.encoder\.layer\.\d+\.attention\.",
        query=rf"self\.query{projection}",
        key=rf"self\.key{projection}",
        value=rf"self\.value{projection}",
        output=r"output\.dense",
        head=head,
        positions_after_padding=positions_after_padding,
    )


# By the `model_type` of a model's configuration. MiniLM models are BERT or XLM-RoBERTa by theirs.
FAMILIES: Mapping[str, Family] = {
    BUILT_IN: Family(
        r"layers\.\d+\.attention\.", "query", "key", "value", "output", head=r"head\..*"
    ),
    "bert": _like_bert("bert", head=r"bert\.pooler\..*|classifier\..*"),
    "roberta": _like_bert("roberta", head=r"classifier\..*", positions_after_padding=True),
    "xlm-roberta": _like_bert("roberta", head=r"classifier\..*", positions_after_padding=True),
    "electra": _like_bert("electra", head=r"classifier\..*"),
    "deberta-v2": _like_bert("deberta", head=r"(pooler|classifier)\..*", projection="_proj"),
    "distilbert": Family(
        attention=r"distilbert\.transformer\.layer\.\d+\.attention\.",
        query="q_lin",
        key="k_lin",
        value="v_lin",
        output="out_lin",
        head=r"(pre_classifier|classifier)\..*",
    ),
}

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


def family_of(family: str, names: Iterable[str], shared: str) -> Family:
    """Return the entry of `FAMILIES`; raises `UserError` that asks for a regex if there is none."""
    if family in FAMILIES:
        return FAMILIES[family]
    if shared in LORA_SCOPES:
        raise UserError(
            f"shared = {shared!r}: the model family {family!r} is not one of those that adapters "
            f"are known for: {', '.join(sorted(set(FAMILIES) - {BUILT_IN}))}"
        )
    raise UserError(
        f"shared = {shared!r}: is not known for the model family {family!r}; give a regex "
        f"over its parameter names, which are {', '.join(sorted(names))}"
    )


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
