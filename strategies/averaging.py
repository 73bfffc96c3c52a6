"""Flower's rules that begin with an average, over ours.

They call the `aggregate_train` of the class after them, which here is `WeightedFedAvg`: so they
have its weightings, its sums in float64 in the order of node ids, and hold one reply at a time.

- `FedProx`: clients add (μ/2)·‖w − w_global‖² to their loss. Li, Sahu, Zaheer, Sanjabi, Talwalkar
  and Smith, "Federated optimization in heterogeneous networks", 2020, arXiv 1812.06127. Use it
  where clients drift apart in long local training.
- `FedAvgM`: v ← βv + (w − w̄), w ← w − ηv, with w̄ the average. Hsu, Qi and Brown, "Measuring the
  effects of non-identical data distribution for federated visual classification", 2019, arXiv
  1909.06335. Use it where the rounds' updates contradict each other.
- `FedAdagrad`, `FedAdam`, `FedYogi`: adaptive optimizers whose gradient is w − w̄. Reddi, Charles,
  Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive federated optimization", 2021, arXiv
  2003.00295, algorithm 2. Use them where some parameters must move much further than others; their
  step size needs a search.
"""

from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from strategies.common.weighting import WEIGHTINGS
from strategies.weighted_fedavg import WeightedFedAvg


class _Weighing(FedAvg):
    """Gives the rule after it the keyword `weighting`, a key of `WEIGHTINGS`."""

    def __init__(self, weighting: str = "examples", **rule: Any) -> None:
        super().__init__(**rule)
        self.weigh = WEIGHTINGS[weighting]


class FedProx(_Weighing, flower.FedProx, WeightedFedAvg):
    """Tells clients `proximal_mu`; averages what comes."""


class FedAvgM(_Weighing, flower.FedAvgM, WeightedFedAvg):
    """Steps by `server_learning_rate` (η) and `server_momentum` (β)."""


class FedAdagrad(_Weighing, flower.FedAdagrad, WeightedFedAvg):
    """Steps by `eta` over the root of the sum of squares; `tau` bounds how far."""


class FedAdam(_Weighing, flower.FedAdam, WeightedFedAvg):
    """Steps by `eta` with the moments' `beta_1` and `beta_2`; `tau` bounds how far."""


class FedYogi(_Weighing, flower.FedYogi, WeightedFedAvg):
    """As `FedAdam`, with a second moment that forgets more slowly."""
