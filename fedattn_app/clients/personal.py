"""The client with personal parameters, which stay on its node (``local = "personal"``)."""

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from fedattn_app.clients.base import FrozenClient
from fedattn_app.clients.node_state import NodeState
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.models.parameters import without
from fedattn_app.run_identity import labels_fingerprint
from fedattn_app.types import NDArray

if TYPE_CHECKING:
    from fedattn_app.clients.node import Node


class PersonalClient(FrozenClient):
    """Trains the personal parameters too, if there are any, and saves them in `state`.

    Later runs with the same model, labels, scope and seed start from the saved parameters.

    Args:
        config: the settings of the run.
        labels: the label names, in the order of the model's outputs.
        data: the examples to train on and those held out.
        partition: the number of this client, from 0.
        state: where the personal parameters are kept between messages.
    """

    def __init__(
        self,
        config: Config,
        labels: tuple[str, ...],
        data: ClientData,
        partition: int,
        state: NodeState,
    ) -> None:
        super().__init__(config, labels, data, partition)
        self.state = state

    @classmethod
    def on_node(cls, node: "Node") -> Self:
        """Return the client of `node`, with its data, state and limits."""
        return cls(node.config, node.labels, node.data, node.partition, node.state)

    @property
    def state_name(self) -> str:
        """The name of the personal arrays in `state`.

        It depends on the partition, the labels, the tokenizer, the model and the seed.
        """
        labels, tokenizer = labels_fingerprint(self.labels), self.data.tokenizer_fingerprint
        identity = f"{self._start.personal_identity} {labels} {tokenizer}"
        return f"personal-{self.partition}-{sha256(identity.encode()).hexdigest()[:16]}"

    def _personal_arrays(self) -> Mapping[str, NDArray]:
        return self.state.load(self.state_name) or {}

    def _save_personal(self, trained: Mapping[str, NDArray]) -> None:
        if self._start.scope.personal:
            self.state.save(self.state_name, without(trained, self.shared))
