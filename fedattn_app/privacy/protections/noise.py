"""The base class of the protections that add noise."""

import logging

from fedattn_app.config.schema import key_named
from fedattn_app.errors import UserError
from fedattn_app.privacy.accounting import Steps, noise_for
from fedattn_app.privacy.protections.base import Protection

log = logging.getLogger("fedattn")

REPRODUCIBLE_NOISE_NOTE = (
    "the noise came from the seed, which every party knows: this ε holds for nobody"
)


class NoisyProtection(Protection):
    """Adds Gaussian noise, and therefore has a budget (ε, δ)."""

    has_budget = True
    default_weighting = "uniform"

    def check_settings(self) -> None:
        """Raise `UserError` if an ε is too small even for a single step."""
        settings, one_step = self.settings, Steps(0.0, 1.0, 1)
        delta = settings.target_delta
        for key in ("target_epsilon", "evaluate_epsilon"):
            target = getattr(settings, key)
            if target and noise_for(target, delta, one_step, (), settings.accountant) is None:
                raise UserError(
                    f"{key_named(key)} = {target:g}: no noise is enough for it at target-delta = "
                    f"{delta:g}; raise one of them"
                )

    def announce(self) -> None:
        """Log a warning if the noise is reproducible. Reproducible noise protects nobody."""
        if self.settings.reproducible_noise:
            log.warning("reproducible-noise: %s", REPRODUCIBLE_NOISE_NOTE)

    def summary_notes(self) -> dict[str, str]:
        """Return the entry ``privacy_note``, which says that ε holds for nobody.

        Returns an empty dict if the noise is not reproducible.
        """
        if self.settings.reproducible_noise:
            return {"privacy_note": REPRODUCIBLE_NOISE_NOTE}
        return {}
