"""What the server knows of the privacy that clients have spent, and whom it therefore asks no more.

Under ``dp-sgd`` each client says its ε itself; under ``client-dp`` the server's accountant does.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from flwr.app import Message

from fedattn_app.server.reply_checks import epsilon_told

log = logging.getLogger("fedattn")


class BudgetSpentError(Exception):
    """Raised inside a round that too few clients have the privacy budget for."""


@dataclass
class Spending:
    """The ε of each partition so far, which never decreases.

    A partition that is `untold` has not answered the last message, or has lost its ledger, and may
    have spent more.
    Those that are `retired` have no budget for another round, or have lost their ledger.
    """

    epsilon: dict[int, float] = field(default_factory=dict)
    untold: set[int] = field(default_factory=set)
    retired: set[int] = field(default_factory=set)
    alike: float = 0.0  # what the server's own noise has spent, of every client that takes part

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return what `row` says of an earlier server; raises `ValueError` for any other row."""
        told = {int(partition): float(value) for partition, value in row["epsilon"].items()}
        if any(not 0 <= value < math.inf for value in told.values()):
            raise ValueError("an epsilon is not a number >= 0")
        return cls(told, set(map(int, row["untold"])))

    def row(self) -> dict[str, Any]:
        """Return what another server must know to carry on."""
        told = {str(partition): value for partition, value in sorted(self.epsilon.items())}
        return {"epsilon": told, "untold": sorted(self.untold)}

    @property
    def largest(self) -> float | None:
        """The most that any client has spent; None where nothing is."""
        return max([*self.epsilon.values(), self.alike]) or None

    def ask(self, partitions: Iterable[int]) -> None:
        """Take down that these were sent a message that may cost them something."""
        self.untold.update(partitions)

    def take(self, reply: Message) -> None:
        """Believe what a reply says of ε, sound or not, unless it fell: then retire the client."""
        partition, told = reply.metadata.src_node_id, epsilon_told(reply)
        if told is None:
            return
        before = self.epsilon.get(partition, 0.0)
        self.epsilon[partition] = max(before, told)
        if told >= before:
            self.untold.discard(partition)
        else:
            log.warning("client %d: its privacy ledger is lost; it is asked no more", partition)
            self.retired.add(partition)

    def spend_alike(self, partitions: Collection[int], epsilon: float) -> None:
        """Take down that these, and all that took part before, have spent the same."""
        self.alike = epsilon
        self.epsilon = dict.fromkeys([*self.epsilon, *partitions], epsilon)

    def retire(self, partitions: Collection[int]) -> None:
        """Take down that these answered "budget spent"."""
        self.retired.update(partitions)
        for partition in sorted(partitions):
            log.info("client %d: budget spent, ε %.4g", partition, self.epsilon[partition])

    def check(self, left: int, needed: int) -> None:
        """Raise `BudgetSpentError` where some clients retired and fewer than needed are `left`."""
        if self.retired and left < needed:
            raise BudgetSpentError(
                f"{left} of {left + len(self.retired)} clients have privacy budget left, "
                f"{needed} are needed"
            )
