"""The settings, data and storage of a node, from which its client is constructed."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Context

from fedattn_app.engine.virtual_node import is_simulated
from fedattn_app.policy.owner_policy import OwnerPolicy

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
        policy: what the node's owner has set.
    """

    config: "Config"
    labels: tuple[str, ...]
    data: "ClientData"
    partition: int
    context: Context
    policy: OwnerPolicy

    @property
    def state(self) -> "NodeState":
        """The storage for arrays that must last from one message to the next.

        This is the folder `state-dir` if the node-config sets it. Otherwise it is Flower's context,
        which does not outlast the run; a real node then logs a warning.
        """
        from fedattn_app.clients.node_state import ContextState, FolderState

        if folder := self.policy.state_folder:
            return FolderState(folder)
        if not is_simulated(self.context):
            log.warning("no state-dir in node-config: personal parameters end with the run")
        return ContextState(self.context.state)

    @property
    def ledger(self) -> "Ledger":
        """The node's privacy ledger; raises `UserError` if it cannot be read."""
        from fedattn_app.privacy.ledger import Ledger

        return Ledger(self.context.state, self.policy.ledger_path)
