"""Files of every format and the hub give the same examples."""

import csv
import hashlib
import socket
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_files import FORMATS, MODEL, load, own, rows, rows_of, shares, together, write

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import server_test_set
from fedattn_app.data.sources import Table, load_files, load_hub

pytestmark = pytest.mark.usefixtures("fresh_caches")

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
def test_a_folder_may_hold_a_test_file(tmp_path, suffix):
    write(tmp_path / f"train.{suffix}", TEXTS, LABELS)
    write(tmp_path / f"test.{suffix}", ["only here"], ["b"])
    write(tmp_path / f"other.{suffix}", ["nowhere"], ["d"])
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    names = ("NA", "a", "b")
    assert label_names(config) == names
    assert rows(server_test_set(config, MODEL, 1)) == rows_of(["only here"], ["b"], names)
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
def test_cells_stay_text_whatever_they_look_like(tmp_path, suffix, column):
    path = write(tmp_path / f"texts.{suffix}", column, list("abab"))
    held = own(path)
    assert rows(held.train, held.validation) == rows_of(column, list("abab"), ["a", "b"])
    if "" not in column:
        path = write(tmp_path / f"labels.{suffix}", list("abab"), column)
        config = DataConfig(dataset="file", data_path=str(path))
        assert set(label_names(config)) == set(column)


@pytest.mark.parametrize("suffix", FORMATS)
def test_whole_numbers_are_labels(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", ["one", "zero", "ten"], [1, 0, 10])
    held = own(path, labels="0,1,10")
    names = ["0", "1", "10"]
    assert rows(held.train, held.validation) == rows_of(
        ["one", "zero", "ten"], ["1", "0", "10"], names
    )
    assert label_names(DataConfig(dataset="file", data_path=str(path))) == ("0", "1", "10")


def test_a_column_of_text_may_start_with_thousands_of_numbers(tmp_path):
    path = write(tmp_path / "x.csv", ["text"] * 10_002, ["1"] * 10_001 + ["other"])
    assert label_names(DataConfig(dataset="file", data_path=str(path))) == ("1", "other")


@pytest.mark.parametrize("name", ["a note.csv", "ward [3].csv", "50%20.csv", "a::b.csv", "é.csv"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = write(tmp_path / name, ["some text"], ["a"])
    assert rows(own(path).train) == rows_of(["some text"], ["a"], ["a"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_byte_order_mark_is_ignored(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", ["café"], ["a"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows(own(path).train) == rows_of(["café"], ["a"], ["a"])


def test_a_private_file_is_read_without_network_access(tmp_path, monkeypatch):
    lookups = []

    def look_up(host, *_, **__):
        lookups.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for suffix in FORMATS:
        own(write(tmp_path / f"x.{suffix}", TEXTS, LABELS))
    assert lookups == []


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


# Invalid files


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
        ("x.csv", b"text,label\na,b\nc,\n", "line 3 has no label"),
        ("x.csv", b"text,label\na,b\nc\n", "line 3 has 1 cell for 2 columns"),
        ("x.jsonl", b"", "x.jsonl"),
        ("x.jsonl", b"not json\n", "x.jsonl"),
        ("x.jsonl", '{"text": "café", "label": "b"}\n'.encode("latin-1"), "UTF-8"),
        (
            "x.jsonl",
            b'{"text": "a", "label": "b"}\n{"text": "c"}\n',
            "line 2: 'label' (label-column)",
        ),
        (
            "x.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "c", "label": null}\n',
            "line 2 has no label",
        ),
        ("x.jsonl", b'{"text": "a"}\n', "'label' (label-column); there are text"),
        ("x.parquet", b"PAR1 or so", "x.parquet"),
        ("train.csv/x", b"", "train.csv"),
        ("valid.csv", b"text,label\na,b\n", "no train."),
    ],
)
def test_an_invalid_file_is_refused(refused, tmp_path, name, content, reason):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    in_folder = not name.startswith("x.")
    config = DataConfig(dataset="file", data_path=str(path.parent if in_folder else path))
    with refused(tmp_path / "data", reason):
        label_names(config)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "x.jsonl",
            '{"text": ["a", "b"], "label": ["x", "y"]}\n',
            ["line 1: column 'text'", "a list"],
        ),
        (
            "x.csv",
            "text,label,text\na,b,c\n",
            ["'text' occurs twice in the header (columns 1 and 3)"],
        ),
        ("x.json", "[" * 100_000, ["cannot be read as .json"]),
    ],
)
def test_a_file_of_another_structure_is_refused(refused, tmp_path, name, content, parts):
    (tmp_path / name).write_text(content)
    with refused(name, *parts):
        label_names(DataConfig(dataset="file", data_path=str(tmp_path / name)))


def test_a_folder_without_training_rows_is_named_when_they_are_needed(refused, tmp_path):
    path = write(tmp_path / "test.csv", ["a"], ["b"])
    with refused(f"no train.csv, .jsonl or .parquet beside {path}"):
        load_files(DataConfig(dataset="file", data_path=str(tmp_path))).training()


def test_nan_in_a_parquet_label_is_a_missing_label(refused, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), path)
    with refused("row 2 has no label"):
        label_names(DataConfig(dataset="file", data_path=str(path)))


@pytest.mark.parametrize("load", [label_names, lambda config: own(config.data_path)])
def test_a_path_that_does_not_exist_is_refused(refused, tmp_path, load):
    with refused(tmp_path / "none.csv", "does not exist"):
        load(DataConfig(dataset="file", data_path=str(tmp_path / "none.csv")))


@pytest.mark.parametrize("method", ["stat", "iterdir"])
def test_a_folder_without_permission_is_refused(refused, tmp_path, monkeypatch, method):
    def denied(self, **options):
        raise PermissionError(13, "Permission denied")

    config = DataConfig(dataset="file", data_path=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Path, method, denied)
        with refused("data-path", "Permission denied"):
            label_names(config)


# Fingerprints


def table(**changes):
    columns = {"texts": ["a", "bc"], "labels": ["x", "y"], "groups": ["1", "2"]} | changes
    return Table(source="here", **columns)


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": ["ab", "c"]},
        {"texts": ["bc", "a"]},
        {"labels": ["y", "x"]},
        {"labels": ["xy", ""]},
        {"labels": []},
        {"groups": ["12", ""]},
        {"groups": None},
        {"texts": ["a", "bc", ""], "labels": ["x"]},
    ],
)
def test_a_fingerprint_depends_on_every_cell_and_its_place(changes):
    assert table(**changes).fingerprint != table().fingerprint == table().fingerprint


def test_a_fingerprint_does_not_depend_on_the_file(tmp_path):
    found = {
        load(write(tmp_path / f"x.{suffix}", TEXTS, LABELS)).train.fingerprint for suffix in FORMATS
    }
    assert len(found) == 1
    one = (1).to_bytes(8, "big")  # a number of cells, and the length of a cell
    expected = hashlib.sha256(one + one + b"a" + one + one + b"x" + bytes(8)).hexdigest()
    assert table(texts=["a"], labels=["x"], groups=None).fingerprint == expected


# The hub


CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
)


def put_on_hub(monkeypatch, **splits):
    """Make `datasets.load_dataset` return these splits, each of texts and class numbers."""
    found = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": texts, "label": labels}, CLASSES)
            for split, (texts, labels) in splits.items()
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"a/b": found}[name])


def test_the_labels_of_a_hub_data_set_are_its_class_names(monkeypatch):
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


def test_a_hub_validation_split_counts_as_one_in_a_folder(monkeypatch, caplog):
    train, validation = (["good", "bad"], [0, 1]), (["fine"], [1])
    config = DataConfig(dataset="a/b")
    put_on_hub(monkeypatch, train=train, validation=validation)
    assert list(load_hub(config).test.labels) == ["neg"]
    PROCESS_CACHE.clear()
    put_on_hub(monkeypatch, train=train, validation=validation, test=(["so", "la"], [-1, -1]))
    assert list(load_hub(config).test.labels) == ["neg"]
    PROCESS_CACHE.clear()
    put_on_hub(monkeypatch, train=train, validation=validation, test=(["so"], [0]))
    assert list(load_hub(config).test.labels) == ["pos"]
    used, used_too, unused = caplog.messages
    assert "there is no test split" in used
    assert "the test split has no labels" in used_too
    assert "the validation split is not used" in unused


def test_only_the_wanted_columns_of_a_hub_data_set_are_read(monkeypatch):
    data = datasets.Dataset.from_dict(
        {"text": [b"caf\xc3\xa9", b"x"], "label": [1.0, 0.0], "seen": pa.array([2**62] * 2)},
    ).cast_column("seen", datasets.Value("timestamp[us]"))
    found = datasets.DatasetDict({"train": data})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: found)
    table = load_hub(DataConfig(dataset="a/b")).train
    assert (list(table.texts), list(table.labels)) == (["café", "x"], ["1", "0"])


@pytest.mark.parametrize("name", ["imdb", "a/imdb", "./imdb", "imdb.csv"])
def test_a_folder_with_the_name_of_a_hub_data_set_is_refused(refused, monkeypatch, tmp_path, name):
    """`datasets` would read it in place of the hub's, and keep a copy of its texts."""
    write(tmp_path / name / ("." if name.endswith("csv") else "train.csv"), ["a"], ["b"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("it was loaded"))
    with refused(f'dataset = "{name}"', f'dataset = "file" and data-path = "{name}"'):
        label_names(DataConfig(dataset=name))


def test_a_hub_data_set_without_train_is_refused(refused, monkeypatch):
    put_on_hub(monkeypatch, validation=(["good"], [0]))
    with refused('dataset = "a/b"', "train", "validation"):
        label_names(DataConfig(dataset="a/b"))


def test_hub_training_rows_without_a_label_are_refused(refused, monkeypatch):
    put_on_hub(monkeypatch, train=(["good", "bad"], [-1, 1]), test=(["fine"], [0]))
    with refused("a/b", "split train", "row 1 has no label"):
        label_names(DataConfig(dataset="a/b"))


def test_a_hub_test_split_without_labels_is_not_used(monkeypatch, caplog):
    put_on_hub(monkeypatch, train=(["good", "bad"], [0, 1]), test=(["fine", "so"], [-1, -1]))
    assert server_test_set(DataConfig(dataset="a/b"), MODEL, 1) is None
    assert caplog.messages == [
        "dataset a/b, split test: not used as test split, because no row has a label "
        '(label-column = "label")'
    ]


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
def test_a_failure_of_the_hub_gives_one_line_that_says_what_to_do(refused, monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with refused(
        'dataset = "a/b"', str(error).splitlines()[0], 'dataset = "file"', "data-path", "triage"
    ):
        label_names(DataConfig(dataset="a/b"))


def test_an_empty_data_set_name_is_refused(refused):
    with refused('dataset = "'):
        label_names(DataConfig(dataset=""))
