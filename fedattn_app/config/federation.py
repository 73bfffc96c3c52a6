"""The run-config keys of the federation: rounds, sampling of clients, and what travels."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from fedattn_app.config.model import LORA_SCOPES
from fedattn_app.config.schema import Section, setting
from fedattn_app.metrics import METRICS


def num_selected(num_clients: int, fraction: float) -> int:
    """Return how many of `num_clients` clients a round asks, at least 1: `fraction` of them."""
    return max(1, int(num_clients * fraction))


def score_names() -> tuple[str, ...]:
    """Return the choices of the key ``score``: the loss and all metrics, in kebab-case."""
    return ("loss", *(name.replace("_", "-") for name in METRICS))


@dataclass(frozen=True)
class FederationConfig(Section):
    """The rounds, the share of clients in each, and which parameters travel."""

    title: ClassVar[str] = "Federation"

    num_rounds: int = setting(15, "maximum number of training rounds", minimum=1)
    warmup_rounds: int = setting(
        0,
        "number of first rounds that train and share all parameters; from the next round on, only "
        "`shared` is trained and sent; 0: no such rounds",
        minimum=0,
    )
    patience: int = setting(
        0,
        "number of rounds in a row without a better score after which the run ends; 0: the run "
        "never ends early",
        minimum=0,
    )
    min_delta: float = setting(
        0.0, "smallest gain in the score that counts as better, for `patience`", minimum=0
    )
    score: str = setting(
        "accuracy",
        "score that decides which model of a run is the best, and when `patience` is exhausted",
        choices=score_names,
    )
    fraction_train: float = setting(
        1.0, "fraction of the clients that train in a round", above=0, maximum=1
    )
    fraction_evaluate: float = setting(
        1.0,
        "fraction of the clients that evaluate after a round; 0: no client evaluates",
        minimum=0,
        maximum=1,
    )
    min_clients: int = setting(
        0,
        "number of clients to wait for before a round; 0: before the first round as many as the "
        "nodes' `num-partitions`, before later rounds as many as `min-replies` needs",
        minimum=0,
    )
    min_replies: int = setting(
        0,
        "number of valid updates that a round combines at least; with fewer, no model of the round "
        "is kept and the run ends; 0: two, or one where a round asks only one client",
        minimum=0,
    )
    round_timeout: float = setting(
        3600.0, "seconds to wait for the replies of one round", above=0, maximum=43200
    )
    seed: int = setting(
        1,
        "seed of every random choice, except those of privacy unless `reproducible-noise`",
        minimum=0,
        maximum=2**32 - 1,
    )
    shared: str = setting(
        "attention+head",
        "which parameters travel: `all`, `attention`, `attention+head`, `head`, "
        "`all-but-attention`, the adapters `lora`, `lora-a` or `lora-b` (with the extra "
        "`pretrained`), or a regular expression that matches whole parameter names",
    )
    local: str = setting(
        "frozen",
        "what happens to the parameters that do not travel: `frozen` at their start, the same on "
        "every node, or `personal`, trained and kept on each node; with `lora-a` always `personal`",
        choices=("frozen", "personal"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared == "lora-a":  # A alone changes nothing while B is frozen at zero
            object.__setattr__(self, "local", "personal")

    @property
    def while_warming_up(self) -> Self:
        """The settings of the warm-up rounds, which share all parameters."""
        return replace(self, shared="all", warmup_rounds=0)

    @property
    def uses_lora(self) -> bool:
        """Whether LoRA adapters are trained in place of the projections that they adapt."""
        return self.shared in LORA_SCOPES
