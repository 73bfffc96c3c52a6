"""The examples of a node with its own file, labels, and the test set of the server."""

import json
import os
import subprocess
import sys

import pytest
from helpers.data_files import (
    FORMATS,
    MODEL,
    NUMBERED,
    PARTITIONERS,
    THREE,
    WARDS,
    own,
    rows,
    rows_of,
    shares,
    write,
)

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig
from fedattn_app.data import triage
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import check_split, client_data, private_data, server_test_set

pytestmark = pytest.mark.usefixtures("fresh_caches")


# Labels and test set


def test_named_labels_need_no_data():
    assert label_names(DataConfig(dataset="file", labels="no,yes")) == ("no", "yes")
    assert server_test_set(DataConfig(dataset="file", labels="no,yes"), MODEL, 1) is None


def test_private_files_need_named_labels(refused, tmp_path):
    path = write(tmp_path / "x.csv", ["x"], ["a"])
    with refused("labels", "data-path"):
        own(path, labels="")
    with refused("labels", "data-path"):
        label_names(DataConfig(dataset="file"))


def test_an_unknown_label_is_refused(refused, tmp_path):
    path = write(tmp_path / "train.csv", ["x", "y"], ["a", "c"])
    config = DataConfig(dataset="file", data_path=str(path), labels="a,b")
    with refused(path, "'c'", "a, b"):
        own(path, labels="a,b")
    with refused(path, "'c'", "a, b"):
        client_data(config, MODEL, 1, 0, 1)


def test_the_test_set_of_the_corpus_comes_from_other_sites():
    notes = triage.test_notes(5)
    found = rows(server_test_set(DataConfig(), MODEL, 5))
    assert found == rows_of([n.text for n in notes], [n.label for n in notes], triage.LABELS)


# Nodes with their own files, and held-out examples


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_the_partitioner_has_no_effect_on_a_node_with_its_own_file(tmp_path, partitioner):
    path = write(tmp_path / "own.csv", NUMBERED, THREE)  # without the column to split by
    held = own(path, "a,b,c", partitioner=partitioner, **PARTITIONERS[partitioner])
    assert rows(held.train, held.validation) == rows_of(NUMBERED, THREE, "abc")


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(50, 0.1, 5), (40, 0.25, 10), (9, 0.1, 0), (7, 0.0, 0), (10, 0.9, 9), (1, 0.9, 0)],
)
def test_the_number_of_held_out_examples(tmp_path, count, fraction, held_out):
    texts, labels = NUMBERED[:count], THREE[:count]
    path = write(tmp_path / "x.csv", texts, labels)
    held = own(path, labels="a,b,c", validation_fraction=fraction)
    assert (len(held.train), len(held.validation)) == (count - held_out, held_out)
    assert rows(held.train, held.validation) == rows_of(texts, labels, "abc")


def test_the_held_out_examples_depend_on_the_seed(tmp_path):
    path = write(tmp_path / "x.csv", NUMBERED, THREE)
    held = [rows(own(path, "a,b,c", seed).validation) for seed in (1, 2)]
    PROCESS_CACHE.clear()
    assert rows(own(path, "a,b,c", seed=1).validation) == held[0] != held[1]


def test_the_test_file_of_a_private_folder_is_held_out(tmp_path):
    write(tmp_path / "train.jsonl", NUMBERED, THREE)
    write(tmp_path / "test.csv", ["one", "two"], ["a", "b"])
    held = own(tmp_path, labels="a,b,c", validation_fraction=0.5)
    assert rows(held.train) == rows_of(NUMBERED, THREE, "abc")
    assert rows(held.validation) == rows_of(["one", "two"], ["a", "b"], "abc")


def test_a_folder_with_only_a_test_file_serves_the_server(tmp_path, refused):
    (tmp_path / "test.csv").write_text("text,label\na b,x\nc d,y\n")
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    assert label_names(config) == ("x", "y")
    assert len(server_test_set(config, MODEL, 1)) == 2
    with refused("no train.csv"):
        check_split(config, 1, 2)
    with refused("no train.csv"):
        private_data(DataConfig(labels="x,y"), MODEL, 1, str(tmp_path))


def parts_of(data):
    return rows(data.train), rows(data.validation)


LOADERS = {
    "labels": lambda config: label_names(config),
    "test set": lambda config: rows(server_test_set(config, MODEL, 1)),
    "client": lambda config: shares(config, 1),
    "private": lambda config: parts_of(own(config.data_path, "a,b,c")),
}


# The labels are those of the training rows, so the test set depends on both files.
@pytest.mark.parametrize(
    ("loader", "split"),
    [
        *(("labels", "train"), ("client", "train"), ("test set", "train"), ("test set", "test")),
        *(("private", "train"), ("private", "test")),
    ],
)
def test_a_file_that_changes_is_read_again(tmp_path, loader, split):
    load = LOADERS[loader]
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    write(tmp_path / "train.csv", ["one", "two"], ["b", "c"])
    write(tmp_path / "test.csv", ["three"], ["b"])
    before = load(config)
    changed = (["one", "two", "four"], ["b", "c", "a"]) if split == "train" else (["four"], ["c"])
    write(tmp_path / f"{split}.csv", *changed)
    after = load(config)
    PROCESS_CACHE.clear()
    assert after == load(config) != before


# Effects outside the process


PROBE = """
import json, os, sys
from pathlib import Path
from fedattn_app.config import DataConfig
from fedattn_app.config import ModelConfig
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import client_data, private_data
from fedattn_app.errors import UserError

folder = Path(sys.argv[1])
for suffix in ("csv", "jsonl", "parquet"):
    path = str(folder / "data" / f"train.{suffix}")
    private_data(DataConfig(labels="a,b,c"), ModelConfig(), 1, path)
    for partitioner in ("iid", "dirichlet", "pathological", "natural", "linear", "square"):
        by = {"partition_by": "ward"} if partitioner == "natural" else {}
        config = DataConfig(dataset="file", data_path=path, partitioner=partitioner, **by)
        for partition in range(4):
            client_data(config, ModelConfig(), 1, partition, 4)
copies = [
    str(file.relative_to(folder))
    for file in folder.rglob("*")
    if file.is_file() and file.parent != folder / "data" and b"text number" in file.read_bytes()
]
messages = []
for config in (
    DataConfig(dataset="file", data_path=str(folder / "data" / "broken.csv")),
    DataConfig(dataset="someone/some-set"),
):
    try:
        label_names(config)
    except UserError as error:
        messages.append(str(error))
print(json.dumps([copies, messages]))
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Load files in a process whose caches are all in one folder, with the hub unreachable.

    Returns the cached files that contain a text, the error texts, and standard error.
    """
    folder = tmp_path_factory.mktemp("probe")
    for suffix in FORMATS:
        write(folder / "data" / f"train.{suffix}", NUMBERED, THREE, ward=WARDS)
    (folder / "data" / "broken.csv").write_bytes(b"text,label\na,b\nc,d,e,f\n")
    folders = {"HOME": "home", "HF_HOME": "hf", "HF_DATASETS_CACHE": "hf/datasets", "TMPDIR": "tmp"}
    for place in folders.values():
        (folder / place).mkdir(parents=True)
    process = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            **{name: str(folder / place) for name, place in folders.items()},
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return [*json.loads(process.stdout.splitlines()[-1]), process.stderr]


def test_loading_leaves_no_copy_of_private_text_on_disk(probe):
    copies, _, _ = probe
    assert copies == []


def test_a_hub_data_set_offline_gives_one_line_that_says_what_to_do(probe):
    _, messages, _ = probe
    assert len(messages) == 2
    assert "\n" not in messages[1]
    for part in (
        'dataset = "someone/some-set"',
        "offline",
        'dataset = "file"',
        "data-path",
        "triage",
    ):
        assert part in messages[1]


def test_loading_prints_nothing(probe):
    _, _, stderr = probe
    assert stderr == ""
