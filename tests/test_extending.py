"""The extension points: the examples of docs/architecture.md are taken from the page and run.

A row is evaluated as the page has it. What it names as ``module:name`` is put into `sys.modules`,
where a maintainer would write the file.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.runs import QUICK

from fedattn_app.config import (
    CODECS,
    MODEL_SIZES,
    PARTITIONERS,
    PROTECTIONS,
    DataConfig,
    ModelConfig,
    ModelSize,
    Registered,
)
from fedattn_app.data.dataset_kinds import DATASET_KINDS
from fedattn_app.data.loading import client_data
from fedattn_app.metrics import METRICS
from fedattn_app.models.families import FAMILIES, Family
from fedattn_app.simulation import simulate
from fedattn_app.transport.lazy_array import lazy_record

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
REGISTRIES = {
    "codec": CODECS,
    "privacy": PROTECTIONS,
    "family": FAMILIES,
    "model": MODEL_SIZES,
    "dataset": DATASET_KINDS,
    "partitioner": PARTITIONERS,
    "score": METRICS,
}


def example(key):
    """The blocks of Python below the mark of an example: the file if there is one, and the row."""
    section = PAGE.split(f"<!-- example: {key} -->")[1].split("\n##")[0]
    blocks = re.findall(r"```python\n(.*?)\n```", section, re.S)
    assert 1 <= len(blocks) <= 2
    return blocks[:-1], blocks[-1]


@pytest.fixture
def added(monkeypatch):
    """Adds an example of the page; returns the name of its row."""

    def add(key):
        files, row = example(key)
        written = {}
        for code in files:
            exec(compile(code, f"docs/architecture.md, {key}", "exec"), written)
        for module, name in re.findall(r'"(fedattn_app[\w.]+):(\w+)"', row):
            path = Path(*module.split(".")).with_suffix(".py")
            assert not (Path(__file__).parents[1] / path).exists()
            made = ModuleType(module)
            setattr(made, name, written[name])
            monkeypatch.setitem(sys.modules, module, made)
        names = {"Registered": Registered, "ModelSize": ModelSize, "Family": Family, **written}
        ((name, value),) = eval(f"{{{row}}}", names).items()
        assert name not in REGISTRIES[key]
        monkeypatch.setitem(REGISTRIES[key], name, value)
        return name

    return add


@pytest.fixture
def run(tmp_path):
    """Runs a small federation of 2 clients in this process."""

    def run(**settings):
        keys = {name.replace("_", "-"): value for name, value in settings.items()}
        run_config = {**QUICK, "num-rounds": 1, "output-dir": str(tmp_path / "run"), **keys}
        return simulate(run_config, 2, workers=1, quiet=True)

    return run


def codec_arrays():
    """Arrays of every kind that a model may have."""
    return {
        "weight": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
        "scalar": np.asarray(1.5, dtype=np.float32),
        "counts": np.arange(4),
    }


def test_the_page_has_an_example_for_every_registry():
    assert re.findall(r"<!-- example: (\w+) -->", PAGE) == list(REGISTRIES)


def test_a_codec(added, run, tmp_path):
    name = added("codec")
    codec, arrays = CODECS[name].load()(), codec_arrays()
    sent = lazy_record(arrays)
    for key, array in codec.decode(codec.encode(arrays), sent).items():
        assert (array.numpy().dtype, array.numpy().shape) == (arrays[key].dtype, arrays[key].shape)
        np.testing.assert_allclose(array.numpy(), arrays[key], rtol=0.01)
    half = run(codec=name)
    whole = run(output_dir=str(tmp_path / "whole"))
    assert half.history[-1]["failures"] == 0
    assert (
        half.summary["bytes_up_per_client_round"]
        < 0.6 * (whole.summary["bytes_up_per_client_round"])
    )
    for name, array in half.arrays.items():
        np.testing.assert_allclose(array, whole.arrays[name], rtol=0.02, atol=1e-3)


def test_a_protection(added, run):
    result = run(privacy=added("privacy"))
    assert result.summary["privacy"] == "equal-weights"
    assert result.summary["privacy_note"] == "every client counts the same"


def test_a_pretrained_family(added, run, pretrained_folder):
    folder = pretrained_folder(added("family"))
    settings = {"model": str(folder), "vocabulary": 8192, "learning_rate": 5e-4}
    result = run(shared="attention", **settings)
    shared = {name for name in result.arrays if ".attention.attn." in name}
    assert len(shared) == 2 * 4 * 2  # layers, projections, weight and bias
    assert result.summary["shared_parameters"] == sum(result.arrays[k].size for k in shared)


@pytest.mark.parametrize("privacy", ["none", "dp-sgd"])
def test_an_architecture(added, run, privacy):
    noise = {"noise_multiplier": 1.0} if privacy == "dp-sgd" else {}
    result = run(model=added("model"), shared="all", privacy=privacy, **noise)
    assert set(result.arrays) == {"embedding.weight", "head.weight", "head.bias"}
    assert result.summary["shared_parameters"] == 512 * 64 + 64 * 6 + 6


def test_a_dataset_kind(added, run):
    result = run(dataset=added("dataset"), shared="all", num_rounds=4, learning_rate=0.02)
    assert set(result.summary["recall_per_class"]) == {"blue", "red"}
    assert result.summary["accuracy"] == 1.0


def test_a_partitioner(added, run):
    names = {"dataset": added("dataset"), "partitioner": added("partitioner")}
    for client in range(2):
        data = client_data(DataConfig(**names), ModelConfig(), 1, client, 2)
        assert set(data.train.labels.tolist()) == {client}
    assert run(**names).history[-1]["clients"] == 2


def test_a_metric(added, run):
    result = run(shared="all", score=added("score").replace("_", "-"))
    recalls = [r for r in result.summary["recall_per_class"].values() if r is not None]
    assert result.history[-1]["central"]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result.summary["balanced_accuracy"] == pytest.approx(np.mean(recalls))
