"""The extension points: each test adds one thing as docs/architecture.md shows, and runs it."""

import numpy as np
import pytest
import torch
from helpers.runs import QUICK
from torch import nn

from fedattn_app.config import MODEL_SIZES, PARTITIONERS, DataConfig, ModelConfig, ModelSize
from fedattn_app.data import dataset_kinds, partition
from fedattn_app.data.dataset_kinds import DatasetKind
from fedattn_app.data.loading import client_data
from fedattn_app.data.sources import Table
from fedattn_app.metrics import METRICS
from fedattn_app.models import factory, families
from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.models.families import Family
from fedattn_app.models.transformer import build_model
from fedattn_app.simulation import simulate


@pytest.fixture
def run(tmp_path):
    """Runs a small federation of 2 clients in this process."""

    def run(**settings):
        keys = {name.replace("_", "-"): value for name, value in settings.items()}
        run_config = {**QUICK, "num-rounds": 1, "output-dir": str(tmp_path / "run"), **keys}
        return simulate(run_config, 2, workers=1, quiet=True)

    return run


def test_a_pretrained_family_is_one_row(monkeypatch, pretrained_folder, run):
    mpnet = Family(
        attention=r"mpnet\.encoder\.layer\.\d+\.attention\.attn\.",
        query="q",
        key="k",
        value="v",
        output="o",
        head=r"classifier\..*",
        positions_after_padding=True,
    )
    monkeypatch.setitem(families.FAMILIES, "mpnet", mpnet)
    folder = pretrained_folder("mpnet")
    settings = {"model": str(folder), "vocabulary": 8192, "learning_rate": 5e-4}
    result = run(shared="attention", **settings)
    shared = {name for name in result.arrays if ".attention.attn." in name}
    assert len(shared) == 2 * 4 * 2  # layers, projections, weight and bias
    assert result.summary["shared_parameters"] == sum(result.arrays[k].size for k in shared)


class BagOfWords(TextClassifier):
    """Scores the labels by the mean of the tokens' embeddings."""

    family = "bag-of-words"

    def __init__(self, config, num_labels):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.size.width, padding_idx=0)
        self.head = nn.Linear(config.size.width, num_labels)

    @property
    def token_embedding(self):
        return self.embedding

    def forward(self, batch):
        ids, lengths = batch["ids"], batch["lengths"]
        features = self.embedding(ids) * real_tokens(ids, lengths)[..., None]
        return self.head(features.sum(1) / lengths[:, None])


def build_bag_of_words(config, num_labels, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BagOfWords(config, num_labels)


@pytest.mark.parametrize("privacy", ["none", "dp-sgd"])
def test_an_architecture_is_one_file_and_one_row_in_each_of_two_registries(
    monkeypatch, run, privacy
):
    size = ModelSize(layers=1, width=16, heads=1, feedforward=1)
    monkeypatch.setitem(MODEL_SIZES, "bag-of-words", size)
    monkeypatch.setitem(factory.ARCHITECTURES, "bag-of-words", build_bag_of_words)
    noise = {"noise_multiplier": 1.0} if privacy == "dp-sgd" else {}
    result = run(model="bag-of-words", shared="all", privacy=privacy, **noise)
    assert set(result.arrays) == {"embedding.weight", "head.weight", "head.bias"}
    assert result.summary["shared_parameters"] == 512 * 16 + 16 * 6 + 6


def test_every_size_has_an_architecture():
    assert set(factory.ARCHITECTURES) == set(MODEL_SIZES)
    assert set(factory.ARCHITECTURES.values()) == {build_model}


class Colours(DatasetKind):
    """Texts that name a colour, 40 for each client and 20 for the server."""

    def label_names(self, config):
        return ("blue", "red")

    def training_table(self, config, seed, num_clients):
        return self._table(40 * num_clients)

    def test_table(self, config, seed):
        return self._table(20)

    def _table(self, count):
        labels = ["blue" if k % 2 else "red" for k in range(count)]
        return Table([f"a {label} thing {k}" for k, label in enumerate(labels)], labels, "colours")


def test_a_dataset_kind_is_one_file_and_one_row(monkeypatch, run):
    monkeypatch.setitem(dataset_kinds.DATASET_KINDS, "colours", Colours())
    result = run(dataset="colours", shared="all", num_rounds=4, learning_rate=0.02)
    assert set(result.summary["recall_per_class"]) == {"blue", "red"}
    assert result.summary["accuracy"] == 1.0


def sorted_by_label(config, table, num_clients, seed):
    """Give each client a contiguous part of the rows sorted by label."""
    order = np.argsort(table.labels, kind="stable")
    return [part.tolist() for part in np.array_split(order, num_clients)]


def test_a_partitioner_is_one_function_and_one_row_in_each_of_two_registries(monkeypatch, run):
    monkeypatch.setitem(partition.PARTITION_FUNCTIONS, "sorted", sorted_by_label)
    monkeypatch.setitem(PARTITIONERS, "sorted", ())
    monkeypatch.setitem(dataset_kinds.DATASET_KINDS, "colours", Colours())
    config, model = DataConfig(dataset="colours", partitioner="sorted"), ModelConfig()
    for client in range(2):
        data = client_data(config, model, 1, client, 2)
        assert set(data.train.labels.tolist()) == {client}
    assert run(dataset="colours", partitioner="sorted").history[-1]["clients"] == 2


def balanced_accuracy(scores):
    """The mean recall over the labels that have examples, 0 to 1."""
    recalls = [recall for recall in scores.recall if recall is not None]
    return float(np.mean(recalls)) if recalls else 0.0


def test_a_metric_is_one_function_and_one_row(monkeypatch, run):
    monkeypatch.setitem(METRICS, "balanced_accuracy", balanced_accuracy)
    result = run(shared="all")
    recalls = result.summary["recall_per_class"].values()
    assert result.history[-1]["central"]["balanced_accuracy"] == pytest.approx(
        np.mean([recall for recall in recalls if recall is not None])
    )
