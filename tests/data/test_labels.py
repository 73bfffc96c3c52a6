"""The labels of a run, labels of the test data that training lacks, and rows without a label."""

import logging

import pytest
from helpers.data_files import FORMATS, MODEL, NUMBERED, THREE, own, rows, rows_of, shares, write

from fedattn_app.config import DataConfig
from fedattn_app.data import dataset_kinds
from fedattn_app.data.dataset_kind import DatasetKind
from fedattn_app.data.doubtful_labels import log_doubtful_labels
from fedattn_app.data.examples import UNKNOWN_LABEL
from fedattn_app.data.labels import label_names, list_labels
from fedattn_app.data.loading import check_split, private_data, server_test_set
from fedattn_app.data.sources import Table

pytestmark = pytest.mark.usefixtures("fresh_caches")

TWENTY = [f"text {number}" for number in range(20)]


def split(folder, train, test, suffix="csv", test_suffix="csv", **settings):
    """`DataConfig` for a folder whose splits have these labels."""
    write(folder / f"train.{suffix}", TWENTY[: len(train)], train)
    write(folder / f"test.{test_suffix}", TWENTY[: len(test)], test)
    return DataConfig(dataset="file", data_path=str(folder), **settings)


def secret(path, labels="a,b", **settings):
    """The examples of a node whose training is private."""
    return private_data(DataConfig(labels=labels, **settings), MODEL, 1, str(path), secret=True)


# Spellings

# The same two labels, no and yes, in columns of different types.
SPELLINGS = {
    "whole numbers": ([0, 1], ["0", "1"]),
    "numbers": ([0.0, 1.0], ["0", "1"]),
    "numbers as text": (["0.0", "1.0"], ["0", "1"]),
    "whole numbers as text": (["0", "1"], ["0", "1"]),
    "signed": (["-0", "+1"], ["0", "1"]),
    "truth values": ([False, True], ["false", "true"]),
    "truth values as text": (["false", "TRUE"], ["false", "true"]),
    "words": (["no", "yes"], ["no", "yes"]),
    "spaced words": ([" no", "yes\u00a0"], ["no", "yes"]),
}
PAIRS = [
    (one, other)
    for one, (_, names) in SPELLINGS.items()
    for other, (_, other_names) in SPELLINGS.items()
    if names == other_names
]


@pytest.mark.parametrize("test_suffix", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_a_label_has_one_spelling_in_every_format(tmp_path, train, test, suffix, test_suffix):
    (trained, names), (tested, _) = SPELLINGS[train], SPELLINGS[test]
    config = split(tmp_path, trained * 3, tested * 2, suffix, test_suffix)
    expected = rows_of(TWENTY[:4], names * 2, names)
    assert label_names(config) == tuple(names)
    assert rows(server_test_set(config, MODEL, 1)) == expected
    assert shares(config, 1)[0] == rows_of(TWENTY[:6], names * 3, names)
    held = own(tmp_path, ",".join(map(str, tested)))
    assert rows(held.train) == shares(config, 1)[0]
    assert rows(held.validation) == expected


def test_the_values_of_a_json_column_may_differ_in_type(tmp_path):
    config = split(tmp_path, [1, 1.0, "1", "1.0", 0, "0"], ["0"], suffix="jsonl")
    assert label_names(config) == ("0", "1")


def test_labels_that_are_numbers_are_in_the_order_of_their_values(tmp_path):
    config = split(tmp_path, [str(number) for number in range(12)], ["11"])
    assert label_names(config) == tuple(map(str, range(12)))


def test_minus_one_may_be_a_label(tmp_path):
    config = split(tmp_path, ["-1", "1"] * 3, ["-1", "-1"])
    assert label_names(config) == ("-1", "1")
    assert len(server_test_set(config, MODEL, 1)) == 2


class Spaced(DatasetKind):
    """A kind of data set whose labels are not normalised."""

    def label_names(self, config):
        return ("1.0", " 2")

    def training_table(self, config, seed, num_clients):
        return Table(["one", "two"], ["1", "2.0"], "spaced")

    def test_table(self, config, seed):
        return Table(["three"], ["2 "], "spaced")


def test_the_labels_of_a_kind_of_ones_own_are_normalised(monkeypatch):
    kinds = {**dataset_kinds.DATASET_KINDS, "spaced": Spaced()}
    monkeypatch.setattr(dataset_kinds, "DATASET_KINDS", kinds)
    config = DataConfig(dataset="spaced")
    assert label_names(config) == ("1", "2")
    assert shares(config, 1)[0] == rows_of(["one", "two"], ["1", "2"], ["1", "2"])
    assert rows(server_test_set(config, MODEL, 1)) == rows_of(["three"], ["2"], ["1", "2"])


# Labels that only the test data have


@pytest.mark.parametrize("labels", ["", "neg,pos"], ids=["of the training rows", "named"])
@pytest.mark.parametrize(
    ("test", "parts"),
    [
        (["Pos", "neg", "Pos"], ["'Pos' (2 of 3 rows, perhaps 'pos')"]),
        (["poss", "nge", "pos"], ["'nge' (1 of 3 rows, perhaps 'neg')", "perhaps 'pos'"]),
        (["other", "pos"], ["'other' (1 of 2 rows);"]),
        (["-1", "x", "-1"], ["2 of 3 test rows have no label", "row 1"]),
        (list("abcde"), ["'a' (1 of 5 rows), 'b'", "'c' (1 of 5 rows) and 2 more;"]),
    ],
)
def test_a_label_of_the_test_data_alone_is_refused(refused, tmp_path, labels, test, parts):
    config = split(tmp_path, ["neg", "pos"] * 3, test, labels=labels)
    remedy = "remove" if "row 1" in parts else "correct the spelling"
    about = [] if "row 1" in parts else ["the labels are neg, pos;", "key labels"]
    with refused(tmp_path / "test.csv", remedy, *about, *parts):
        server_test_set(config, MODEL, 1)
    with refused(tmp_path / "test.csv", remedy, *about, *parts):
        own(tmp_path, "neg,pos")
    check_split(config, 1, 2)


def test_a_label_of_the_test_data_alone_may_be_named(tmp_path):
    config = split(tmp_path, ["neg", "pos"] * 3, ["odd"], labels="neg,pos,odd")
    assert server_test_set(config, MODEL, 1).labels.tolist() == [2]


def test_labels_with_commas_are_unambiguous_in_errors(refused, tmp_path):
    config = split(tmp_path, ["yes, surely", "no"], ["yes"])
    with refused('labels are no, "yes, surely";'):
        server_test_set(config, MODEL, 1)


def test_a_long_list_of_labels_is_shortened():
    assert list_labels("abc") == "a, b, c"
    assert list_labels(list("abcdefghijklm")) == "a, b, c, d, e, f, g, h, i, j and 3 more"


# Rows without a label


def unlabelled(folder, suffix, cells):
    """Write a folder whose test rows have these `cells` for labels; None: no such column."""
    write(folder / f"train.{suffix}", NUMBERED, THREE)
    column = "label" if cells else "id"
    write(folder / f"test.{suffix}", ["one", "two"], cells or ["7", "8"], label_column=column)
    return DataConfig(dataset="file", data_path=str(folder))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cells", [None, ["", " "], [-1, -1], ["-1", ""], [None, None]])
def test_a_test_split_without_labels_is_not_used(tmp_path, caplog, suffix, cells):
    config = unlabelled(tmp_path, suffix, cells)
    assert server_test_set(config, MODEL, 1) is None
    assert caplog.messages == [
        f"{tmp_path / f'test.{suffix}'}: not used as test split, because no row has a label "
        '(label-column = "label")'
    ]
    held, expected = own(tmp_path, "a,b,c"), own(tmp_path / f"train.{suffix}", "a,b,c")
    assert len(held.validation) == 6
    for part in ("train", "validation"):
        assert rows(getattr(held, part)) == rows(getattr(expected, part))


def test_a_missing_label_is_not_a_label_of_the_run(tmp_path):
    write(tmp_path / "test.csv", ["one", "two"], ["a", ""])
    assert label_names(DataConfig(dataset="file", data_path=str(tmp_path))) == ("a",)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_test_split_with_some_labels_is_refused(refused, tmp_path, suffix):
    config = unlabelled(tmp_path, suffix, ["a", ""])
    for load in (lambda: server_test_set(config, MODEL, 1), lambda: own(tmp_path, "a,b,c")):
        with refused(f"test.{suffix}", "1 of 2 test rows have no label", "row 2"):
            load()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cells", [["", ""], ["-1", "-1"], ["a", ""], ["x", "b"], ["a", "b"]])
def test_in_private_training_no_cell_decides_whether_a_test_split_is_used(
    tmp_path, caplog, suffix, cells
):
    unlabelled(tmp_path, suffix, cells)
    held = secret(tmp_path, "a,b,c")
    assert len(held.train) == 60
    known = ["abc".find(cell) if cell else -1 for cell in cells]
    expected = [number if number >= 0 else UNKNOWN_LABEL for number in known]
    assert held.validation.labels.tolist() == expected
    unknown = expected.count(UNKNOWN_LABEL)
    assert len(caplog.messages) == bool(unknown)
    assert all(f"{unknown} of 2 examples have no effect" in line for line in caplog.messages)


@pytest.mark.parametrize("suffix", FORMATS)
def test_in_private_training_a_header_without_labels_counts_and_a_json_row_does_not(
    tmp_path, suffix
):
    unlabelled(tmp_path, suffix, None)
    sizes = (60, 2) if suffix == "jsonl" else (54, 6)
    held = secret(tmp_path, "a,b,c")
    assert (len(held.train), len(held.validation)) == sizes


@pytest.mark.parametrize("cell", ["", " ", "\ufeff"])
def test_a_training_row_without_a_label_is_refused(refused, tmp_path, cell):
    config = split(tmp_path, ["a", "b", cell], ["a"])
    with refused("train.csv", "line 4 has no label"):
        label_names(config)


# Labels that are rarely meant


@pytest.mark.parametrize("count", [21, 60])
def test_a_column_with_a_label_for_almost_each_row_is_refused(refused, tmp_path, count):
    labels = [f"text {number % count}" for number in range(count + count // 2)]
    path = write(tmp_path / "x.csv", labels, labels)
    config = DataConfig(dataset="file", data_path=str(path))
    with refused("label-column = ", path, f"{count} different labels in {len(labels)} rows"):
        label_names(config)
    with refused("label-column = "):
        check_split(config, 1, 2)
    named = DataConfig(dataset="file", data_path=str(path), labels=",".join(set(labels)))
    check_split(named, 1, 2)


@pytest.mark.parametrize(("count", "num_rows"), [(20, 20), (21, 42)])
def test_a_few_rows_or_a_few_labels_are_not_suspect(tmp_path, count, num_rows):
    labels = [f"{number % count}" for number in range(num_rows)]
    path = write(tmp_path / "x.csv", labels, labels)
    assert len(label_names(DataConfig(dataset="file", data_path=str(path)))) == count


@pytest.mark.parametrize(
    ("train", "named", "lines"),
    [
        (["pos", "Pos", "neg"], "", ["'Pos' and 'pos' are different labels"]),
        (["pos", "Pos", "neg"], "neg,pos,Pos", []),
        (["pos", "neg"], "", []),
        (
            ["pos", "neg"],
            'neg,pos,"a, b"',
            ['no training example that the server reads has the label "a, b"'],
        ),
        (["pos", "pos"], "neg,pos", ["has the label neg"]),
        ([str(number % 1001) for number in range(2002)], "", ["there are 1001 different labels"]),
        (["a", "b"] * 30 + ["nan"] * 3, "", ["3 of 63 training rows have the label 'nan', which"]),
        (["a", "b"] * 30 + ["NULL"], "", ["1 of 61 training rows have the label 'NULL', which"]),
        (["a", "b"] * 30 + [r"\N"], "", [r"1 of 61 training rows have the label '\\N', which"]),
        (["a", "None"] * 30, "a,None", []),
        (["pos", "neg"] * 30 + ["psitive"], "", ["1 of 61 training rows have the label 'psitive'"]),
        (["pos", "neg"] * 5 + ["rare"], "", []),
        (["very good", "very_good"], "", ["'very good' and 'very_good' are different labels"]),
        (["1", "1.00", "x"], "", ["'1' and '1.00' are different labels"]),
        (["\uff11", "1"], "", ["'1' and '\uff11' are different labels"]),
        (["C", "C++", "C#", "+", "-"], "", []),
        (["0", "1", "-1"], "", ["1 of 3 training rows have the label '-1', which often means"]),
        (["1", "-1"], "", []),
        (["0", "-1"], "", []),
        (["a", "x" * 100, "X" * 100], "", [f"'{'X' * 60}…' and '{'x' * 60}…' are different"]),
    ],
)
def test_doubtful_labels_are_warned_about(tmp_path, caplog, train, named, lines):
    path = write(tmp_path / "x.csv", ["text"] * len(train), train)
    config = DataConfig(dataset="file", data_path=str(path), labels=named)
    log_doubtful_labels(config, label_names(config))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(lines)
    for line, message in zip(lines, caplog.messages, strict=True):
        assert line in message


def test_labels_of_nodes_that_the_server_cannot_read_are_not_doubtful(caplog):
    log_doubtful_labels(DataConfig(dataset="file", labels="a,b"), ("a", "b"))
    assert caplog.messages == []


@pytest.mark.parametrize("cell", ["NA", "NULL", "nan", r"\N", "N/A", "-1"])
def test_test_rows_with_a_word_for_a_missing_label_have_none(tmp_path, caplog, cell):
    write(tmp_path / "train.csv", ["one", "two"], ["a", "b"])
    write(tmp_path / "test.csv", ["three"], [cell])
    config = DataConfig(dataset="file", data_path=str(tmp_path))
    assert server_test_set(config, MODEL, 1) is None
    assert "not used as test split, because no row has a label" in caplog.text
