"""What one client sends in a round, by model and scope: the table that the README quotes.

Computed from the shapes of the published models, with six labels and adapters of rank 8 on all
four projections; nothing is downloaded. Megabytes are 10⁶ bytes, four per parameter; names and
shapes add less than one percent to a message, three with adapters on the smallest model.

    python benchmarks/payloads.py
"""

import torch

from fedattn_app.config import LoraConfig
from fedattn_app.models.lora import add_adapters
from fedattn_app.models.pretrained import untrained
from fedattn_app.models.scopes import scope_of

LABELS = 6
SCOPES = ("all", "attention+head", "lora", "lora-b")
SHAPES = {
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
    """Return the size of what travels one way."""
    with torch.device("meta"):
        model = untrained({**architecture, "num_labels": LABELS})
        if shared.startswith("lora"):
            add_adapters(model, LoraConfig(), seed=1, shared=shared)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    scope = scope_of(shared, "frozen", model.family, sizes)
    return 4 * sum(sizes[name] for name in scope.shared) / 1e6


def table() -> str:
    """Return the table as Markdown."""
    lines = [f"| MB | {' | '.join(SCOPES)} |", "|---" * (len(SCOPES) + 1) + "|"]
    for name, architecture in SHAPES.items():
        sizes = [megabytes(architecture, shared) for shared in SCOPES]
        cells = (f"{size:.2f} ({sizes[0] / size:.0f}×)" for size in sizes[1:])
        lines.append(f"| {name} | {sizes[0]:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
