"""Time and peak memory of a DP-SGD step, relative to a step without privacy.

The default model (2 layers, width 128, vocabulary 8,192) trains texts of 64 tokens with AdamW. A
step is complete: it draws the batch, passes forward and backward, clips, adds noise and calls the
optimizer. The DP-SGD steps differ only in how the sum of clipped gradients is computed:

- `fedattn`: our book-keeping, which passes 32 examples at a time;
- `Opacus hooks`: Opacus' `GradSampleModule`, which holds every example's gradient;
- `Opacus ghost`: Opacus' ghost clipping (`GradSampleModuleFastGradientClipping`);
- `Opacus ghost, 32`: the same, 32 examples at a time.

Before anything is timed, the sums of all ways are compared on one batch. They agree to 1e-4, and
none of them leaves out a trained parameter. The ways take turns, so that other load on the machine
affects all of them. Times are for batches of 64. Peak memory is that of a process of its own, for
batches of 256.

    python benchmarks/dp_step.py benchmarks/results/dp_step.jsonl

It takes about six minutes on a quiet machine. Each measurement is appended to the results file as
it ends; when started again, the script resumes where the file ends. To measure everything again,
delete the file. At the end it prints the table. Linux only.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import median

import torch
from common.markdown import markdown
from common.measurement import peak_memory, start_peak_memory, text_like
from common.results import Row, append, command_line, describe, read, write
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from fedattn_app.config import Config
from fedattn_app.data.examples import Examples
from fedattn_app.engine.workers import keep_freed_memory
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import view_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.privacy.dp_sgd import Noise, Sampling, train_privately
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import (
    GradientEngine,
    OpacusHooks,
    example_losses,
    trained_parameters,
)
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.loop import set_trainable, train

SCOPES = ("all", "attention+head")
THREADS = (1, 2)
NUM_LABELS = 6
STEPS, BATCH, LARGE_BATCH = 8, 64, 256
TURNS = 9
MAX_GRAD_NORM = 1.0
# The norms of a new model's gradients are 3 to 5: these clip all of them, some and none.
CHECKED_NORMS = (0.1, 3.5, 100.0)
MAX_DIFFERENCE = 1e-4  # relative, between two ways' sums
MEMORY_FLAG = "--memory"  # marks the process whose memory is measured


class OpacusGhost:
    """Opacus' ghost clipping: a backward pass for the norms, and one for the clipped sum."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trained_parameters(model)
        self.model = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
        # Only collects the gradients: noise and step are those of `train_privately`.
        self.optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(self.parameters),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients of `batch` to `sums`, one tensor per trained parameter."""
        for parameter in self.parameters:
            parameter.grad = None  # it may be one of the `sums`
            parameter._norm_sample = None  # type: ignore[attr-defined]
        self.model.max_grad_norm = max_grad_norm
        self.model.enable_hooks()
        # What `DPLossFastGradientClipping` returns, for losses that are already per example.
        loss = DPTensorFastGradientClipping(
            self.model, self.optimizer, example_losses(self.model, batch), "sum"
        )
        loss.backward()
        for total, parameter in zip(sums, self.parameters, strict=True):
            assert parameter.grad is not None
            total.add_(parameter.grad)
            parameter.grad = None

    def close(self) -> None:
        """Remove the hooks."""
        self.model.to_standard_module()


class OpacusGhost32(OpacusGhost):
    """The same with 32 examples at a time, as `BookKeeping` passes them."""

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients of `batch` to `sums`."""
        for index in torch.split(torch.arange(len(batch)), 32):
            super().add(batch[index], max_grad_norm, sums)


# How clipped gradients are summed; None is a step without privacy.
ENGINES: Mapping[str, type[GradientEngine] | None] = {
    "without privacy": None,
    "fedattn": BookKeeping,
    "Opacus hooks": OpacusHooks,
    "Opacus ghost": OpacusGhost,
    "Opacus ghost, 32": OpacusGhost32,
}


class Trainee:
    """A model that trains `STEPS` steps in one way, and the examples for them."""

    def __init__(self, shared: str, engine: str, batch: int) -> None:
        sizes = {"batch-size": batch, "physical-batch-size": batch}
        self.config = Config.from_run_config({"shared": shared, **sizes})
        self.model = build_classifier(self.config, [str(k) for k in range(NUM_LABELS)])
        names = view_arrays(self.model)
        self.trainable = scope_of(shared, "frozen", self.model.family, names).trainable
        shape = self.config.model
        self.examples = text_like(STEPS * batch, shape.max_length, shape.vocabulary, NUM_LABELS)
        self.engine = ENGINES[engine]

    def seconds_per_step(self) -> float:
        """Train, and return the seconds of one step."""
        start = time.perf_counter()
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
                Noise(1.0, MAX_GRAD_NORM),
                self.engine,
                SecretRandom(),
            )
        return (time.perf_counter() - start) / STEPS

    def clipped_sums(self, max_grad_norm: float) -> dict[str, Tensor]:
        """Return the sum of clipped gradients of the first batch, by parameter name."""
        assert self.engine is not None
        set_trainable(self.model, self.trainable)
        self.model.train()
        names = [name for name, value in self.model.named_parameters() if value.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in trained_parameters(self.model)]
        engine = self.engine(self.model)
        try:
            engine.add(self.examples[torch.arange(BATCH)], max_grad_norm, sums)
        finally:
            engine.close()
        return dict(zip(names, sums, strict=True))


def difference_row(shared: str, engine: str, max_grad_norm: float) -> Row:
    """Return the largest relative difference between the clipped sums of `engine` and ours.

    The difference of a parameter's sum is relative to the norm of our sum for that parameter. Exits
    if it is larger than `MAX_DIFFERENCE`, or if a parameter is left out.
    """
    expected = Trainee(shared, "fedattn", BATCH).clipped_sums(max_grad_norm)
    found = Trainee(shared, engine, BATCH).clipped_sums(max_grad_norm)
    assert found.keys() == expected.keys()
    differences = {
        name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()
    }
    left_out = [name for name in differences if not found[name].any()]
    worst = max(differences, key=lambda name: differences[name])
    if left_out or not differences[worst] <= MAX_DIFFERENCE:
        sys.exit(f"{engine} differs: {worst} by {differences[worst]}; left out: {left_out}")
    return {"parameters": len(found), "largest_difference": differences[worst]}


def times_row(shared: str, threads: int) -> Row:
    """Return the seconds of a step without privacy, and the relative time of the others."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    trainees = {engine: Trainee(shared, engine, BATCH) for engine in ENGINES}
    for trainee in trainees.values():
        trainee.seconds_per_step()  # not counted
    turns = [
        {name: trainee.seconds_per_step() for name, trainee in trainees.items()}
        for _ in range(TURNS)
    ]
    plain = "without privacy"
    return {
        "plain_seconds": median(turn[plain] for turn in turns),
        "relative_time": {
            engine: median(turn[engine] / turn[plain] for turn in turns) for engine in ENGINES
        },
        "seconds_by_turn": {engine: [turn[engine] for turn in turns] for engine in ENGINES},
    }


def training_memory(shared: str, engine: str, batch: int) -> float:
    """Return the peak memory of training beyond the loaded model and data, in megabytes."""
    trainee = Trainee(shared, engine, batch)
    before = start_peak_memory()
    trainee.seconds_per_step()
    return peak_memory() - before


def memory_row(shared: str, engine: str, batch: int) -> Row:
    """Return the `training_memory` of a new process."""
    command = [sys.executable, __file__, MEMORY_FLAG, shared, engine, str(batch)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"peak_megabytes": float(process.stdout)}


def measurements() -> Iterator[tuple[Row, Callable[..., Row]]]:
    """Yield what identifies each measurement, and the function that makes it."""
    others = [name for name, engine in ENGINES.items() if engine not in (None, BookKeeping)]
    for shared, engine, norm in product(SCOPES, others, CHECKED_NORMS):
        yield {"shared": shared, "engine": engine, "max_grad_norm": norm}, difference_row
    for shared, engine in product(SCOPES, ENGINES):
        yield {"shared": shared, "engine": engine, "batch": LARGE_BATCH}, memory_row
    for threads, shared in product(THREADS, SCOPES):
        yield {"shared": shared, "threads": threads}, times_row


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation: time and memory relative to no privacy."""
    lines = []
    for shared in SCOPES:
        same = [row for row in rows if row["shared"] == shared]
        measures = {
            f"time, threads: {row['threads']}": list(row["relative_time"].values())
            for row in same
            if "threads" in row
        }
        peaks = [row["peak_megabytes"] for row in same if "peak_megabytes" in row]
        measures["peak memory"] = [peak / peaks[0] for peak in peaks]
        for measure, ratios in measures.items():
            lines.append([shared, measure, *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(["shared", "measure", *ENGINES], lines)


def main() -> None:
    """Check that the sums agree, measure, write the results file and print the table."""
    if sys.argv[1:2] == [MEMORY_FLAG]:
        torch.set_num_threads(1)
        shared, engine, batch = sys.argv[2:]
        print(training_memory(shared, engine, int(batch)))
        return
    (output,) = command_line(__doc__, results="results file")
    settings = {"steps": STEPS, "batch": BATCH, "large batch": LARGE_BATCH, "turns": TURNS}
    rows = read(output).rows if output.exists() else []
    write(output, describe(settings), rows)
    for job, measure in measurements():
        if not any(job.items() <= row.items() for row in rows):
            row = job | measure(**job)
            append(output, row)
            rows.append(row)
            print(row, file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
