"""Match the outputs of a checkpoint's head to the labels of a run, by name.

A checkpoint lists its labels in an order of its own. Its head is of use only if the outputs are
brought into the order of the run's labels, and only if both have the same labels.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from fedattn_app.label_text import normalise_label

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_NAMES = 4  # label names in a message

# What transformers calls the labels of a checkpoint that does not name them.
_PLACEHOLDER = re.compile(r"LABEL_(\d+)", re.IGNORECASE)


def label_order(architecture: "PreTrainedConfig", labels: Sequence[str]) -> list[int] | None:
    """Return the number of the checkpoint's output for each of `labels`; None if they differ.

    Names match as `normalise_label` writes them, or else without regard to case if each then has
    exactly one partner. Placeholders such as LABEL_0 match labels that are the numbers from 0.
    """
    theirs = checkpoint_labels(architecture)
    ours = [normalise_label(label) for label in labels]
    if sorted(ours) == sorted(str(number) for number in range(len(theirs))):
        theirs = [_PLACEHOLDER.sub(r"\1", name) for name in theirs]
    for spelling in (str, str.casefold):
        numbers = {spelling(name): number for number, name in enumerate(theirs)}
        wanted = [spelling(label) for label in ours]
        if len(numbers) == len(theirs) == len(wanted) and numbers.keys() == set(wanted):
            return [numbers[label] for label in wanted]
    return None


def checkpoint_labels(architecture: "PreTrainedConfig") -> list[str]:
    """Return the checkpoint's label names by output; empty if some outputs have no name."""
    names = {int(number): name for number, name in (architecture.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        return []
    return [normalise_label(names[number]) for number in range(len(names))]


def set_labels(architecture: "PreTrainedConfig", labels: Sequence[str]) -> None:
    """Give the model one output for each of `labels`, with their names, and one right label."""
    architecture.id2label = dict(enumerate(labels))
    architecture.label2id = {label: number for number, label in enumerate(labels)}
    architecture.problem_type = None


def label_axes(model: "PreTrainedModel") -> dict[str, list[int]]:
    """Return the parameters with one entry per label, and which of their axes count labels."""
    from transformers import AutoModelForSequenceClassification

    wider = deepcopy(model.config)
    wider.num_labels = len(model.config.id2label or ()) + 1
    with torch.device("meta"):
        other = AutoModelForSequenceClassification.from_config(wider, trust_remote_code=False)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    axes = {
        name: [k for k, size in enumerate(tensor.shape) if size != shapes[name][k]]
        for name, tensor in model.state_dict().items()
    }
    return {name: changed for name, changed in axes.items() if changed}


@torch.no_grad()
def reorder_outputs(
    model: "PreTrainedModel", axes: Mapping[str, Sequence[int]], order: Sequence[int]
) -> None:
    """Make output k of `model` the one that had the number ``order[k]``."""
    parameters = model.state_dict()
    for name, changed in axes.items():
        for axis in changed:
            moved = parameters[name].index_select(axis, torch.tensor(order))
            parameters[name].copy_(moved)


def listed(names: Sequence[str]) -> str:
    """Return the first of `names` for a message."""
    more = [f"… ({len(names)})"] if len(names) > MAX_NAMES else []
    return ", ".join([*names[:MAX_NAMES], *more])
