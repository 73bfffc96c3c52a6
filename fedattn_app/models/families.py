"""Where each family of models keeps its self-attention and its head.

Every family names its parts in its own way; `FAMILIES` is the one place that knows how.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedattn_app.config import ATTENTION_ROLES, LORA_SCOPES
from fedattn_app.errors import UserError

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
