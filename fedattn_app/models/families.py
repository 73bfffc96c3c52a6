"""Where each family of models keeps its self-attention and its head.

Every family has its own parameter names. A row of `FAMILIES` describes those of one family.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedattn_app.config import ATTENTION_ROLES, LORA_SCOPES, as_toml
from fedattn_app.errors import UserError

BUILT_IN = "fedattn"


@dataclass(frozen=True)
class Family:
    """Regular expressions over the parameter names of one family.

    Args:
        attention: The dotted name of one layer's self-attention, with the final dot.
        query: The name of the query projection below `attention`.
        key: The name of the key projection.
        value: The name of the value projection.
        output: The name of the output projection.
        head: The full names of the parameters between the encoder's output and the logits.
        positions_after_padding: Whether token positions count from the padding token's id plus 1,
            which reduces the maximum length.
    """

    attention: str
    query: str
    key: str
    value: str
    output: str
    head: str
    positions_after_padding: bool = False

    def projections(self, roles: Iterable[str] = ATTENTION_ROLES) -> str:
        """Return a regex for the module names of the projections `roles` (query, key, …)."""
        names = "|".join(getattr(self, role) for role in roles)
        return f"{self.attention}(?:{names})"


def _bert_layout(
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


# Keys are the `model_type` of a model's configuration. MiniLM models are BERT or XLM-RoBERTa.
FAMILIES: Mapping[str, Family] = {
    BUILT_IN: Family(
        r"layers\.\d+\.attention\.", "query", "key", "value", "output", head=r"head\..*"
    ),
    "bert": _bert_layout("bert", head=r"bert\.pooler\..*|classifier\..*"),
    "roberta": _bert_layout("roberta", head=r"classifier\..*", positions_after_padding=True),
    "xlm-roberta": _bert_layout("roberta", head=r"classifier\..*", positions_after_padding=True),
    "electra": _bert_layout("electra", head=r"classifier\..*"),
    "deberta-v2": _bert_layout("deberta", head=r"(pooler|classifier)\..*", projection="_proj"),
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
    """Return the row of `FAMILIES` for `family`.

    `names` are the parameter names of the model, and `shared` is the value of that key, both for
    the error text. Raises `UserError` for an unknown family.
    """
    if family in FAMILIES:
        return FAMILIES[family]
    if shared in LORA_SCOPES:
        raise UserError(
            f"shared = {as_toml(shared)}: adapters are not supported for the model family "
            f"{family!r}, only for {', '.join(sorted(set(FAMILIES) - {BUILT_IN}))}"
        )
    raise UserError(
        f"shared = {as_toml(shared)}: not defined for the model family {family!r}; use a regex "
        f"over its parameter names, which are {', '.join(sorted(names))}"
    )
