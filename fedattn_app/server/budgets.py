"""What each client has spent of its privacy budget, as far as the server knows.

With ``dp-sgd`` every client reports its own ε. With ``client-dp`` the server's accountant computes
one ε for all.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from flwr.app import Message
from flwr.serverapp import PrivacyAccountant

from fedattn_app.privacy.protections import Protection
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.server.reply_checks import reported_epsilon

log = logging.getLogger("fedattn")


class BudgetSpentError(Exception):
    """Too few clients have privacy budget left for a round."""


@dataclass
class Budgets:
    """The ε that each client, by partition, has spent so far. It never decreases.

    Attributes:
        epsilon: what each client has reported, or what the server's noise has cost it.
        unreported: clients that have not answered the last message, or have lost their ledger; they
            may have spent more.
        retired: clients without budget for another round, or without their ledger; they get no
            further message.
        common: what the server's own noise has cost every client that has taken part.
    """

    epsilon: dict[int, float] = field(default_factory=dict)
    unreported: set[int] = field(default_factory=set)
    retired: set[int] = field(default_factory=set)
    common: float = 0.0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Restore what `to_row` returned; raises an exception for anything else."""
        epsilon = {int(partition): float(value) for partition, value in row["epsilon"].items()}
        if any(not 0 <= value < math.inf for value in epsilon.values()):
            raise ValueError("an epsilon is not a number >= 0")
        return cls(epsilon, set(map(int, row["unreported"])))

    def to_row(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as a JSON object."""
        epsilon = {str(partition): value for partition, value in sorted(self.epsilon.items())}
        return {"epsilon": epsilon, "unreported": sorted(self.unreported)}

    @property
    def largest(self) -> float | None:
        """The largest ε of all clients; None if nothing has been spent."""
        return max([*self.epsilon.values(), self.common]) or None

    def record_messages(self, partitions: Iterable[int]) -> None:
        """Mark the clients to which a message is about to be sent as unreported."""
        self.unreported.update(partitions)

    def record_reply(self, reply: Message) -> None:
        """Record the ε in a reply, valid or not. A client whose ε fell is retired."""
        partition, epsilon = reply.metadata.src_node_id, reported_epsilon(reply)
        if epsilon is None:
            return
        before = self.epsilon.get(partition, 0.0)
        self.epsilon[partition] = max(before, epsilon)
        if epsilon >= before:
            self.unreported.discard(partition)
        else:
            log.warning("client %d: its privacy ledger is lost; it is not asked again", partition)
            self.retired.add(partition)

    def spend_in_common(self, partitions: Collection[int], epsilon: float) -> None:
        """Set what the server's noise has cost so far: `epsilon` for every client that took part.

        `partitions` are clients that have just taken part; those of earlier rounds are known.
        """
        self.common = epsilon
        self.epsilon = dict.fromkeys([*self.epsilon, *partitions], epsilon)

    def retire(self, partitions: Collection[int]) -> None:
        """Record that these clients have no budget left."""
        self.retired.update(partitions)
        for partition in sorted(partitions):
            log.info("client %d: budget spent, ε %.4g", partition, self.epsilon[partition])

    def check(self, num_left: int, num_needed: int, reason: str) -> None:
        """Raise `BudgetSpentError` if clients were retired and fewer than `num_needed` are left.

        `reason` is the setting that demands that number.
        """
        if self.retired and num_left < num_needed:
            raise BudgetSpentError(
                f"{num_left} of {num_left + len(self.retired)} clients have privacy budget left, "
                f"{num_needed} are needed ({reason})"
            )


class SpendingRecord:
    """Writes what clients spend to the run's folder before anyone sees what it was spent for.

    Args:
        folder: the run's folder.
        protection: the protection of the run.
        accountant: that of the server's noise; None if the server adds none.
    """

    def __init__(
        self, folder: RunFolder, protection: Protection, accountant: PrivacyAccountant | None
    ) -> None:
        self.folder = folder
        self.protection = protection
        self.accountant = accountant

    def record_messages(self, messages: Sequence[Message], budgets: Budgets) -> None:
        """Record, before sending `messages`, which clients get them.

        A client may spend budget on a message and never report it.
        """
        if self.protection.protects_on_node:
            budgets.record_messages(message.metadata.dst_node_id for message in messages)
            self.write(budgets)

    def write(self, budgets: Budgets) -> None:
        """Write what the clients have reported, if they report anything."""
        if self.protection.protects_on_node:
            self.folder.write_budgets(budgets.to_row())

    def account(self, clients: Collection[int], budgets: Budgets) -> None:
        """Record what the server's noise has cost `clients`, if it adds noise.

        This happens before anyone sees the noisy model.
        """
        if self.accountant:
            self.folder.write_accountant(self.accountant.state_dict())
            epsilon = self.accountant.get_privacy_spent().epsilon
            budgets.spend_in_common(clients, epsilon)
