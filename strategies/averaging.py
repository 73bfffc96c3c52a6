"""Flower's rules that start from an average, with our average in place of Flower's.

Each of Flower's classes calls `super().aggregate_train` for the average w̄. Here the next class is
`WeightedFedAvg`, so that they have its weightings, sum in float64 in the order of node ids, and
keep two replies in memory.

- `FedProx`: clients add (μ/2)·‖w − w_global‖² to their loss. Li, Sahu, Zaheer, Sanjabi, Talwalkar
  and Smith, "Federated optimization in heterogeneous networks", 2020, arXiv 1812.06127. Use it
  where clients drift apart during long local training.
- `FedAvgM`: v ← βv + (w − w̄), w ← w − ηv. Hsu, Qi and Brown, "Measuring the effects of
  non-identical data distribution for federated visual classification", 2019, arXiv 1909.06335. Use
  it where the updates of successive rounds contradict each other.
- `FedAdagrad`, `FedAdam`, `FedYogi`: adaptive optimizers whose gradient is w − w̄. Reddi, Charles,
  Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive federated optimization", 2021, arXiv
  2003.00295, algorithm 2. Use them where some parameters must move much further than others; tune
  their step size.
"""

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from strategies.common.state import Arrays, with_prefix, without_prefix
from strategies.common.weighting import WEIGHTINGS
from strategies.weighted_fedavg import WeightedFedAvg


class _Weighted(FedAvg):
    """Adds the keyword `weighting`, a key of `WEIGHTINGS`, to the rule after it in the bases."""

    def __init__(self, weighting: str = "examples", **rule: Any) -> None:
        super().__init__(**rule)
        self.weigh = WEIGHTINGS[weighting]


class _Adaptive(_Weighted):
    """Gives Flower's adaptive rules their state: the moments `m_t` and `v_t` by parameter name."""

    m_t: dict[str, npt.NDArray[Any]] | None
    v_t: dict[str, npt.NDArray[Any]] | None

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return both moments."""
        return with_prefix("m_t", self.m_t or {}) | with_prefix("v_t", self.v_t or {})

    def load_state(self, arrays: Arrays) -> None:
        """Restore both moments."""
        self.m_t = without_prefix("m_t", arrays)
        self.v_t = without_prefix("v_t", arrays)


class FedProx(_Weighted, flower.FedProx, WeightedFedAvg):
    """Sends clients `proximal_mu` (μ ≥ 0) and averages their replies."""


class FedAvgM(_Weighted, flower.FedAvgM, WeightedFedAvg):
    """Steps by `server_learning_rate` (η ≥ 0) with `server_momentum` (0 ≤ β < 1)."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Take `arrays` as the start of the round, so that the momentum is the only state."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the momentum, a list in the order of the arrays, by position."""
        momentum = self.momentum_vector or []
        return with_prefix("momentum_vector", {str(i): array for i, array in enumerate(momentum)})

    def load_state(self, arrays: Arrays) -> None:
        """Restore the momentum."""
        momentum = without_prefix("momentum_vector", arrays)
        self.momentum_vector = [momentum[str(i)] for i in range(len(momentum))] or None


class FedAdagrad(_Adaptive, flower.FedAdagrad, WeightedFedAvg):
    """Steps by `eta` (η > 0) over the root of the summed squares plus `tau` (τ > 0)."""


class FedAdam(_Adaptive, flower.FedAdam, WeightedFedAvg):
    """Steps by `eta` (η > 0) with moments that decay by `beta_1` and `beta_2` (0 ≤ β < 1).

    `tau` (τ > 0) is added to the root of the second moment.
    """


class FedYogi(_Adaptive, flower.FedYogi, WeightedFedAvg):
    """Steps as `FedAdam` does, with a second moment that changes more slowly."""
