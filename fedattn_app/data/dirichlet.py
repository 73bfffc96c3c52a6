"""Random shares of a Dirichlet distribution, rounded to whole numbers, the same on every machine.

Shares drawn from Dirichlet(α) are independent gamma variates of shape α, divided by their sum.
Gamma variates are drawn by rejection (Marsaglia and Tsang, "A simple method for generating gamma
variables", 2000). A rejection and a rounding are decisions, and the logarithms of the C library
differ between processors in their last bit. All arithmetic is therefore in decimal numbers, whose
operations Python defines to the last digit.
"""

from decimal import Context, Decimal, localcontext
from itertools import accumulate, pairwise
from random import Random

PRECISION = Context(prec=20)  # 20 decimal digits


def dirichlet_counts(total: int, alpha: float, num_parts: int, random: Random) -> list[int]:
    """Divide `total` into `num_parts` counts, by shares drawn from Dirichlet(α, …, α).

    The first k counts together are the sum of the first k shares times `total`, rounded down.
    """
    with localcontext(PRECISION):
        logarithms = [_log_gamma_variate(Decimal(alpha), random) for _ in range(num_parts)]
        largest = max(logarithms)  # a small α gives variates below every float
        variates = [(logarithm - largest).exp() for logarithm in logarithms]
        partial_sums = list(accumulate(variates))
        ends = [int(total * (partial / partial_sums[-1])) for partial in partial_sums]
    return [end - start for start, end in pairwise([0, *ends])]


def _log_gamma_variate(shape: Decimal, random: Random) -> Decimal:
    """Draw from the gamma distribution with scale 1 and return the logarithm."""
    if shape < 1:
        return _log_gamma_variate(shape + 1, random) + _uniform(random).ln() / shape
    d = shape - Decimal(1) / 3
    while True:
        x = _normal(random)
        v = (1 + x / (9 * d).sqrt()) ** 3
        if v > 0 and _uniform(random).ln() < x * x / 2 + d * (1 - v + v.ln()):
            return (d * v).ln()


def _normal(random: Random) -> Decimal:
    """Draw from N(0, 1) by the polar method (Marsaglia and Bray, 1964)."""
    while True:
        x, y = (2 * _uniform(random) - 1 for _ in range(2))
        square = x * x + y * y
        if 0 < square < 1:
            return x * (-2 * square.ln() / square).sqrt()


def _uniform(random: Random) -> Decimal:
    """Draw one of the multiples of 2⁻⁵³ above 0 and up to 1."""
    return Decimal(1 - random.random())
