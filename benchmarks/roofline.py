"""What share of a client's training is arithmetic that cannot be avoided.

The two shapes of `simulation.py`. The multiplications and additions of all matrix products, forward
and back, are counted by torch; the most that a core does in a second is that of one large product
by the faster of torch's two libraries. One thread.

    python benchmarks/roofline.py benchmarks/results/roofline.json
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from measure import text_like
from rivals.task import BATCH, EXAMPLES, LABELS, LEARNING_RATE, SEED, SHAPES
from sweep import about
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedattn_app.config import ModelConfig, TrainingConfig
from fedattn_app.models.fast_linear import is_faster, product, speed_up
from fedattn_app.models.transformer import build_model
from fedattn_app.training.loop import train

SIDE = 1536
TURNS = 15


def seconds(task: Callable[[], object]) -> float:
    """Return the median time of `task`."""
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        task()
        times.append(time.perf_counter() - began)
    return median(times)


def peak() -> dict[str, float]:
    """Return the GFLOP/s of a large product by each library."""
    x, weight = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    ways = {"torch": lambda: F.linear(x, weight)}
    if is_faster():
        ways["oneDNN"] = lambda: product(x, weight)
    return {name: 2 * SIDE**3 / seconds(way) / 1e9 for name, way in ways.items()}


def client(shape: ModelConfig, fastest: float) -> dict[str, float]:
    """Return GFLOP and seconds of a client's epoch, and the share of what cannot be avoided."""
    model = build_model(shape, LABELS, SEED)
    examples = text_like(EXAMPLES, shape.max_length, shape.vocabulary, LABELS)
    config = TrainingConfig(batch_size=BATCH, learning_rate=LEARNING_RATE)
    names = {name for name, _ in model.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        train(model, names, examples, config, SEED)
    speed_up(model)
    took = seconds(lambda: train(model, names, examples, config, SEED))
    gflop = counter.get_total_flops() / 1e9
    return {"GFLOP": gflop, "seconds": took, "share": gflop / fastest / took}


def main() -> None:
    """Measure, write the JSON and print the table."""
    torch.set_num_threads(1)
    speeds = peak()
    clients = {name: client(shape, max(speeds.values())) for name, shape in SHAPES.items()}
    results = {"about": about({"side": SIDE}), "GFLOP per second": speeds, "client": clients}
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
    print(", ".join(f"{name}: {speed:.0f} GFLOP/s" for name, speed in speeds.items()))
    print("\n| | GFLOP per client | ms | share that cannot be avoided |\n|---|---|---|---|")
    for name, row in clients.items():
        milliseconds = row["seconds"] * 1e3
        print(f"| {name} | {row['GFLOP']:.2f} | {milliseconds:.1f} | {row['share']:.0%} |")
    print(json.dumps({name: round(row["share"], 3) for name, row in clients.items()}))


if __name__ == "__main__":
    main()
