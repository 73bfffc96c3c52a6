"""The model that the clients of one process take turns with, as every run of a client starts."""

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
    """A model, its scope, and the values of its trainable parameters at the start.

    The trainable parameters are in `arrays`, the personal ones among them in `personal`. The frozen
    ones change only where the server sends them, which it then does in every message.
    """

    def __init__(self, config: Config, num_labels: int) -> None:
        federation = config.federation
        self.adapters = config.lora if federation.uses_lora else None
        self.model = build_classifier(config, num_labels)
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
        """The SHA-256 (hex) of the frozen parameters, to be compared with the server's."""
        return fingerprint(without(view_arrays(self.model), self.scope.trainable))

    @cached_property
    def personal_identity(self) -> str:
        """The SHA-256 (hex) of what personal parameters start from and belong to."""
        not_shared = without({**view_arrays(self.model), **self.arrays}, self.scope.shared)
        return sha256(f"{fingerprint(not_shared)} {self.adapters}".encode()).hexdigest()

    def views(self, names: Collection[str]) -> list[NDArray]:
        """Return the model's own arrays called `names`, in that order, without copying."""
        present = view_arrays(self.model)
        return [present[name] for name in names]


def starting_point(config: Config, num_labels: int) -> StartingPoint:
    """Return the starting point for `config`, made anew when the model's files have changed."""
    return _kept(config, num_labels, files_of(config.model))


@PROCESS_CACHE.keep(max_entries=1)
def _kept(config: Config, num_labels: int, files: object) -> StartingPoint:
    return StartingPoint(config, num_labels)
