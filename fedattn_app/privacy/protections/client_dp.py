"""``privacy = "client-dp"``: a trusted server clips each update and adds noise to their mean."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedattn_app.errors import UserError
from fedattn_app.privacy.accounting import Steps, noise_for
from fedattn_app.privacy.protections.noise import NoisyProtection
from fedattn_app.types import NDArray

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from flwr.serverapp import PrivacyAccountant
    from flwr.serverapp.strategy import FedAvg

    from fedattn_app.models.classifier import Classifier
    from strategies import ClientLevelDP

COVERED_FILES_NOTE = (
    "ε covers the models, in model.safetensors, best.safetensors and checkpoint/; the scores and "
    "the other files of this folder carry no noise"
)


class ClientDp(NoisyProtection):
    """Protects whole clients from everyone who gets the model, but not from the server."""

    server_accounts = True
    best_model_by_client_scores = False

    def reports_score(self, score: str) -> bool:
        """Return False: clients' scores carry no noise, so none may influence a model."""
        return False

    def build_rule(
        self,
        rule_class: "type[FedAvg]",
        flower_settings: Mapping[str, Any],
        rule_settings: Mapping[str, Any],
        accountant_state: Mapping[str, Any],
        num_rounds: int,
    ) -> "ClientLevelDP":
        """Return Flower's plain average with noise, the only rule that its accounting supports.

        Raises `UserError` if the remaining budget is too small for `num_rounds`, or if
        `accountant_state` cannot be read.
        """
        from flwr.serverapp.strategy import FedAvg

        from strategies import ClientLevelDP

        settings = self.settings
        wrapper = ClientLevelDP(
            FedAvg(**flower_settings),
            self._noise_multiplier(self._spent(accountant_state), num_rounds),
            settings.max_update_norm,
            settings.target_delta,
            self._normal,
            settings.target_epsilon or None,
        )
        assert wrapper.accountant
        if not accountant_state:
            self._check_first_release(wrapper.accountant)
        else:
            # The limit is that of the resumed run, which may differ from that of the earlier one.
            limit = {"max_epsilon": settings.target_epsilon or None}
            try:
                restored = {**accountant_state["config"], **limit}
                wrapper.accountant.load_state_dict({**accountant_state, "config": restored})
            except (ValueError, TypeError, LookupError) as error:
                raise self._unreadable(error) from None
        return wrapper

    def check_model(self, model: "Classifier", arrays: Mapping[str, NDArray]) -> None:
        """Raise `UserError` for trained `arrays` that cannot be clipped to `max-update-norm`."""
        from strategies import ClippingNormError, check_clippable, check_clipping_norm

        try:
            check_clippable(arrays)
            check_clipping_norm(arrays, self.settings.max_update_norm)
        except ClippingNormError as error:
            raise UserError(f"max-update-norm = {error}") from None
        except ValueError as error:
            raise UserError(f'privacy = "client-dp": {error}; share other parameters') from None

    def check_num_clients(self, num_clients: int) -> None:
        """Raise `UserError` if `target-delta` is not below 1 / `num_clients`."""
        delta = self.settings.target_delta
        if delta * num_clients >= 1:
            raise UserError(
                f"target-delta = {delta:g}: must be below 1 / number of clients = 1 / {num_clients}"
            )

    def summary_notes(self) -> dict[str, str]:
        """Return the entry ``privacy_note``, which says which files ε covers.

        With reproducible noise it says instead that ε holds for nobody.
        """
        return {"privacy_note": COVERED_FILES_NOTE} | super().summary_notes()

    def _normal(self, server_round: int, count: int) -> "npt.NDArray[np.float64]":
        """Return `count` standard normal numbers, (count,), from a secret stream of their own."""
        from fedattn_app.privacy.randomness import SecretRandom

        random = SecretRandom()
        if self.settings.reproducible_noise:
            random = SecretRandom.from_seed(self.config.federation.seed, "client-dp", server_round)
        drawn: npt.NDArray[np.float64] = random.normal(count).numpy()
        return drawn

    def _check_first_release(self, accountant: "PrivacyAccountant") -> None:
        """Raise `UserError` if the whole budget does not suffice for one round."""
        from flwr.serverapp import GaussianPrivacyEvent

        settings = self.settings
        if not (settings.target_epsilon and settings.noise_multiplier):
            return  # noise that is computed from the budget fits it
        size = accountant.config.population_size  # has no effect without amplification
        if accountant.would_exceed(GaussianPrivacyEvent(settings.noise_multiplier, size, size)):
            raise UserError(
                f"target-epsilon = {settings.target_epsilon:g}: with noise-multiplier = "
                f"{settings.noise_multiplier:g} it does not suffice for one round; raise "
                "target-epsilon or the noise"
            )

    def _spent(self, accountant_state: Mapping[str, Any]) -> list[Steps]:
        try:
            return [
                Steps(float(release["event"]["noise_multiplier"]), 1.0, release["count"])
                for release in accountant_state.get("compositions", [])
            ]
        except (ValueError, TypeError, LookupError) as error:
            raise self._unreadable(error) from None

    def _noise_multiplier(self, spent: list[Steps], num_rounds: int) -> float:
        settings = self.settings
        if settings.noise_multiplier:
            return settings.noise_multiplier
        planned = Steps(0.0, 1.0, num_rounds)
        noise = noise_for(settings.target_epsilon, settings.target_delta, planned, spent)
        if noise is None:
            raise UserError(
                f"target-epsilon = {settings.target_epsilon:g}: too little of it is left for "
                f"num-rounds = {self.config.federation.num_rounds} at target-delta = "
                f"{settings.target_delta:g}; raise target-epsilon"
            )
        return noise

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(
            f"resume-from = {self.config.output.resume_from}: its accountant does not say what was "
            f"spent ({error})"
        )
