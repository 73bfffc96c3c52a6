"""Time and peak memory of a step of DP-SGD against one without privacy, side by side.

The default model (2 layers, width 128, vocabulary 8,192), texts of 64 tokens, AdamW. A step is all
of it: drawing the batch, passing forward and back, clipping, noise and optimizer. Each way takes
its turn, so that what else the machine does falls on all of them; memory is that of a process of
its own, with batches of 256.

    python benchmarks/dp_step.py benchmarks/results/dp_step.json
"""

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import peak, start_peak, text_like
from sweep import about

from fedattn_app.config import Config
from fedattn_app.engine.workers import keep_freed_memory
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import view_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.privacy.dp_sgd import Noise, Sampling, train_privately
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import Engine, Hooks
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.loop import train

# How gradients are clipped; without any, a step has no privacy.
ENGINES: dict[str, type[Engine] | None] = {
    "plain": None,
    "book-keeping": BookKeeping,
    "Opacus": Hooks,
}
SCOPES = ("all", "attention+head")
LABELS = 6
STEPS, BATCH, LARGE_BATCH = 8, 64, 256
TURNS = 7


class Trainee:
    """A model that trains a few steps in one way."""

    def __init__(self, shared: str, engine: str, batch: int) -> None:
        sizes = {"batch-size": batch, "physical-batch-size": batch}
        self.config = Config.from_run_config({"shared": shared, **sizes})
        self.model = build_classifier(self.config, LABELS)
        names = view_arrays(self.model)
        self.trainable = scope_of(shared, "frozen", self.model.family, names).trainable
        shape = self.config.model
        self.examples = text_like(STEPS * batch, shape.max_length, shape.vocabulary, LABELS)
        self.engine = ENGINES[engine]

    def step_seconds(self) -> float:
        """Train and return the seconds of one step."""
        began = time.perf_counter()
        training = self.config.training
        if self.engine is None:
            train(self.model, self.trainable, self.examples, training, seed=1)
        else:
            train_privately(
                self.model,
                self.trainable,
                self.examples,
                training,
                Sampling(1 / STEPS, STEPS, training.batch_size),
                Noise(1.0, 1.0),
                self.engine,
                SecretRandom(),
            )
        return (time.perf_counter() - began) / STEPS


def times(shared: str, threads: int) -> dict[str, Any]:
    """Return the seconds of a plain step, and what the others take of it, by turns."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    trainees = {engine: Trainee(shared, engine, BATCH) for engine in ENGINES}
    for trainee in trainees.values():
        trainee.step_seconds()
    turns = [{name: t.step_seconds() for name, t in trainees.items()} for _ in range(TURNS)]
    return {
        "shared": shared,
        "threads": threads,
        "plain_seconds": median(turn["plain"] for turn in turns),
        "relative_time": {
            engine: median(turn[engine] / turn["plain"] for turn in turns) for engine in ENGINES
        },
    }


def memory(shared: str, engine: str) -> float:
    """Return the megabytes that training takes at its peak beside the loaded model and data."""
    trainee = Trainee(shared, engine, LARGE_BATCH)
    before = start_peak()
    trainee.step_seconds()
    return peak() - before


def in_own_process(shared: str, engine: str) -> float:
    """Return `memory` of a process of its own."""
    command = [sys.executable, __file__, shared, engine]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, print the table and the ratios of our engine, and write the JSON."""
    if sys.argv[1] in SCOPES:  # the process whose memory is measured
        torch.set_num_threads(1)
        print(memory(*sys.argv[1:3]))
        return
    peaks = {
        shared: {engine: in_own_process(shared, engine) for engine in ENGINES} for shared in SCOPES
    }
    rows = [times(shared, threads) for shared, threads in product(SCOPES, (1, 2))]
    header = about({"steps": STEPS, "batch": BATCH, "large batch": LARGE_BATCH, "turns": TURNS})
    results = {"about": header, "times": rows, "peak_megabytes_of_training": peaks}
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
    print(f"| shared | threads | step, ms |{'|'.join(f' {name} ' for name in ENGINES)}|")
    print("|---" * (3 + len(ENGINES)) + "|")
    for row in rows:
        ratios = " | ".join(f"{ratio:.2f}" for ratio in row["relative_time"].values())
        milliseconds = row["plain_seconds"] * 1e3
        print(f"| {row['shared']} | {row['threads']} | {milliseconds:.1f} | {ratios} |")
    print(f"\n| shared |{'|'.join(f' {name}, MB ' for name in ENGINES)}|")
    print("|---" * (1 + len(ENGINES)) + "|")
    for shared, of_engine in peaks.items():
        print(f"| {shared} | {' | '.join(f'{value:.0f}' for value in of_engine.values())} |")
    ours: dict[str, dict[str, float]] = {shared: {} for shared in SCOPES}
    for row in rows:
        ours[row["shared"]][str(row["threads"])] = round(row["relative_time"]["book-keeping"], 3)
    print(json.dumps(ours))


if __name__ == "__main__":
    main()
