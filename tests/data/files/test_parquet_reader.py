"""Parquet files of many writers: their types become the texts and labels that were meant."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_files import load, pairs, sentences

from fedattn_app.config import DataConfig
from fedattn_app.data.sources import load_files

pytestmark = pytest.mark.usefixtures("fresh_caches")

TEXTS, LABELS = zip(*sentences(6), strict=True)


def put(folder, name="train.parquet", metadata=None, **columns):
    path = folder / name
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    return path


def class_label(names, column="label"):
    feature = {"names": names, "_type": "ClassLabel"}
    return json.dumps({"info": {"features": {column: feature, "text": {"dtype": "string"}}}})


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    ],
    ids=str,
)
def test_every_type_of_text_is_text(tmp_path, kind):
    texts = ["café", "", "naïve 😀", None]
    raw = [None if text is None else text.encode() for text in texts]
    values = raw if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else texts
    labels = pa.array(["b'a'", "x", "x", "y"]).cast(kind)
    path = put(tmp_path, text=pa.array(values).cast(kind), label=labels)
    assert pairs(load(path).train) == [("café", "b'a'"), ("", "x"), ("naïve 😀", "x"), ("", "y")]


def test_text_of_fixed_width_is_text(tmp_path):
    column = pa.array([b"neg", b"pos"], pa.binary(3))
    assert pairs(load(put(tmp_path, text=["a", "b"], label=column)).train) == [
        ("a", "neg"),
        ("b", "pos"),
    ]


@pytest.mark.parametrize("split", [1, 2])
def test_bytes_that_are_not_utf8_are_refused_with_their_row(refused, tmp_path, split, caplog):
    values = pa.array([b"fine", b"caf\xe9", b"fine"])
    if split == 2:  # marked as text by a writer that does not check
        values = pa.StringArray.from_buffers(3, *values.buffers()[1:])
    path = put(tmp_path, text=values, label=["a", "b", "a"])
    with refused(path, "row 2: column 'text' is not UTF-8 text"):
        load(path)
    config = DataConfig(dataset="file", data_path=str(path), labels="a,b")
    rows = pairs(load_files(config, secret=True).train)
    assert rows == [("fine", "a"), ("", ""), ("fine", "a")]
    assert f"{path}: 1 row could not be read and count as empty; the first is row 2" in (
        caplog.messages
    )


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([True, False], pa.bool_(), ["true", "false"]),
        ([1.0, 0.0], pa.float64(), ["1", "0"]),
        ([1.0, 0.5], pa.float32(), ["1", "0.5"]),
        ([1, 0], pa.uint8(), ["1", "0"]),
        ([decimal.Decimal("1.00"), decimal.Decimal("2.50")], pa.decimal128(5, 2), ["1", "2.50"]),
        ([datetime.date(2020, 1, 2)] * 2, pa.date32(), ["2020-01-02"] * 2),
        ([datetime.date(2020, 1, 2)] * 2, pa.date64(), ["2020-01-02"] * 2),
        ([2**62, 2**61], pa.timestamp("us"), None),
    ],
    ids=str,
)
def test_labels_of_other_types(tmp_path, values, kind, expected):
    column = pa.array(values, kind)
    found = load(put(tmp_path, text=["a", "b"], label=column)).train.labels
    assert expected is None or list(found) == expected
    assert all(found)


def test_only_the_wanted_columns_are_read(tmp_path):
    """Python's datetime cannot hold the time, and a column may not even be readable."""
    seen = pa.array([2**62] * 6, pa.timestamp("us"))
    nested = pa.array([[{"a": 1}]] * 6)
    path = put(
        tmp_path, seen=seen, **{"text.raw": nested, "text": TEXTS, "a.b": LABELS, "label": seen}
    )
    assert pairs(load(path, label_column="a.b").train) == sentences(6)


def test_several_row_groups_are_one_table(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), path, row_group_size=2)
    assert pairs(load(path).train) == sentences(6)


@pytest.mark.parametrize(
    "column", [[["a"], ["b"]], [{"a": 1}, {"a": 2}], [[], None]], ids=["list", "struct", "empty"]
)
@pytest.mark.parametrize("name", ["text", "label"])
def test_nested_columns_are_refused(refused, tmp_path, name, column):
    path = put(tmp_path, **{"text": ["a", "b"], "label": ["a", "b"], name: column})
    with refused(path, f"column {name!r} holds lists"):
        load(path)


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"text": pa.nulls(2), "label": ["a", "b"]}, ["'text' (text-column) is empty in every"]),
        ({"text": pa.nulls(2, pa.string()), "label": ["a", "b"]}, ["is empty in every row"]),
        ({"text": ["a", "b"], "label": ["a", None]}, ["row 2 has no label"]),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, ["no examples"]),
        ({"Text": ["a"], "label": ["a"]}, ["no column 'text'", 'text-column = "Text"']),
    ],
)
def test_columns_without_content_are_refused(refused, tmp_path, columns, parts):
    path = put(tmp_path, **columns)
    with refused(path, *parts):
        load(path)


def test_a_column_that_occurs_twice_is_refused(refused, tmp_path):
    table = pa.table([TEXTS, LABELS, TEXTS], ["text", "label", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    with refused("x.parquet", "'text' occurs twice", "columns 1 and 3"):
        load(tmp_path / "x.parquet")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"text", b""])
def test_a_damaged_file_is_refused(refused, tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with refused(tmp_path / "x.parquet"):
        load(tmp_path / "x.parquet")


# Class labels, as `datasets` writes them


def test_class_numbers_get_their_names(tmp_path):
    numbers = [("neg", "pos").index(label) for label in LABELS]
    put(tmp_path, text=TEXTS, label=numbers, metadata=class_label(["neg", "pos"]))
    put(tmp_path, "test.parquet", text=["x"], label=[1], metadata=class_label(["neg", "pos"]))
    splits = load(tmp_path)
    assert pairs(splits.train) == sentences(6)
    assert pairs(splits.test) == [("x", "pos")]


def test_what_datasets_writes_is_read_with_its_names(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "site": datasets.ClassLabel(names=["north", "south"]),
        }
    )
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 1], "site": [1, 0, 1]}
    data = datasets.Dataset.from_dict(rows, features)
    data.to_parquet(tmp_path / "x.parquet")
    table = load(tmp_path / "x.parquet", partition_by="site").train
    assert pairs(table) == [("a", "no"), ("b", "yes"), ("c", "yes")]
    assert list(table.groups) == ["south", "north", "south"]


def test_class_numbers_without_a_name_are_missing_or_refused(refused, tmp_path):
    names = class_label(["neg", "pos"])
    path = put(tmp_path, text=TEXTS, label=[0, 1, 0, -1, 1, 0], metadata=names)
    with refused(path, "row 4 has no label"):
        load(path)
    path = put(tmp_path, text=TEXTS, label=[0, 1, 0, 2, 1, 0], metadata=names)
    with refused(path, "row 4: the class 2 in column 'label' has no name", "2 classes"):
        load(path)
    config = DataConfig(dataset="file", data_path=str(path), labels="neg,pos")
    assert list(load_files(config, secret=True).train.labels)[3] == ""


@pytest.mark.parametrize(
    "metadata",
    ["", "no JSON", "[]", "{}", '{"info": null}', '{"info": {"features": {"label": []}}}'],
)
def test_other_metadata_name_no_classes(tmp_path, metadata):
    path = put(tmp_path, text=TEXTS, label=[0, 1] * 3, metadata=metadata)
    assert list(load(path).train.labels) == ["0", "1"] * 3


def test_labels_that_are_names_already_stay(tmp_path):
    path = put(tmp_path, text=TEXTS, label=LABELS, metadata=class_label(["x", "y"]))
    assert pairs(load(path).train) == sentences(6)
