"""The ε of a history of sampled Gaussian mechanisms, and the noise that a budget requires.

A step that samples each example with probability q and adds noise of σ times the clipping norm is
a sampled Gaussian mechanism. Opacus computes (ε, δ) of many such steps, under adding or removing
one example, by Rényi differential privacy (RDP: Mironov, Talwar and Zhang, 2019, arXiv 1908.10530)
or by privacy loss random variables (PRV: Gopi, Lee and Wutschitz, 2021, arXiv 2106.02848). Both are
upper bounds. PRV is the tighter one, to within 0.01. Opacus is imported where it is used, because
importing it takes longer than importing torch.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from fedattn_app.cache import PROCESS_CACHE

# Above order 1024 Opacus' binomial coefficients overflow. A small ε needs large orders.
RDP_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
# The memory and time of Opacus' PRV grow with ε. Above this ε, RDP is precise enough.
MAX_PRV_EPSILON = 30.0
# They grow with the number of steps too: with these, up to some seconds and a gigabyte for each of
# the twenty ε that the search for a noise multiplier takes. Above it, RDP has to do.
MAX_PRV_STEPS = 100_000
# The range of noise multipliers to search. More noise is accounted for as the maximum.
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 1e-2, 1e7
# Below this noise multiplier the divergence overflows, and ε counts as infinite.
NEGLIGIBLE_NOISE_MULTIPLIER = 1e-6
# A budget is spent when the rest of it needs more than this many times the noise multiplier that
# the whole budget would need.
MAX_NOISE_INCREASE = 10.0
# By how much an ε may exceed the target, as a fraction of it.
ROUNDING_TOLERANCE = 1e-6
# Where the search for the logarithm of a noise multiplier stops.
LOG_NOISE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Steps:
    """Identical steps of a sampled Gaussian mechanism.

    Attributes:
        noise_multiplier: σ, the noise's standard deviation in units of the sensitivity, at least 0.
        sample_rate: q, the probability of each example to be in a step, above 0 and at most 1.
        count: the number of steps, above 0.
    """

    noise_multiplier: float
    sample_rate: float
    count: int


def epsilon_of(history: Sequence[Steps], delta: float, accountant: str = "rdp") -> float:
    """Return an upper bound of ε at `delta` for all of `history`.

    It is 0 for an empty history, and infinite if a step has less noise than
    `NEGLIGIBLE_NOISE_MULTIPLIER`.

    Args:
        history: the steps, in any order.
        delta: δ, above 0 and below 1.
        accountant: ``rdp`` or ``prv``.
    """
    if not history:
        return 0.0
    bound = upper_bound(float((divergences(history) + conversion(delta)).min()))
    if accountant == "rdp" or bound > MAX_PRV_EPSILON:
        return bound
    return min(bound, _prv_epsilon(tuple(history), delta))


def divergences(history: Sequence[Steps]) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of all of `history` at each of `RDP_ORDERS`, (orders,)."""
    total = np.zeros(len(RDP_ORDERS))
    for steps in history:
        total += steps.count * _rdp_of_step(steps.noise_multiplier, steps.sample_rate)
    return total


def conversion(delta: float) -> npt.NDArray[np.float64]:
    """Return ε at `delta` minus the Rényi divergence, for each of `RDP_ORDERS`, (orders,).

    Balle, Barthe, Gaboardi, Hsu and Sato, "Hypothesis testing interpretations and Rényi
    differential privacy", 2020, arXiv 1905.09982, theorem 21.
    """
    orders = np.array(RDP_ORDERS)
    converted: npt.NDArray[np.float64] = (math.log(1 / delta) - np.log(orders)) / (orders - 1)
    return converted + np.log1p(-1 / orders)


def upper_bound(epsilon: float) -> float:
    """Return a converted ε as a bound: 0 if it is below 0, and infinity if it is not a number."""
    return math.inf if math.isnan(epsilon) else max(0.0, epsilon)


def is_within(epsilon: float, target: float) -> bool:
    """Return whether ε is at most `target`, up to rounding; a `target` of 0 is no limit."""
    return not target or epsilon <= target * (1 + ROUNDING_TOLERANCE)


def noise_for(
    target_epsilon: float,
    delta: float,
    planned: Steps,
    history: Sequence[Steps] = (),
    accountant: str = "rdp",
) -> float | None:
    """Return the smallest noise multiplier with which `planned` after `history` fits the budget.

    It is that of `smallest_noise`. Returns None if no noise is enough, either because `history`
    has spent too much or because the target is too small. Returns None too if the budget is spent:
    the rest would need more than `MAX_NOISE_INCREASE` times the noise that the whole budget needs.

    Args:
        target_epsilon: the limit on ε of `history` and `planned` together.
        delta: δ, above 0 and below 1.
        planned: the steps still to run; their own noise multiplier is ignored.
        history: the steps already run.
        accountant: ``rdp`` or ``prv``.
    """

    def fits(before: Sequence[Steps], steps: Steps) -> bool:
        return epsilon_of([*before, steps], delta, accountant) <= target_epsilon

    noise = smallest_noise(planned, partial(fits, history))
    if noise is None or not history:
        return noise
    whole_budget = smallest_noise(planned, partial(fits, ()))
    if whole_budget is None or noise > MAX_NOISE_INCREASE * whole_budget:
        return None
    return noise


def smallest_noise(planned: Steps, fits: Callable[[Steps], bool]) -> float | None:
    """Return the smallest noise multiplier with which the steps `planned` fit, or None.

    The search stops within 0.1 % above the smallest one, or below `MIN_NOISE_MULTIPLIER`.

    Args:
        planned: the steps; their own noise multiplier is ignored.
        fits: whether steps with a noise multiplier fit. More noise must fit if less does.
    """

    def is_enough(log_noise: float) -> bool:
        return fits(replace(planned, noise_multiplier=math.exp(log_noise)))

    if not is_enough(math.log(MAX_NOISE_MULTIPLIER)):
        return None
    low, high = -1.0, 0.0
    while not is_enough(high):
        low, high = high, high + 1
    while is_enough(low) and low > math.log(MIN_NOISE_MULTIPLIER):
        low, high = low - 1, low
    while high - low > LOG_NOISE_TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return math.exp(high)


@PROCESS_CACHE.keep(max_entries=4096)
def _rdp_of_step(noise_multiplier: float, sample_rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at each of `RDP_ORDERS`, (orders,)."""
    if noise_multiplier < NEGLIGIBLE_NOISE_MULTIPLIER:
        return np.full(len(RDP_ORDERS), math.inf)
    from opacus.accountants.analysis import rdp

    noise = min(noise_multiplier, MAX_NOISE_MULTIPLIER)
    return np.asarray(
        rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=list(RDP_ORDERS))
    )


@PROCESS_CACHE.keep(max_entries=256)
def _prv_epsilon(history: tuple[Steps, ...], delta: float) -> float:
    """Return Opacus' upper bound of ε, or infinity if it finds none or the steps are too many."""
    if sum(steps.count for steps in history) > MAX_PRV_STEPS:
        return math.inf
    from opacus.accountants import PRVAccountant

    counts: dict[tuple[float, float], int] = {}
    for steps in history:
        mechanism = (steps.noise_multiplier, steps.sample_rate)
        counts[mechanism] = counts.get(mechanism, 0) + steps.count
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, count) for (noise, rate), count in counts.items()]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            bound = float(accountant.get_epsilon(delta))
        except (RuntimeError, ValueError, ArithmeticError, IndexError):
            return math.inf
    return bound if bound >= 0 else math.inf  # NaN is not a bound
