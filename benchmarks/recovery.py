"""Which words and labels a server reads out of what one client sends, with linear algebra alone.

The embedding is frozen and known to the server unless it is shared. The first attention layer sees
each token as a = LayerNorm(embedding row), whatever its position (that enters later, by rotation).
The gradient of its query, key and value weights is a sum of products e aᵀ over the tokens. So the
rows of these three gradients span the vectors a of the words that occur, and no others, as long as
fewer words occur than a has features. The idea is that of DAGER (Petrov et al., 2024, arXiv
2405.15586); the layer inputs, the score and the code are this project's own.

A word's score is aᵀ (GᵀG + λ²)⁻¹ a, with the three gradients stacked in G and λ at the rounding of
float32. It is small for a word in the span, and it still ranks words when noise or too many words
fill the whole space. *found* is the share of the words that occur among the equally many words
with the lowest scores. *named* is what the server names without knowing how many occur: all words
below the widest gap between the scores. An update of a local epoch takes the place of the gradient,
without the part that is weight decay, which is known.

The gradient of the head's bias is the mean of softmax(logits) minus the share of each label. The
logits are unknown, so counts of labels are approximate. A server that sends a small head makes the
logits known, and the words are still in the same message.

The clients are the real ones. They hold the first notes of site 0 of `triage`, and the settings are
the defaults except for those in `CASES`. DP-SGD spends ε = 8 on one round, which has less noise
than any round of a longer run; its noise comes from the seed.

    python benchmarks/recovery.py benchmarks/results/recovery.jsonl

It takes about two minutes on a quiet core, replaces the results file and prints the table.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean

import numpy as np
import torch
from common.markdown import markdown
from common.results import Row, command_line, describe, write
from flwr.app import RecordDict
from torch import Tensor

from fedattn_app.clients.base import FrozenClient
from fedattn_app.clients.node_state import ContextState
from fedattn_app.clients.private import PrivateClient
from fedattn_app.config import Config
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import client_data
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import build_classifier
from fedattn_app.privacy.dp_sgd import Sampling
from fedattn_app.privacy.ledger import Ledger
from fedattn_app.types import NDArray

SEEDS = (1, 2, 3)
NUM_CLIENTS = 10
ROUNDING = 1e-8  # λ, relative to the largest singular value
SMALL = 1e-3  # the factor of the head that a server sends to learn the labels
PROJECTIONS = [f"layers.0.attention.{name}.weight" for name in ("query", "key", "value")]
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"

_DP_SGD: Row = {
    "privacy": "dp-sgd",
    "target-epsilon": 8,
    "num-rounds": 1,
    "batch-size": 64,
    "reproducible-noise": True,
}
# What is sent, and the settings with which it is sent.
GRADIENT, SMALL_HEAD = "a gradient", "a gradient at a small head"
CASES: Mapping[str, Row] = {
    GRADIENT: {"strategy": "fedsgd"},
    SMALL_HEAD: {"strategy": "fedsgd"},
    "an epoch of SGD": {"optimizer": "sgd", "learning-rate": 0.1},
    "an epoch of AdamW": {},
    "dp-sgd with SGD": _DP_SGD | {"optimizer": "sgd", "learning-rate": 0.1},
    "dp-sgd with AdamW": _DP_SGD,
}
# Width of the model and number of texts; a client of `triage` has at most 360.
SIZES = ((128, 1), (128, 16), (128, 64), (128, 360), (512, 360))
PRIVATE_SIZES = SIZES[1:]  # ε = 8 at δ = 1e-5 has no meaning for a single text


@dataclass(frozen=True)
class Observed:
    """What the server knows of one client after a message.

    Attributes:
        model: the model, with the parameters that the server sent.
        sums: by name, the gradient, or the update without weight decay, float64.
        num_examples: the number of texts that the client trained on.
    """

    model: Classifier
    sums: Mapping[str, NDArray]
    num_examples: int


def client_of(settings: Row, texts: int, seed: int) -> FrozenClient:
    """Return a client that holds the first `texts` training notes of its site."""
    config = Config.from_run_config({"seed": seed, **settings})
    data = client_data(config.data, config.model, seed, 0, NUM_CLIENTS)
    data = replace(data, train=data.train[torch.arange(texts)])
    labels = label_names(config.data)
    if config.privacy.privacy == "none":
        return FrozenClient(config, labels, data)
    state, ledger = ContextState(RecordDict()), Ledger(RecordDict())
    return PrivateClient(config, labels, data, 0, state, ledger)


def observe(client: FrozenClient, head_factor: float = 1.0) -> Observed:
    """Send the initial parameters, with the head's weight times `head_factor`; read the reply."""
    config = client.config
    model = build_classifier(config, client.labels)
    with torch.no_grad():
        model.get_parameter(HEAD_WEIGHT).mul_(head_factor)
    sent = [model.get_parameter(name).detach().numpy().copy() for name in client.shared]
    is_gradient = config.aggregation.strategy == "fedsgd"
    task = {"local-task": "gradient"} if is_gradient else {}
    returned, _, _ = client.fit(sent, {"server-round": 1, **task})
    kept = 0.0 if is_gradient else _share_kept(client)
    sums = {
        name: after.astype(np.float64) - kept * before.astype(np.float64)
        for name, before, after in zip(client.shared, sent, returned, strict=True)
    }
    return Observed(model, sums, len(client.data.train))


def _share_kept(client: FrozenClient) -> float:
    """Return the share of each initial parameter that weight decay leaves."""
    training, size = client.config.training, len(client.data.train)
    steps = training.local_epochs * math.ceil(size / training.batch_size)
    if isinstance(client, PrivateClient):
        steps = Sampling.of(size, training, public=False).steps
    return float((1 - training.learning_rate * training.weight_decay) ** steps)


@torch.no_grad()
def word_scores(observed: Observed) -> Tensor:
    """Return the score of each id of the vocabulary but padding, float64 (V - 1,)."""
    model = observed.model
    norm = model.get_submodule("layers.0.attention_norm")
    inputs: Tensor = norm(model.token_embedding.weight[1:]).double()  # type: ignore[index]
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    stacked = torch.from_numpy(np.concatenate([observed.sums[name] for name in PROJECTIONS]))
    _, values, directions = torch.linalg.svd(stacked, full_matrices=False)
    weights = 1 / (values**2 + (ROUNDING * values[0]) ** 2)
    return (inputs @ directions.T) ** 2 @ weights


def named(scores: Tensor) -> Tensor:
    """Return the places of the words below the widest gap between the logarithms of the scores."""
    ordered, order = scores.log().sort()
    return order[: int(ordered.diff().argmax()) + 1]


def label_counts(observed: Observed) -> NDArray:
    """Return how many texts have each label, as if all logits were the head's bias, (K,)."""
    bias = observed.model.get_parameter(HEAD_BIAS).detach().double()
    shares = bias.softmax(0).numpy() - observed.sums[HEAD_BIAS]
    return np.round(observed.num_examples * shares)


def occurring(client: FrozenClient, vocabulary: int) -> Tensor:
    """Return whether each id of the vocabulary but padding occurs in the texts, bool (V - 1,)."""
    inputs = client.data.train.inputs
    ids, lengths = inputs["ids"], inputs["lengths"]
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return (torch.bincount(ids[real].long(), minlength=vocabulary) > 0)[1:]


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Return how often a word that occurs has a lower score than one that does not."""
    ranks = (-scores).argsort().argsort().double() + 1
    number, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - number * (number + 1) / 2) / (number * others))


def recovery(case: str, width: int, texts: int, seed: int) -> Row:
    """Attack one message, and return how much was recovered."""
    client = client_of({**CASES[case], "width": width}, texts, seed)
    observed = observe(client, SMALL if case == SMALL_HEAD else 1.0)
    scores = word_scores(observed)
    truth = occurring(client, client.config.model.vocabulary)
    number, gap = int(truth.sum()), named(scores)
    lowest = scores.topk(number, largest=False).indices
    row: Row = {
        "words": number,
        "found": float(truth[lowest].double().mean()),
        "by_chance": number / len(truth),
        "area_under_curve": area_under_curve(scores, truth),
        "named": len(gap),
        "named_rightly": int(truth[gap].sum()),
    }
    if client.config.aggregation.strategy == "fedsgd":
        labels = client.data.train.labels.numpy()
        counts = np.bincount(labels, minlength=len(client.labels))
        row["label_error"] = int(np.abs(label_counts(observed) - counts).max())
    return row


def rows() -> Iterable[Row]:
    """Yield a row for each message."""
    for case in CASES:
        sizes = PRIVATE_SIZES if "privacy" in CASES[case] else SIZES
        for (width, texts), seed in product(sizes, SEEDS):
            job = {"sent": case, "width": width, "texts": texts, "seed": seed}
            yield job | recovery(case, width, texts, seed)


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation: means over the seeds, and the worst label counts."""
    lines = []
    for width, texts in SIZES:
        same = [row for row in rows if (row["width"], row["texts"]) == (width, texts)]
        groups = [[row for row in same if row["sent"] == case] for case in CASES]
        errors = [max(row["label_error"] for row in group) for group in groups[:2]]
        words, chance = (mean(row[key] for row in same) for key in ("words", "by_chance"))
        found = [_found(group) for group in groups]
        lines.append([width, texts, round(words), f"{chance:.1%}", *found, *errors])
    titles = ["width", "texts", "distinct words", "by chance", *CASES]
    return markdown([*titles, "labels off by", "at a small head"], lines)


def _found(rows: Sequence[Row]) -> str:
    """Return the share of words found, or "all" if exactly the words that occur were named."""
    if not rows:
        return "–"
    if all(row["named"] == row["named_rightly"] == row["words"] for row in rows):
        return "all"
    return f"{mean(row['found'] for row in rows):.1%}"


def main() -> None:
    """Attack, write the results file and print the table."""
    (output,) = command_line(__doc__, results="results file")
    torch.set_num_threads(1)
    found = list(rows())
    write(output, describe({"seeds": SEEDS, "threads": 1, "cases": CASES}), found)
    print(table(found))


if __name__ == "__main__":
    main()
