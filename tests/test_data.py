"""Loading, splitting and holding out: whatever the format, the same examples reach the model."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from flwr_datasets.partitioner import NaturalIdPartitioner

from fedattn_app import data, sources, triage
from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.data import client_data, label_names, private_data, server_test_set
from fedattn_app.tokenizer import HashingTokenizer

MODEL = ModelConfig(max_length=16)
FORMATS = ["csv", "jsonl", "parquet"]

TEXTS = [
    "Chest pain",
    "NA",
    "null",
    "nan",
    "",
    "007",
    "true",
    'a "quoted", part',
    "two\nlines",
    "é痛😀",
]
LABELS = ["b", "a", "b", "NA", "a", "b", "a", "b", "NA", "a"]


def write(path, texts, labels, text_column="text", label_column="label", **others):
    """Write a data file in the format that its suffix names."""
    columns = {text_column: texts, label_column: labels, **others}
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(records)
        case ".jsonl":
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.table(columns), path)
    return path


def rows(*parts):
    """The examples as sorted pairs of ids without padding and label."""
    return sorted(
        (tuple(ids[:length].tolist()), int(label))
        for part in parts
        for ids, length, label in zip(part.ids, part.lengths, part.labels, strict=True)
    )


def rows_of(texts, labels, names):
    """What `rows` must give for these texts and labels."""
    ids, lengths = HashingTokenizer(MODEL.vocabulary, MODEL.max_length).encode(texts)
    numbers = torch.tensor([list(names).index(label) for label in labels])
    return rows(data.Examples(torch.from_numpy(ids), torch.from_numpy(lengths), numbers))


def own(path, labels="a,b,NA", seed=1, **settings):
    """What a node holds that has the private file or folder `path`."""
    return private_data(DataConfig(labels=labels, **settings), MODEL, seed, str(path))


def shares(config, clients, seed=1):
    """All examples of each client."""
    parts = [client_data(config, MODEL, seed, number, clients) for number in range(clients)]
    return [rows(part.train, part.validation) for part in parts]


def together(parts):
    """All rows of all clients."""
    return sorted(row for part in parts for row in part)


def forget():
    """Clear the module's caches, as a new process would start."""
    for value in (*vars(data).values(), *vars(sources).values()):
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_caches():
    forget()
    datasets.disable_progress_bars()


# Formats


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path, suffix, folder):
    path = write(tmp_path / f"train.{suffix}", TEXTS, LABELS)
    held = own(path.parent if folder else path)
    assert rows(held.train, held.validation) == rows_of(TEXTS, LABELS, ["a", "b", "NA"])
    config = DataConfig(dataset="file", data_path=str(path.parent if folder else path))
    assert label_names(config) == ("NA", "a", "b")
    assert server_test_set(config, MODEL, seed=1) is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_holds_a_test_file(tmp_path, suffix):
    write(tmp_path / f"train.{suffix}", TEXTS, LABELS)
    write(tmp_path / f"test.{suffix}", ["only here"], ["c"])
    write(tmp_path / f"other.{suffix}", ["nowhere"], ["d"])
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    names = ("NA", "a", "b", "c")
    assert label_names(config) == names
    assert rows(server_test_set(config, MODEL, 1)) == rows_of(["only here"], ["c"], names)
    assert shares(config, 1)[0] == rows_of(TEXTS, LABELS, names)


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_may_have_other_names(tmp_path, suffix):
    columns = {"text_column": "note", "label_column": "ward of discharge"}
    path = write(tmp_path / f"x.{suffix}", TEXTS, LABELS, **columns, text=["wrong"] * len(TEXTS))
    held = own(path, **columns)
    assert rows(held.train, held.validation) == rows_of(TEXTS, LABELS, ["a", "b", "NA"])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "column",
    [
        ["NA", "null", "", "nan"],
        ["007", "08", "1", "10"],
        ["1.50", "2", "1e5", ".5"],
        ["true", "false", "true", "false"],
        ["2020-01-02", "2020-01-03", "2020-12-31", "2021-01-01"],
    ],
    ids=["missing words", "whole numbers", "numbers", "truth values", "dates"],
)
def test_cells_are_text_however_they_look(tmp_path, suffix, column):
    path = write(tmp_path / f"texts.{suffix}", column, list("abab"))
    held = own(path)
    assert rows(held.train, held.validation) == rows_of(column, list("abab"), ["a", "b"])
    if "" not in column:
        path = write(tmp_path / f"labels.{suffix}", list("abab"), column)
        config = DataConfig(dataset="file", data_path=str(path))
        assert label_names(config) == tuple(sorted(set(column)))


@pytest.mark.parametrize("suffix", FORMATS)
def test_whole_numbers_are_labels(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", ["one", "zero", "ten"], [1, 0, 10])
    held = own(path, labels="0,1,10")
    names = ["0", "1", "10"]
    assert rows(held.train, held.validation) == rows_of(
        ["one", "zero", "ten"], ["1", "0", "10"], names
    )
    assert label_names(DataConfig(dataset="file", data_path=str(path))) == ("0", "1", "10")


def test_a_column_may_begin_with_thousands_of_numbers(tmp_path):
    path = write(tmp_path / "x.csv", ["text"] * 10_002, ["1"] * 10_001 + ["other"])
    assert label_names(DataConfig(dataset="file", data_path=str(path))) == ("1", "other")


@pytest.mark.parametrize("name", ["a note.csv", "ward [3].csv", "50%20.csv", "a::b.csv", "é.csv"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = write(tmp_path / name, ["some text"], ["a"])
    assert rows(own(path).train) == rows_of(["some text"], ["a"], ["a"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", ["café"], ["a"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows(own(path).train) == rows_of(["café"], ["a"], ["a"])


def test_a_private_file_is_read_without_a_word_to_the_network(tmp_path, monkeypatch):
    asked = []

    def look_up(host, *_, **__):
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for suffix in FORMATS:
        own(write(tmp_path / f"x.{suffix}", TEXTS, LABELS))
    assert asked == []


@pytest.mark.parametrize("name", ["trec", "ag_news"])
def test_real_data_are_read_as_pythons_csv_module_reads_them(shared_data, name):
    config = DataConfig(dataset="file", data_path=str(shared_data / name))
    tables = {}
    for split in ("train", "test"):
        with (shared_data / name / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            tables[split] = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    names = label_names(config)
    assert names == tuple(sorted({label for _, label in tables["train"]}))
    assert rows(server_test_set(config, MODEL, 1)) == rows_of(
        *zip(*tables["test"], strict=True), names
    )
    assert shares(config, 1)[0] == rows_of(*zip(*tables["train"], strict=True), names)


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"text,label\na,b\n", ".csv"),
        ("x.csv", b"", "x.csv"),
        ("x.csv", b"text,label\n", "no examples"),
        ("x.csv", "text,label\ncafé,b\n".encode("latin-1"), "UTF-8"),
        ("x.csv", "text,label\ncafé,b\n".encode("utf-16"), "UTF-8"),
        ("x.csv", b"text,label\na,b\nc,d,e,f\n", "x.csv"),
        ("x.csv", b"text,label\na,b,c\nd,e,f\n", "x.csv"),
        ("x.csv", b"text;label\na;b\n", "'text' (text-column)"),
        ("x.csv", b"text,other\na,b\n", "'label' (label-column); there are text, other"),
        ("x.csv", b"text,label\na,b\nc,\n", "row 2 has no label"),
        ("x.csv", b"text,label\na,b\nc\n", "row 2 has no label"),
        ("x.jsonl", b"", "x.jsonl"),
        ("x.jsonl", b"not json\n", "x.jsonl"),
        ("x.jsonl", '{"text": "café", "label": "b"}\n'.encode("latin-1"), "UTF-8"),
        ("x.jsonl", b'{"text": "a", "label": "b"}\n{"text": "c"}\n', "row 2 has no label"),
        ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "c", "label": null}\n', "row 2"),
        ("x.jsonl", b'{"text": "a"}\n', "'label' (label-column); there are text"),
        ("x.parquet", b"PAR1 or so", "x.parquet"),
        ("train.csv/x", b"", "train.csv"),
        ("valid.csv", b"text,label\na,b\n", "no train."),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(refused, tmp_path, name, content, reason):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    in_folder = not name.startswith("x.")
    config = DataConfig(dataset="file", data_path=str(path.parent if in_folder else path))
    with refused(tmp_path / "data", reason):
        label_names(config)


@pytest.mark.parametrize("load", [label_names, lambda config: own(config.data_path)])
def test_a_path_that_does_not_exist_is_refused(refused, tmp_path, load):
    with refused(tmp_path / "none.csv", "does not exist"):
        load(DataConfig(dataset="file", data_path=str(tmp_path / "none.csv")))


def test_a_label_that_is_not_among_those_named_is_refused(refused, tmp_path):
    path = write(tmp_path / "train.csv", ["x", "y"], ["a", "c"])
    config = DataConfig(dataset="file", data_path=str(path), labels="a,b")
    with refused(path, "'c'", "a, b"):
        own(path, labels="a,b")
    with refused(path, "'c'", "a, b"):
        client_data(config, MODEL, 1, 0, 1)


def test_private_files_need_the_labels_by_name(refused, tmp_path):
    path = write(tmp_path / "x.csv", ["x"], ["a"])
    with refused("labels", "data-path"):
        own(path, labels="")
    with refused("labels", "data-path"):
        label_names(DataConfig(dataset="file"))


def test_labels_by_name_need_no_data():
    assert label_names(DataConfig(dataset="file", labels="no,yes")) == ("no", "yes")
    assert server_test_set(DataConfig(dataset="file", labels="no,yes"), MODEL, 1) is None


# The hub


CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
)


def put_on_hub(monkeypatch, **splits):
    """Let `datasets.load_dataset` return splits of texts and class numbers."""
    found = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": texts, "label": labels}, CLASSES)
            for split, (texts, labels) in splits.items()
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"a/b": found}[name])


def test_a_hub_data_set_has_its_class_names(monkeypatch):
    texts = ["good", "fine", "bad", "poor"]
    put_on_hub(monkeypatch, train=(texts, [0, 0, 1, 1]), test=(["so good"], [0]))
    config = DataConfig(dataset="a/b")
    names = ("neg", "pos")
    assert label_names(config) == names
    assert rows(server_test_set(config, MODEL, 1)) == rows_of(["so good"], ["pos"], names)
    expected = rows_of(texts, ["pos", "pos", "neg", "neg"], names)
    assert together(shares(config, 2)) == expected


def test_a_hub_data_set_can_be_split_by_its_label(monkeypatch):
    put_on_hub(monkeypatch, train=(["good", "fine", "bad"], [0, 0, 1]))
    config = DataConfig(dataset="a/b", partitioner="natural", partition_by="label")
    found = sorted(shares(config, 2), key=len)
    names = ("neg", "pos")
    assert found == [
        rows_of(["bad"], ["neg"], names),
        rows_of(["good", "fine"], ["pos"] * 2, names),
    ]


def test_a_hub_data_set_without_train_is_refused(refused, monkeypatch):
    put_on_hub(monkeypatch, validation=(["good"], [0]))
    with refused("'a/b'", "train", "validation"):
        label_names(DataConfig(dataset="a/b"))


def test_examples_that_the_hub_gives_without_labels_are_refused(refused, monkeypatch):
    put_on_hub(monkeypatch, train=(["good", "bad"], [0, 1]), test=(["fine"], [-1]))
    with refused("a/b", "row 1 has no label"):
        server_test_set(DataConfig(dataset="a/b"), MODEL, 1)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'a/b' on the Hub\nTry later"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
        ValueError("Config name is missing.\nPlease pick one among the available configs"),
        RuntimeError("Dataset scripts are no longer supported, but found b.py"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_gives_nothing_is_one_line_that_says_what_to_do(refused, monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with refused("'a/b'", str(error).splitlines()[0], 'dataset = "file"', "data-path", "triage"):
        label_names(DataConfig(dataset="a/b"))


def test_no_data_set_at_all_is_refused(refused):
    with refused('dataset = "'):
        label_names(DataConfig(dataset=""))


# Splitting over the clients of a simulation

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


@pytest.fixture
def wards(tmp_path):
    """Settings for the file of the 60 texts."""
    path = write(tmp_path / "wards.csv", NUMBERED, THREE, ward=WARDS)
    return partial(DataConfig, dataset="file", data_path=str(path))


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_every_example_is_one_clients_the_same_in_every_process(wards, partitioner):
    config = wards(partitioner=partitioner, **PARTITIONERS[partitioner])
    first = shares(config, 4)
    assert together(first) == rows_of(NUMBERED, THREE, "abc")
    forget()
    assert shares(config, 4) == first


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet", "linear"])
def test_the_seed_decides_the_split(wards, partitioner):
    config = wards(partitioner=partitioner)
    assert shares(config, 4, seed=1) != shares(config, 4, seed=2)


def test_the_seed_decides_the_sizes_of_a_dirichlet_split(wards):
    config = wards(partitioner="dirichlet")
    first, second = ([len(share) for share in shares(config, 4, seed)] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("partitioner", "sizes"),
    [("iid", [15, 15, 15, 15]), ("linear", [6, 12, 18, 24]), ("square", [2, 8, 18, 32])],
)
def test_the_sizes_of_the_shares(wards, partitioner, sizes):
    assert [len(share) for share in shares(wards(partitioner=partitioner), 4)] == sizes


def test_each_value_of_the_column_is_one_natural_client(wards):
    found = shares(wards(partitioner="natural", partition_by="ward"), 4)
    assert found == [rows_of(NUMBERED[k::4], THREE[k::4], "abc") for k in range(4)]


def test_a_natural_split_by_a_column_called_label_leaves_the_labels_alone(tmp_path):
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
def test_a_pathological_client_has_so_many_labels(wards, classes):
    config = wards(partitioner="pathological", classes_per_client=classes)
    assert [len({label for _, label in share}) for share in shares(config, 6)] == [classes] * 6


def test_alpha_decides_how_uneven_a_dirichlet_split_is(wards):
    def largest_share_of_a_label(alpha):
        counts = [Counter(label for _, label in s) for s in shares(wards(**alpha), 4)]
        return max(count[label] for count in counts for label in range(3)) / 20

    dirichlet = {"partitioner": "dirichlet"}
    assert largest_share_of_a_label({**dirichlet, "alpha": 1e6}) <= 0.3
    assert largest_share_of_a_label({**dirichlet, "alpha": 0.01}) >= 0.9


@pytest.mark.parametrize("alpha", [1e-3, 1e-9])
def test_a_tiny_alpha_leaves_clients_without_examples(wards, alpha):
    config = wards(partitioner="dirichlet", alpha=alpha)
    found = shares(config, 10)
    assert together(found) == rows_of(NUMBERED, THREE, "abc")
    empty = client_data(config, MODEL, 1, found.index([]), 10)
    assert (len(empty.train), len(empty.validation)) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "clients", "parts"),
    [
        ({"partitioner": "natural", "partition_by": "ward"}, 3, ["'ward'", "4 clients", "not 3"]),
        ({"partitioner": "natural", "partition_by": "no"}, 4, ["'no'", "text, label"]),
        ({"partitioner": "pathological", "classes_per_client": 4}, 4, ["= 4", "3 labels"]),
        ({}, 61, ["61 clients", "60 training examples"]),
        ({"partitioner": "linear"}, 60, ["60"]),
        ({"partitioner": "square"}, 20, ["20"]),
    ],
)
def test_a_split_that_is_not_possible_is_refused(refused, wards, settings, clients, parts):
    with refused(*parts):
        client_data(wards(**settings), MODEL, 1, 0, clients)


def test_a_natural_split_by_a_column_with_gaps_is_refused(refused, tmp_path):
    path = write(tmp_path / "x.jsonl", list("wxyz"), list("abab"), ward=["u", None, "v", "u"])
    config = DataConfig(
        dataset="file", data_path=str(path), partitioner="natural", partition_by="ward"
    )
    with refused("'ward'"):
        client_data(config, MODEL, 1, 0, 3)


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


def test_the_corpus_can_be_split_in_other_ways():
    notes = [note for site in range(3) for note in triage.site_notes(5, site)]
    found = shares(DataConfig(partitioner="iid"), 3, seed=5)
    assert together(found) == rows_of(
        [note.text for note in notes], [note.label for note in notes], triage.LABELS
    )


def test_the_server_tests_on_the_corpus_notes_of_other_sites():
    notes = triage.test_notes(5)
    found = rows(server_test_set(DataConfig(), MODEL, 5))
    assert found == rows_of([n.text for n in notes], [n.label for n in notes], triage.LABELS)


# Holding out


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(50, 0.1, 5), (40, 0.25, 10), (9, 0.1, 0), (7, 0.0, 0), (10, 0.9, 9), (1, 0.9, 0)],
)
def test_the_share_that_is_held_out(tmp_path, count, fraction, held_out):
    texts, labels = NUMBERED[:count], THREE[:count]
    path = write(tmp_path / "x.csv", texts, labels)
    held = own(path, labels="a,b,c", validation_fraction=fraction)
    assert (len(held.train), len(held.validation)) == (count - held_out, held_out)
    assert rows(held.train, held.validation) == rows_of(texts, labels, "abc")


def test_what_is_held_out_is_drawn_by_the_seed(tmp_path):
    path = write(tmp_path / "x.csv", NUMBERED, THREE)
    held = [rows(own(path, "a,b,c", seed).validation) for seed in (1, 2)]
    forget()
    assert rows(own(path, "a,b,c", seed=1).validation) == held[0] != held[1]


def test_a_private_folder_holds_out_its_test_file(tmp_path):
    write(tmp_path / "train.jsonl", NUMBERED, THREE)
    write(tmp_path / "test.csv", ["one", "two"], ["a", "b"])
    held = own(tmp_path, labels="a,b,c", validation_fraction=0.5)
    assert rows(held.train) == rows_of(NUMBERED, THREE, "abc")
    assert rows(held.validation) == rows_of(["one", "two"], ["a", "b"], "abc")


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
    forget()
    assert after == load(config)
    # A new label in either file changes the numbers of all labels.
    assert after != before


# What a process leaves behind, seen from outside

PROBE = """
import json, os, sys
from pathlib import Path
from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.data import client_data, label_names, private_data
from fedattn_app.errors import UserError

folder = Path(sys.argv[1])
for suffix in ("csv", "jsonl", "parquet"):
    path = str(folder / "data" / f"train.{suffix}")
    private_data(DataConfig(labels="a,b,c"), ModelConfig(), 1, path)
    for partitioner in ("iid", "dirichlet", "pathological", "natural", "linear", "square"):
        config = DataConfig(
            dataset="file", data_path=path, partitioner=partitioner, partition_by="ward"
        )
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
    """Load files in a process whose every cache lies in one folder, with the hub out of reach."""
    folder = tmp_path_factory.mktemp("probe")
    for suffix in FORMATS:
        write(folder / "data" / f"train.{suffix}", NUMBERED, THREE, ward=WARDS)
    (folder / "data" / "broken.csv").write_bytes(b"text,label\na,b\nc,d,e,f\n")
    places = {"HOME": "home", "HF_HOME": "hf", "HF_DATASETS_CACHE": "hf/datasets", "TMPDIR": "tmp"}
    for place in places.values():
        (folder / place).mkdir(parents=True)
    process = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            **{name: str(folder / place) for name, place in places.items()},
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return [*json.loads(process.stdout.splitlines()[-1]), process.stderr]


def test_no_copy_of_private_text_is_left_on_disk(probe):
    copies, _, _ = probe
    assert copies == []


def test_offline_a_hub_data_set_is_one_line_that_says_what_to_do(probe):
    _, messages, _ = probe
    assert len(messages) == 2
    assert "\n" not in messages[1]
    for part in ("'someone/some-set'", "offline", 'dataset = "file"', "data-path", "triage"):
        assert part in messages[1]


def test_loading_prints_nothing(probe):
    _, _, stderr = probe
    assert stderr == ""


# What used to pass in silence


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.jsonl", '{"text": ["a", "b"], "label": ["x", "y"]}\n', ["'text'", "lists"]),
        ("x.csv", "text,label,text\na,b,c\n", ["a column stands twice"]),
        ("x.json", "[" * 100_000, ["cannot be read as .json"]),
    ],
)
def test_a_file_of_another_form_is_refused(refused, tmp_path, name, content, parts):
    (tmp_path / name).write_text(content)
    with refused(name, *parts):
        label_names(DataConfig(dataset="file", data_path=str(tmp_path / name)))


def test_a_parquet_label_that_is_not_a_number_is_missing(refused, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), path)
    with refused("row 2 has no label"):
        label_names(DataConfig(dataset="file", data_path=str(path)))


def test_a_pathological_split_that_leaves_labels_out_is_refused(refused):
    config = DataConfig(partitioner="pathological", classes_per_client=1)
    with refused("classes-per-client = 1", "leave out 4 of 6 labels"):
        data.check_split(config, 1, 2)


def test_a_folder_with_a_test_split_alone_is_the_servers(tmp_path, refused):
    (tmp_path / "test.csv").write_text("text,label\na b,x\nc d,y\n")
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    assert label_names(config) == ("x", "y")
    assert len(server_test_set(config, MODEL, 1)) == 2
    with refused("no train.csv"):
        data.check_split(config, 1, 2)
    with refused("no train.csv"):
        private_data(DataConfig(labels="x,y"), MODEL, 1, str(tmp_path))


@pytest.mark.parametrize("method", ["stat", "iterdir"])
def test_a_folder_that_may_not_be_looked_at_is_refused(refused, tmp_path, monkeypatch, method):
    def denied(self, **options):
        raise PermissionError(13, "Permission denied")

    config = DataConfig(dataset="file", data_path=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Path, method, denied)
        with refused("data-path", "Permission denied"):
            label_names(config)
