"""The share of a client's training time that unavoidable arithmetic takes.

A client trains one epoch of each of the two models of `simulation.py`, on one thread. torch counts
the floating-point operations of all matrix products, forward and backward. They are compared with
the rate that one core reaches in one large product, by the faster of torch's two libraries.

    python benchmarks/roofline.py benchmarks/results/roofline.jsonl

It takes a few seconds, replaces the results file, and prints the table.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from common.markdown import markdown
from common.measurement import text_like
from common.results import Row, command_line, describe, write
from rivals.task import BATCH, EXAMPLES, LABELS, LEARNING_RATE, SEED, SHAPES
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedattn_app.config import TrainingConfig
from fedattn_app.models.fast_linear import is_faster, product, speed_up
from fedattn_app.models.transformer import build_model
from fedattn_app.training.loop import train

SIDE = 1536  # of the square matrices in the large product
TURNS = 15


def median_seconds(task: Callable[[], object]) -> float:
    """Return the median time of `task` over `TURNS` calls."""
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return median(times)


def product_speeds() -> list[Row]:
    """Return a row for each library with the GFLOP/s of a large product."""
    x, weight = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    products = {"torch": lambda: F.linear(x, weight)}
    if is_faster():
        products["oneDNN"] = lambda: product(x, weight)
    return [
        {"product_by": name, "GFLOP_per_second": 2 * SIDE**3 / median_seconds(task) / 1e9}
        for name, task in products.items()
    ]


def client_row(shape: str, peak_speed: float) -> Row:
    """Return GFLOP and seconds of a client's epoch, and the share of time at `peak_speed`."""
    config = SHAPES[shape]
    model = build_model(config, LABELS, SEED)
    examples = text_like(EXAMPLES, config.max_length, config.vocabulary, LABELS)
    training = TrainingConfig(batch_size=BATCH, learning_rate=LEARNING_RATE)
    names = {name for name, _ in model.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        train(model, names, examples, training, SEED)
    speed_up(model)
    seconds = median_seconds(lambda: train(model, names, examples, training, SEED))
    gflop = counter.get_total_flops() / 1e9
    return {
        "shape": shape,
        "GFLOP": gflop,
        "seconds": seconds,
        "share": gflop / peak_speed / seconds,
    }


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    lines = [
        [row["shape"], f"{row['GFLOP']:.2f}", f"{row['seconds'] * 1e3:.1f}", f"{row['share']:.0%}"]
        for row in rows
        if "shape" in row
    ]
    speeds = ", ".join(
        f"{row['product_by']} {row['GFLOP_per_second']:.0f} GFLOP/s"
        for row in rows
        if "product_by" in row
    )
    clients = markdown(["model", "GFLOP per client", "ms", "unavoidable share of the time"], lines)
    return f"{clients}\n\nOne large product: {speeds}."


def main() -> None:
    """Measure, write the results file and print the table."""
    (output,) = command_line(__doc__, results="results file")
    torch.set_num_threads(1)
    speeds = product_speeds()
    peak_speed = max(row["GFLOP_per_second"] for row in speeds)
    rows = [*speeds, *(client_row(shape, peak_speed) for shape in SHAPES)]
    write(output, describe({"side": SIDE}), rows)
    print(table(rows))


if __name__ == "__main__":
    main()
