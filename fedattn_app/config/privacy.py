"""The run-config keys of differential privacy."""

from dataclasses import dataclass

from fedattn_app.config.schema import Section, setting
from fedattn_app.errors import UserError

# Which kinds of privacy have a setting.
_BOTH = ("dp-sgd", "client-dp")
_KINDS_OF = {
    "target_epsilon": _BOTH,
    "target_delta": _BOTH,
    "noise_multiplier": _BOTH,
    "max_grad_norm": ("dp-sgd",),
    "max_update_norm": ("client-dp",),
    "accountant": ("dp-sgd",),
    "evaluate_epsilon": ("dp-sgd",),
    "num_examples_public": ("dp-sgd",),
    "reproducible_noise": _BOTH,
}


@dataclass(frozen=True)
class RegisteredProtection:
    """A class by its dotted name, and the settings that only some protections have."""

    class_path: str


PROTECTIONS = {
    "none": RegisteredProtection("fedattn_app.privacy.protections.base:NoProtection"),
    "dp-sgd": RegisteredProtection("fedattn_app.privacy.protections.dp_sgd:DpSgd"),
    "client-dp": RegisteredProtection("fedattn_app.privacy.protections.client_dp:ClientDp"),
}


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Differential privacy: of an example on its node, or of a client on the server."""

    privacy: str = setting(
        "none",
        "protection of an update: `dp-sgd` on the node, for each of its examples; `client-dp` on "
        "the server, for each client",
        choices=("none", "dp-sgd", "client-dp"),
    )
    target_epsilon: float = setting(
        0.0, "ε that may be spent; 0: no limit, `noise-multiplier` decides", minimum=0
    )
    target_delta: float = setting(
        1e-5, "δ of the guarantee, below 1 / number of examples", above=0, maximum=0.999
    )
    noise_multiplier: float = setting(
        0.0, "noise per clipping norm; 0: worked out from `target-epsilon`", minimum=0
    )
    max_grad_norm: float = setting(
        1.0, "L2 norm to which `dp-sgd` clips the gradient of an example", minimum=1e-6
    )
    max_update_norm: float = setting(
        1.0, "L2 norm to which `client-dp` clips the update of a client", above=0
    )
    accountant: str = setting("rdp", "how `dp-sgd` adds ε up", choices=("rdp", "prv"))
    evaluate_epsilon: float = setting(
        0.0,
        "ε beside `target-epsilon` for noisy scores on what clients hold out; 0: with `dp-sgd` "
        "they do not evaluate",
        minimum=0,
    )
    num_examples_public: bool = setting(
        False, "with `dp-sgd`, clients may tell how many examples they have"
    )
    reproducible_noise: bool = setting(
        False, "noise from `seed`, for simulations only: it protects nobody"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unowned("privacy", _KINDS_OF)
        if self.privacy != "none" and not self.target_epsilon and not self.noise_multiplier:
            raise UserError(
                f'privacy = "{self.privacy}": needs target-epsilon or noise-multiplier above 0'
            )
