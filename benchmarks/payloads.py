"""Bytes that one client sends in a round, by model and scope.

Computed from the shapes of the published models, with six labels and LoRA adapters of rank 8 on all
four projections. Nothing is downloaded. A parameter counts four bytes, and a megabyte is 10⁶ bytes.
The names and shapes in a message add less than one percent, or three percent with adapters on the
smallest model.

    python benchmarks/payloads.py

It takes seconds, writes no file, and prints the table.
"""

import torch
from common.markdown import markdown

from fedattn_app.config import LoraConfig
from fedattn_app.models.lora import add_adapters
from fedattn_app.models.pretrained import build_untrained
from fedattn_app.models.scopes import scope_of

NUM_LABELS = 6
BYTES_PER_PARAMETER = 4  # float32
SCOPES = ("all", "attention+head", "lora", "lora-b")
ARCHITECTURES: dict[str, dict[str, object]] = {
    "BERT-tiny": {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    "DistilBERT": {"model_type": "distilbert"},
    "BERT-base": {"model_type": "bert"},
}


def megabytes(architecture: dict[str, object], shared: str) -> float:
    """Return the size of the parameters that a client sends."""
    with torch.device("meta"):
        model = build_untrained({**architecture, "num_labels": NUM_LABELS})
        if shared.startswith("lora"):
            add_adapters(model, LoraConfig(), seed=1, shared=shared)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    scope = scope_of(shared, "frozen", model.family, sizes)
    parameters: int = sum(sizes[name] for name in scope.shared)
    return parameters * BYTES_PER_PARAMETER / 1e6


def table() -> str:
    """Return the table of the documentation."""
    lines = []
    for name, architecture in ARCHITECTURES.items():
        whole, *parts = (megabytes(architecture, shared) for shared in SCOPES)
        cells = (f"{part:.2f} ({whole / part:.0f}×)" for part in parts)
        lines.append([name, f"{whole:.2f}", *cells])
    return markdown(["MB", *SCOPES], lines)


if __name__ == "__main__":
    print(table())
