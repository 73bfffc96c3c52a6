"""The split of a data set over the clients of a simulation."""

from collections import Counter
from functools import partial

import datasets
import pytest
from flwr_datasets.partitioner import NaturalIdPartitioner
from helpers.data_files import (
    MODEL,
    NUMBERED,
    PARTITIONERS,
    THREE,
    WARDS,
    rows_of,
    shares,
    together,
    write,
)

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig
from fedattn_app.data import triage
from fedattn_app.data.loading import check_split, client_data

pytestmark = pytest.mark.usefixtures("fresh_caches")


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


def test_a_label_that_is_too_rare_for_a_pathological_split_is_refused(refused, tmp_path):
    path = write(tmp_path / "x.csv", NUMBERED, ["a", "b"] * 29 + ["a", "rare"])
    config = DataConfig(dataset="file", data_path=str(path), partitioner="pathological")
    check_split(config, 1, 2)
    with refused("classes-per-client = 2", "'rare' has too few", "(1) for the 2 clients"):
        check_split(config, 1, 3)


def test_labels_and_groups_that_are_numbers_are_dealt_out_by_value(tmp_path):
    numbers = [str(number % 12) for number in range(60)]
    path = write(tmp_path / "x.csv", NUMBERED, numbers, ward=numbers)
    of = partial(DataConfig, dataset="file", data_path=str(path))
    for config in (
        of(partitioner="natural", partition_by="ward"),
        of(partitioner="pathological", classes_per_client=1),
    ):
        assert [{label for _, label in share} for share in shares(config, 12)] == [
            {number} for number in range(12)
        ]


def test_spellings_of_one_group_are_one_client(tmp_path):
    wards = ["1", "1.0", " 2", "2\u00a0"] * 15
    path = write(tmp_path / "x.csv", NUMBERED, THREE, ward=wards)
    config = DataConfig(
        dataset="file", data_path=str(path), partitioner="natural", partition_by="ward"
    )
    assert [len(share) for share in shares(config, 2)] == [30, 30]


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
