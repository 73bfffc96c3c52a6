"""The settings, data and storage of a node, from which its client is constructed."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Context

from fedattn_app.clients.node_policy import is_real, ledger_path, limit_of

if TYPE_CHECKING:
    from fedattn_app.clients.node_state import NodeState
    from fedattn_app.config import Config
    from fedattn_app.data.examples import ClientData
    from fedattn_app.privacy.ledger import Ledger

log = logging.getLogger("fedattn")


@dataclass(frozen=True)
class Node:
    """The settings, data and storage of one node.

    Attributes:
        config: the settings of the run.
        labels: the label names, in the order of the model's outputs.
        data: the examples to train on and those held out.
        partition: the number of the node, from 0.
        context: Flower's context of the message.
    """

    config: "Config"
    labels: tuple[str, ...]
    data: "ClientData"
    partition: int
    context: Context

    @property
    def state(self) -> "NodeState":
        """The storage for arrays that must last from one message to the next.

        This is the folder `state-dir` if the node-config sets it. Otherwise it is Flower's context,
        which does not outlast the run; a real node then logs a warning.
        """
        from fedattn_app.clients.node_state import ContextState, FolderState
        from fedattn_app.files import user_path

        folder = self.context.node_config.get("state-dir")
        if folder:
            return FolderState(user_path("state-dir", str(folder)))
        if is_real(self.context.node_config):
            log.warning("no state-dir in node-config: personal parameters end with the run")
        return ContextState(self.context.state)

    @property
    def ledger(self) -> "Ledger":
        """The node's privacy ledger; raises `UserError` if it cannot be read."""
        from fedattn_app.privacy.ledger import Ledger

        return Ledger(self.context.state, ledger_path(self.context.node_config))

    @property
    def max_epsilon(self) -> float:
        """The owner's limit on ε for all runs together, infinite if none is set.

        Raises `UserError` if the limit is not a number above 0.
        """
        return limit_of(self.context.node_config, "max-epsilon")
