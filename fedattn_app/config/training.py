"""The run-config keys of a client's local training."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from fedattn_app.config.schema import Section, setting


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The local training of one client in one round."""

    title: ClassVar[str] = "Local training"

    local_epochs: int = setting(
        1, "number of passes over a client's training examples in a round", minimum=1
    )
    batch_size: int = setting(
        16,
        "number of examples per optimizer step; with `dp-sgd` the expected number, since each "
        "example is drawn independently",
        minimum=1,
        maximum=2**31 - 1,
    )
    physical_batch_size: int = setting(
        16,
        "maximum number of examples, of similar length, per pass through the model; it bounds the "
        "memory, and a step of `batch-size` examples takes several passes",
        minimum=1,
    )
    learning_rate: float = setting(3e-3, "learning rate of the local optimizer", above=0)
    learning_rate_schedule: str = setting(
        "constant",
        "`learning-rate` over the rounds: `constant`, or `cosine`, which falls towards 0 along "
        "half a cosine",
        choices=("constant", "cosine"),
    )
    optimizer: str = setting("adamw", "local optimizer", choices=("adamw", "adam", "sgd"))
    weight_decay: float = setting(
        0.01, "weight decay of the local optimizer; 0: no weight decay", minimum=0
    )

    def in_round(self, server_round: int, num_rounds: int) -> Self:
        """Return the settings of one round, with the learning rate that the schedule gives it.

        With the cosine schedule, round t of T has the learning rate η·(1 + cos(π·(t − 1) / T)) / 2,
        where η is the configured one.

        Args:
            server_round: the round t, from 1. Values outside 1 to T count as the nearest of them.
            num_rounds: the number of rounds T.
        """
        if self.learning_rate_schedule == "constant":
            return self
        done = min(max(server_round - 1, 0), num_rounds - 1) / num_rounds
        factor = (1 + math.cos(math.pi * done)) / 2
        return replace(self, learning_rate=self.learning_rate * factor)
