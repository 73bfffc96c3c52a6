"""The model that all clients of one process share, and the state that each client starts from."""

from collections.abc import Collection
from functools import cached_property
from hashlib import sha256

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import Config
from fedattn_app.models.factory import build_classifier, files_of
from fedattn_app.models.parameters import fingerprint, get_arrays, view_arrays, without
from fedattn_app.models.scopes import scope_of
from fedattn_app.types import NDArray


class StartingPoint:
    """A model, its scope, and the initial values of its trainable parameters.

    `arrays` maps the names of the trainable parameters to their initial values. `personal` is the
    part of `arrays` that is not shared. The frozen parameters change only if the server sends them,
    and then every message contains them.

    Args:
        config: the settings of the run.
        labels: the label names, in the order of the model's outputs.
    """

    def __init__(self, config: Config, labels: tuple[str, ...]) -> None:
        federation = config.federation
        self.adapters = config.lora if federation.uses_lora else None
        self.model = build_classifier(config, labels)
        self.scope = scope_of(
            federation.shared, federation.local, self.model.family, view_arrays(self.model)
        )
        self.arrays = get_arrays(self.model, self.scope.trainable)
        self.personal = without(self.arrays, self.scope.shared)

    @cached_property
    def frozen_names(self) -> list[str]:
        """The names of the frozen parameters, in the model's order."""
        return list(without(view_arrays(self.model), self.scope.trainable))

    @cached_property
    def frozen_fingerprint(self) -> str:
        """The SHA-256 (hex) of the frozen parameters, for comparison with the server's."""
        return fingerprint(without(view_arrays(self.model), self.scope.trainable))

    @cached_property
    def personal_identity(self) -> str:
        """The SHA-256 (hex) of the LoRA settings and the initial values of the unshared parameters.

        Frozen parameters are included. Without LoRA, None takes the place of the settings.
        """
        not_shared = without({**view_arrays(self.model), **self.arrays}, self.scope.shared)
        return sha256(f"{fingerprint(not_shared)} {self.adapters}".encode()).hexdigest()

    def views(self, names: Collection[str]) -> list[NDArray]:
        """Return the model's arrays with these `names`, in that order.

        The arrays are views: writing to them changes the model. Raises `KeyError` for an unknown
        name.
        """
        present = view_arrays(self.model)
        return [present[name] for name in names]


def starting_point(config: Config, labels: tuple[str, ...]) -> StartingPoint:
    """Return the starting point for `config` and a model with an output for each of `labels`.

    The last one is cached, and rebuilt if an argument or the model's files have changed.
    """
    return _cached(config, labels, files_of(config.model))


@PROCESS_CACHE.keep(max_entries=1)
def _cached(config: Config, labels: tuple[str, ...], files: object) -> StartingPoint:
    return StartingPoint(config, labels)
