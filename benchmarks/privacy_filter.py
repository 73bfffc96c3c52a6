"""What a privacy filter costs, compared with the accountants that need settings fixed in advance.

A node's `max-epsilon` holds for settings that are chosen by earlier answers, because it is a filter
at one order (`fedattn_app/privacy/privacy_filter.py`). The RDP accountant takes the best of all
orders, and PRV is tighter still; both need all settings in advance. For each kind of run the noise
multiplier is the one with which, by the RDP accountant, the run spends exactly `max_epsilon` at
δ = 1e-5. Then two numbers are computed for the filter and for PRV:

- how many of these steps they allow, relative to the run's own number;
- the noise with which they allow the whole run, relative to that of the RDP accountant.

The kinds of runs are sampling rate × steps: 64 of 490 examples for a part of a round (24 steps) to
many rounds (1,000 steps), 16 of 90, one in a hundred, and evaluation, which uses all examples.

    python benchmarks/privacy_filter.py benchmarks/results/privacy_filter.jsonl

It takes about five minutes on a quiet core and uses no data. It replaces the results file and
prints the table.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from common.markdown import markdown
from common.results import Row, command_line, describe, write

from fedattn_app.privacy.accounting import Steps, epsilon_of, noise_for
from fedattn_app.privacy.privacy_filter import REFERENCE_RUN, PrivacyFilter

DELTA = 1e-5
LIMITS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Titles, sampling rates and numbers of steps.
RUNS = (
    ("64 of 490", 64 / 490, 24),
    ("64 of 490", 64 / 490, 92),
    ("64 of 490", 64 / 490, 1000),
    ("16 of 90", 16 / 90, 60),
    ("1 of 100", 0.01, 100),
    ("1 of 100", 0.01, 1000),
    ("1 of 100", 0.01, 10000),
    ("all", 1.0, 10),
)
PRECISION = 1e-3  # of the noise, relative

Allows = Callable[[Steps], bool]  # whether a method allows these steps


def methods(max_epsilon: float) -> dict[str, Allows]:
    """Return the methods that are compared with the RDP accountant."""
    privacy_filter = PrivacyFilter(max_epsilon, DELTA)
    return {
        "filter": lambda run: privacy_filter.allows([run]),
        "PRV": lambda run: epsilon_of([run], DELTA, "prv") <= max_epsilon,
    }


def most_steps(allows: Allows, run: Steps) -> int:
    """Return the largest number of steps like those of `run` that are allowed."""
    low, high = 0, 1
    while allows(replace(run, count=high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allows(replace(run, count=middle)) else (low, middle)
    return low


def least_noise(allows: Allows, run: Steps) -> float:
    """Return the smallest noise multiplier with which the whole of `run` is allowed."""
    low, high = run.noise_multiplier / 2, 2 * run.noise_multiplier
    assert allows(replace(run, noise_multiplier=high))
    while high / low > 1 + PRECISION:
        middle = (low * high) ** 0.5
        allowed = allows(replace(run, noise_multiplier=middle))
        low, high = (low, middle) if allowed else (middle, high)
    return high


def rows() -> Iterable[Row]:
    """Yield a row for each limit, kind of run and method."""
    for title, rate, count in RUNS:
        for max_epsilon in LIMITS:
            noise = noise_for(max_epsilon, DELTA, Steps(0.0, rate, count))
            assert noise is not None
            run = Steps(noise, rate, count)
            for method, allows in methods(max_epsilon).items():
                yield {
                    "sampled": title,
                    "steps": count,
                    "max_epsilon": max_epsilon,
                    "by": method,
                    "order": PrivacyFilter(max_epsilon, DELTA).order,
                    "noise_multiplier": noise,
                    "allowed": most_steps(allows, run),
                    "needed_noise": least_noise(allows, run),
                }


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation: steps / noise, relative to the RDP accountant's."""
    lines = []
    for title, _, count in RUNS:
        for method in methods(LIMITS[0]):
            found = [
                row
                for row in rows
                if (row["sampled"], row["steps"], row["by"]) == (title, count, method)
            ]
            lines.append([title, f"{count:,}", method, *map(_ratios, found)])
    return markdown(["sampled", "steps", "by", *(f"ε = {limit:g}" for limit in LIMITS)], lines)


def _ratios(row: Row) -> str:
    allowed, noise = row["allowed"] / row["steps"], row["needed_noise"] / row["noise_multiplier"]
    return f"{allowed:.2f} / {noise:.2f}"


def main() -> None:
    """Compare, write the results file and print the table."""
    (output,) = command_line(__doc__, results="results file")
    found = list(rows())
    reference = {"sample rate": REFERENCE_RUN.sample_rate, "steps": REFERENCE_RUN.count}
    write(output, describe({"delta": DELTA, "reference run": reference}), found)
    print(table(found))


if __name__ == "__main__":
    main()
