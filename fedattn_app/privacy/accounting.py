"""What a history of sampled Gaussian mechanisms has spent, and the noise that a budget buys.

A step that sees each example with probability q and adds noise of σ times the clipping norm is a
sampled Gaussian mechanism; (ε, δ) of many, under adding or removing one example, comes from
Opacus, by Rényi differential privacy (Mironov, Talwar and Zhang, 2019, arXiv 1908.10530) or by
privacy loss random variables (Gopi, Lee and Wutschitz, 2021, arXiv 2106.02848). Both are upper
bounds; the second is the tighter, to within 0.01. Opacus is imported where it is used, since that
takes longer than importing torch.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedattn_app.cache import PROCESS_CACHE

# Above 1024 Opacus' binomial coefficients overflow; small ε needs large orders.
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
# Opacus' PRV needs memory and time in proportion; beyond this nobody looks at the second digit.
LARGEST_PRV_EPSILON = 30.0
LEAST_NOISE, MOST_NOISE = 1e-2, 1e7
# Below this the divergence overflows; ε is beyond any use long before.
NO_NOISE = 1e-6
# A budget is spent when what is left of it takes this many times the noise that all of it would.
SPENT = 10.0
PRECISION = 1e-3


@dataclass(frozen=True)
class Steps:
    """So many steps (`count` > 0) with noise multiplier σ ≥ 0 and sample rate 0 < q ≤ 1."""

    noise_multiplier: float
    sample_rate: float
    count: int


def epsilon_of(history: Sequence[Steps], delta: float, accountant: str = "rdp") -> float:
    """Return an upper bound of ε at `delta` for all of `history`; infinite without noise.

    `accountant` is ``rdp`` or ``prv``.
    """
    if not history:
        return 0.0
    curve = sum(
        steps.count * _curve(steps.noise_multiplier, steps.sample_rate) for steps in history
    )
    orders = np.array(ORDERS)
    converted = (
        curve + (math.log(1 / delta) - np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    )
    bound = float(converted.min())
    if math.isnan(bound):
        return math.inf
    bound = max(0.0, bound)
    if accountant == "rdp" or bound > LARGEST_PRV_EPSILON:
        return bound
    return min(bound, _prv(tuple(history), delta))


def noise_for(
    target_epsilon: float,
    delta: float,
    planned: Steps,
    history: Sequence[Steps] = (),
    accountant: str = "rdp",
) -> float | None:
    """Return the least noise multiplier at which `planned` after `history` stays in the budget.

    The noise of `planned` itself does not count. The result is at most 0.1 % above the least. None
    where no noise is enough, or only so much that nothing but noise would be left: the history has
    spent too much, or the target is too small.
    """
    noise = _least_noise(target_epsilon, delta, planned, history, accountant)
    if noise is None or not history:
        return noise
    alone = _least_noise(target_epsilon, delta, planned, (), accountant)
    return noise if alone is not None and noise <= SPENT * alone else None


def _least_noise(
    target_epsilon: float, delta: float, planned: Steps, history: Sequence[Steps], accountant: str
) -> float | None:
    def spent(log_noise: float) -> float:
        trial = replace(planned, noise_multiplier=math.exp(log_noise))
        return epsilon_of([*history, trial], delta, accountant)

    if spent(math.log(MOST_NOISE)) > target_epsilon:
        return None
    low, high = -1.0, 0.0
    while spent(high) > target_epsilon:
        low, high = high, high + 1
    while spent(low) <= target_epsilon and low > math.log(LEAST_NOISE):
        low, high = low - 1, low
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return math.exp(high)


@PROCESS_CACHE.keep(max_entries=4096)
def _curve(noise_multiplier: float, sample_rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at each of `ORDERS`."""
    if noise_multiplier < NO_NOISE:
        return np.full(len(ORDERS), math.inf)
    from opacus.accountants.analysis import rdp

    noise = min(noise_multiplier, MOST_NOISE)
    return np.asarray(
        rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=list(ORDERS))
    )


@PROCESS_CACHE.keep(max_entries=256)
def _prv(history: tuple[Steps, ...], delta: float) -> float:
    """Return Opacus' upper bound, or infinity where it finds none."""
    from opacus.accountants import PRVAccountant

    counts: dict[tuple[float, float], int] = {}
    for steps in history:
        kind = (steps.noise_multiplier, steps.sample_rate)
        counts[kind] = counts.get(kind, 0) + steps.count
    made = PRVAccountant()
    made.history = [(noise, rate, count) for (noise, rate), count in counts.items()]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            bound = float(made.get_epsilon(delta))
        except (RuntimeError, ValueError, ArithmeticError, IndexError):
            return math.inf
    return bound if bound >= 0 else math.inf  # NaN is no bound
