"""The run-config keys of differential privacy, and the registry of protections."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedattn_app.config.schema import Registered, Section, setting

_BUDGET = ("target_epsilon", "target_delta", "noise_multiplier", "reproducible_noise")

# With a larger norm, a sum of clipped gradients could overflow before it gets noise, and whether it
# does would tell of one example.
MAX_NORM = 1e6

PROTECTIONS: Mapping[str, Registered] = {
    "none": Registered("fedattn_app.privacy.protections.base:NoProtection"),
    "dp-sgd": Registered(
        "fedattn_app.privacy.protections.dp_sgd:DpSgd",
        (*_BUDGET, "max_grad_norm", "accountant", "evaluate_epsilon", "num_examples_public"),
    ),
    "client-dp": Registered(
        "fedattn_app.privacy.protections.client_dp:ClientDp", (*_BUDGET, "max_update_norm")
    ),
}


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Differential privacy, for each example on its node or for each client on the server."""

    title: ClassVar[str] = "Privacy"

    privacy: str = setting(
        "none",
        "how an update is protected: `none`; `dp-sgd`, noise on the node that protects each of its "
        "examples; `client-dp`, noise on the server that protects each client as a whole",
        choices=PROTECTIONS,
    )
    target_epsilon: float = setting(
        0.0,
        "maximum ε that may be spent; 0: no maximum, and `noise-multiplier` must be given",
        minimum=0,
    )
    target_delta: float = setting(
        1e-5,
        "δ of the guarantee; keep it below 1 / the number of examples or clients to protect",
        above=0,
        maximum=0.999,
    )
    noise_multiplier: float = setting(
        0.0,
        "standard deviation of the noise, as a multiple of the clipping norm; 0: computed from "
        "`target-epsilon`",
        minimum=0,
    )
    max_grad_norm: float = setting(
        1.0,
        "L2 norm to which the gradient of each example is clipped",
        minimum=1e-6,
        maximum=MAX_NORM,
    )
    max_update_norm: float = setting(
        1.0, "L2 norm to which the update of each client is clipped", above=0, maximum=MAX_NORM
    )
    accountant: str = setting(
        "rdp",
        "how ε is computed over the steps: `rdp`, Rényi differential privacy; `prv`, privacy loss "
        "random variables, which gives a smaller ε and takes longer",
        choices=("rdp", "prv"),
    )
    evaluate_epsilon: float = setting(
        0.0,
        "ε, in addition to `target-epsilon`, for noisy scores on the examples that clients hold "
        "out; 0: clients do not evaluate",
        minimum=0,
    )
    num_examples_public: bool = setting(
        False, "whether clients may report their number of examples without noise"
    )
    reproducible_noise: bool = setting(
        False,
        "whether the noise is drawn from `seed`, so that a run can be repeated; for tests and "
        "simulations only, because noise that can be predicted protects nobody",
    )
