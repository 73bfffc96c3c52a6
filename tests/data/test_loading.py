"""The examples of each client: labels, the split over clients, and the held-out share."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial

import datasets
import pytest
from flwr_datasets.partitioner import NaturalIdPartitioner
from helpers.data_files import FORMATS, MODEL, own, rows, rows_of, shares, together, write

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig
from fedattn_app.data import triage
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import check_split, client_data, private_data, server_test_set

pytestmark = pytest.mark.usefixtures("fresh_caches")

# 60 texts, all different; labels and wards of 20 and 15 each.
NUMBERED = [f"text number {number}" for number in range(60)]
THREE = [("a", "b", "c")[number * 7 % 3] for number in range(60)]
WARDS = [f"ward {number % 4}" for number in range(60)]
PARTITIONERS = {
    "auto": {},
    "iid": {},
    "dirichlet": {},
    "pathological": {"classes_per_client": 2},
    "natural": {"partition_by": "ward"},
    "linear": {},
    "square": {},
}


# Labels


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


# Splitting over the clients of a simulation


@pytest.fixture
def wards(tmp_path):
    """`DataConfig` for a file with the 60 texts."""
    path = write(tmp_path / "wards.csv", NUMBERED, THREE, ward=WARDS)
    return partial(DataConfig, dataset="file", data_path=str(path))


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_every_example_goes_to_one_client_and_the_split_is_reproducible(wards, partitioner):
    config = wards(partitioner=partitioner, **PARTITIONERS[partitioner])
    first = shares(config, 4)
    assert together(first) == rows_of(NUMBERED, THREE, "abc")
    PROCESS_CACHE.clear()
    assert shares(config, 4) == first


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet", "linear"])
def test_the_split_depends_on_the_seed(wards, partitioner):
    config = wards(partitioner=partitioner)
    assert shares(config, 4, seed=1) != shares(config, 4, seed=2)


def test_the_sizes_of_a_dirichlet_split_depend_on_the_seed(wards):
    config = wards(partitioner="dirichlet")
    first, second = ([len(share) for share in shares(config, 4, seed)] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("partitioner", "sizes"),
    [("iid", [15, 15, 15, 15]), ("linear", [6, 12, 18, 24]), ("square", [2, 8, 18, 32])],
)
def test_the_sizes_of_the_shares(wards, partitioner, sizes):
    assert [len(share) for share in shares(wards(partitioner=partitioner), 4)] == sizes


def test_a_natural_client_has_one_value_of_the_column(wards):
    found = shares(wards(partitioner="natural", partition_by="ward"), 4)
    assert found == [rows_of(NUMBERED[k::4], THREE[k::4], "abc") for k in range(4)]


def test_a_natural_split_by_a_column_called_label_does_not_change_the_labels(tmp_path):
    path = write(tmp_path / "x.csv", NUMBERED, THREE, label_column="department", label=WARDS)
    config = DataConfig(
        dataset="file",
        data_path=str(path),
        label_column="department",
        partitioner="natural",
        partition_by="label",
    )
    assert shares(config, 4) == [rows_of(NUMBERED[k::4], THREE[k::4], "abc") for k in range(4)]


@pytest.mark.parametrize("classes", [1, 2])
def test_the_number_of_labels_of_a_pathological_client(wards, classes):
    config = wards(partitioner="pathological", classes_per_client=classes)
    assert [len({label for _, label in share}) for share in shares(config, 6)] == [classes] * 6


def test_a_small_alpha_gives_an_uneven_dirichlet_split(wards):
    def largest_share_of_a_label(alpha):
        counts = [Counter(label for _, label in s) for s in shares(wards(**alpha), 4)]
        return max(count[label] for count in counts for label in range(3)) / 20

    dirichlet = {"partitioner": "dirichlet"}
    assert largest_share_of_a_label({**dirichlet, "alpha": 1e6}) <= 0.3
    assert largest_share_of_a_label({**dirichlet, "alpha": 0.01}) >= 0.9


@pytest.mark.parametrize("alpha", [1e-3, 1e-9])
def test_a_tiny_alpha_gives_clients_without_examples(wards, alpha):
    config = wards(partitioner="dirichlet", alpha=alpha)
    found = shares(config, 10)
    assert together(found) == rows_of(NUMBERED, THREE, "abc")
    empty = client_data(config, MODEL, 1, found.index([]), 10)
    assert (len(empty.train), len(empty.validation)) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "clients", "parts"),
    [
        (
            {"partitioner": "natural", "partition_by": "ward"},
            3,
            ['= "ward"', "4 clients", "not 3"],
        ),
        ({"partitioner": "natural", "partition_by": "no"}, 4, ["'no'", "text, label"]),
        ({"partitioner": "pathological", "classes_per_client": 4}, 4, ["= 4", "3 labels"]),
        ({}, 61, ["61 clients", "60 training examples"]),
        ({"partitioner": "linear"}, 60, ["60"]),
        ({"partitioner": "square"}, 20, ["20"]),
    ],
)
def test_an_impossible_split_is_refused(refused, wards, settings, clients, parts):
    with refused(*parts):
        client_data(wards(**settings), MODEL, 1, 0, clients)


def test_a_natural_split_by_a_column_with_gaps_is_refused(refused, tmp_path):
    path = write(tmp_path / "x.jsonl", list("wxyz"), list("abab"), ward=["u", None, "v", "u"])
    config = DataConfig(
        dataset="file", data_path=str(path), partitioner="natural", partition_by="ward"
    )
    with refused("has no 'ward' (partition-by)"):
        client_data(config, MODEL, 1, 0, 3)


def test_a_pathological_split_that_omits_labels_is_refused(refused):
    config = DataConfig(partitioner="pathological", classes_per_client=1)
    with refused("classes-per-client = 1", "leave out 4 of 6 labels"):
        check_split(config, 1, 2)


def test_a_site_of_the_corpus_is_a_natural_partition_of_all_sites():
    sites = 3
    notes = [note for site in range(sites) for note in triage.site_notes(5, site)]
    partitioner = NaturalIdPartitioner("site")
    partitioner.dataset = datasets.Dataset.from_list([vars(note) for note in notes])
    expected = [
        rows_of(partition["text"][:], partition["label"][:], triage.LABELS)
        for partition in map(partitioner.load_partition, range(sites))
    ]
    for name in ("natural", "auto"):
        assert shares(DataConfig(partitioner=name), sites, seed=5) == expected


def test_the_corpus_can_be_split_like_a_file():
    notes = [note for site in range(3) for note in triage.site_notes(5, site)]
    found = shares(DataConfig(partitioner="iid"), 3, seed=5)
    assert together(found) == rows_of(
        [note.text for note in notes], [note.label for note in notes], triage.LABELS
    )


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


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "load",
    [
        lambda config: label_names(config),
        lambda config: rows(server_test_set(config, MODEL, 1)),
        lambda config: shares(config, 1),
        lambda config: [rows(part) for part in vars(own(config.data_path, "a,b,c")).values()],
    ],
    ids=["labels", "test set", "client", "private"],
)
def test_a_file_that_changes_is_read_again(tmp_path, load, split):
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    write(tmp_path / "train.csv", ["one", "two"], ["b", "c"])
    write(tmp_path / "test.csv", ["three"], ["b"])
    before = load(config)
    write(tmp_path / f"{split}.csv", ["one", "four"], ["a", "c"])
    after = load(config)
    PROCESS_CACHE.clear()
    assert after == load(config)
    # A new label in either file changes the numbers of the others.
    assert after != before


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
