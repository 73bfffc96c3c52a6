"""A limit on ε that holds for steps whose settings were chosen by the answers to earlier steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.privacy.accounting import (
    RDP_ORDERS,
    Steps,
    conversion,
    divergences,
    noise_for,
    upper_bound,
)

# A run of typical size: an eighth of the examples in each step. Its noise does not matter.
REFERENCE_RUN = Steps(0.0, 1 / 8, 100)


@dataclass(frozen=True)
class PrivacyFilter:
    """A Rényi privacy filter: it says whether a history may grow by further steps.

    The accountant's `epsilon_of` is proven for steps whose noise multipliers and sampling rates
    were fixed before the first of them. A server that sets the noise of its next run by the
    answers to the last one chooses, through them, at which order the bound is smallest. That
    minimum is then a minimum over random numbers, and not a bound. A filter holds the divergence
    at one order α, fixed in advance, against a budget B, fixed in advance, before each step
    (Feldman and Zrnic, "Individual privacy accounting via a Rényi filter", 2021, arXiv 2008.11193:
    their theorem on Rényi filters).

    **Why it holds.** Let P and Q be the distributions of all answers for two adjacent data sets,
    in either order. Let L be the likelihood ratio P / Q of the answers so far, and let ρ be the
    sum of the divergences at α of the steps so far. Given the earlier answers, everything that the
    server can choose (noise, sampling rate, number of steps, clipping norm, optimizer, model,
    examples of others) is fixed, so the next step is one sampled Gaussian mechanism, whose
    divergence at α is at most its own ρ'. Its factor of the ratio therefore has
    E_Q[factor^α | earlier answers] ≤ exp((α - 1) ρ'), and exp(-(α - 1) ρ) L^α never rises in
    expectation. It starts at 1. Because ρ ≤ B whenever the node stops, E_Q[L^α] ≤ exp((α - 1) B).
    This is a divergence of at most B at α for all answers together, and B converts to
    `max_epsilon` at `delta`. A step is tested before it draws anything, and the test depends on
    settings alone, so a refusal reveals nothing of the examples.

    **The order** is the one with which the accountant would find `max_epsilon` for
    `REFERENCE_RUN`. A run that differs much from it can do less than the accountant would allow:
    `benchmarks/privacy_filter.py` measures how much.

    **What it does not cover.** Steps that are missing from the history, examples that change with
    the answers, and two filters together (two ledgers): their bounds add up. `epsilon` of a history
    is how much of the limit is used. For steps chosen by answers the proven bound is `max_epsilon`,
    fixed before the first of them, and not a smaller ε at which a history happened to stop. A node
    whose owner sets a higher limit has one filter with that limit: what the lower limit allowed,
    the higher one allows.

    Attributes:
        max_epsilon: the limit on ε of the whole history, above 0.
        delta: δ, above 0 and below 1.
    """

    max_epsilon: float
    delta: float

    @cached_property
    def order(self) -> float:
        """α, one of `RDP_ORDERS`; it depends on `max_epsilon` and `delta` alone."""
        return float(RDP_ORDERS[self._index])

    @property
    def is_too_small(self) -> bool:
        """Whether `max_epsilon` is too small for any step, at any order.

        This takes no search for an order, which `budget` does.
        """
        return bool(self.max_epsilon <= conversion(self.delta).min())

    @cached_property
    def budget(self) -> float:
        """B, the Rényi divergence at `order` that converts to `max_epsilon` at `delta`.

        If it is not above 0, `max_epsilon` is too small for any step at this `delta`.
        """
        return self.max_epsilon - float(conversion(self.delta)[self._index])

    def allows(self, history: Sequence[Steps]) -> bool:
        """Return whether `history`, with the steps that are to be added, is within the limit."""
        return self._divergence(history) <= self.budget

    def epsilon(self, history: Sequence[Steps]) -> float:
        """Return ε at `delta` of `history` at the fixed order: never below that of `epsilon_of`.

        It is 0 for no steps. It is at most `max_epsilon` if `history` is allowed.
        """
        if not history:
            return 0.0
        converted = float(conversion(self.delta)[self._index])
        return upper_bound(self._divergence(history) + converted)

    @property
    def _index(self) -> int:
        return _order_index(self.max_epsilon, self.delta)

    def _divergence(self, history: Sequence[Steps]) -> float:
        return float(divergences(history)[self._index])


@PROCESS_CACHE.keep(max_entries=64)
def _order_index(max_epsilon: float, delta: float) -> int:
    """Return where the order for this limit is in `RDP_ORDERS`."""
    noise = noise_for(max_epsilon, delta, REFERENCE_RUN)
    terms = conversion(delta)
    if noise is not None:
        run = Steps(noise, REFERENCE_RUN.sample_rate, REFERENCE_RUN.count)
        terms = terms + divergences([run])
    return int(np.argmin(terms))
