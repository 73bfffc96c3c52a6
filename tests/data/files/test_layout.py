"""The files of each split, in folders as people, the hub and Spark make them."""

import gzip
import shutil

import pytest
from helpers.data_files import load, pairs, sentences, write

from fedattn_app.config import DataConfig
from fedattn_app.data.files.layout import find_splits, suffix_of
from fedattn_app.data.sources import load_files

pytestmark = pytest.mark.usefixtures("fresh_caches")

ROWS = sentences(12)


def put(path, rows=ROWS):
    """Write rows in the format of the path's suffix, which may be in upper case or end in .gz."""
    name = path.name.lower().removesuffix(".gz").replace(".tsv", ".csv")
    plain = write(path.parent / "scratch" / name, *map(list, zip(*rows, strict=True)))
    content = plain.read_bytes()
    shutil.rmtree(plain.parent)
    if ".tsv" in path.name:
        content = content.replace(b",", b"\t")
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def put_all(folder, *names):
    """Write files that share the rows in the order of `names`."""
    share = len(ROWS) // len(names)
    for number, name in enumerate(names):
        put(folder / name, ROWS[number * share : (number + 1) * share])


# One file


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        *("train.csv", "TRAIN.CSV", "Train.Parquet", "train.tsv", "train.csv.gz", "train.tsv.gz"),
        *("train.jsonl.gz", "TRAIN.JSONL", "training.csv"),
    ],
)
def test_names_of_files(tmp_path, caplog, name, folder):
    put(tmp_path / name)
    for other in (
        "~$train.csv",
        ".train.csv",
        "train.csv.bak",
        "train.csv~",
        ".DS_Store",
        "_x.csv",
    ):
        (tmp_path / other).write_bytes(b"\0\1")
    assert pairs(load(tmp_path if folder else tmp_path / name).train) == ROWS
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(("a.csv", ".csv"), ("a.CSV.GZ", ".csv.gz"), ("a.b.ndjson", ".ndjson"), ("a.csvx", "")),
        *(("a.parquet.gz", ""), ("a.gz", ""), ("csv", ""), ("a.txt", ""), ("a.xlsx", "")),
    ],
)
def test_the_suffix_of_a_name(name, suffix):
    assert suffix_of(name) == suffix


@pytest.mark.parametrize("name", ["x.txt", "x.xlsx", "x", "x.csv.zip", "x.csv.bak"])
def test_a_file_of_another_format_is_refused(refused, tmp_path, name):
    (tmp_path / name).write_text("text,label\na,b\n")
    with refused(tmp_path / name, ".csv, .tsv", ".parquet", ".gz"):
        load(tmp_path / name)


# Shards and parts


@pytest.mark.parametrize("sub", ["", "data"])
@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00001.parquet"],
        [f"train-0000{number}-of-00003.parquet" for number in range(3)],
        ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba98.parquet"],
        ["train-1-of-2.csv", "train-2-of-2.csv"],
        ["train-00000-of-00002.jsonl.gz", "train-00001-of-00002.jsonl.gz"],
    ],
    ids=["one", "three", "hashes", "from 1", "compressed"],
)
def test_shards_are_one_split_in_their_order(tmp_path, caplog, names, sub):
    put_all(tmp_path / sub, *names)
    put(tmp_path / sub / "test-00000-of-00001.parquet", ROWS[:2])
    splits = load(tmp_path)
    assert pairs(splits.train) == ROWS
    assert pairs(splits.test) == ROWS[:2]
    assert caplog.messages == []


def test_more_than_ten_shards_are_in_the_order_of_their_numbers(tmp_path):
    put_all(tmp_path, *(f"train-{number}-of-12.csv" for number in range(12)))
    assert pairs(load(tmp_path).train) == ROWS


def test_a_missing_shard_is_refused(refused, tmp_path):
    put_all(tmp_path / "data", "train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    with refused("data-path", "shard 00001 of 3 is missing", "train-00000-of-00003.parquet"):
        load(tmp_path)


def test_a_shard_that_is_there_twice_is_refused(refused, tmp_path):
    put_all(tmp_path, "train-0-of-2.csv", "train-00000-of-2.csv", "train-1-of-2.csv")
    with refused("holds both train-0", "train-00000-of-2.csv"):
        load(tmp_path)


def test_an_error_in_a_shard_names_that_shard(refused, tmp_path):
    put_all(tmp_path, "train-0-of-2.csv", "train-1-of-2.csv")
    (tmp_path / "train-1-of-2.csv").write_text("text,label\nx,a\ny\n")
    with refused(tmp_path / "train-1-of-2.csv", "line 3"):
        load(tmp_path)
    (tmp_path / "train-1-of-2.csv").write_text("text,label\nx,a\ny,\n")
    with refused(tmp_path / "train-1-of-2.csv", "line 3 has no label"):
        load(tmp_path)


def test_one_shard_can_be_read_alone_and_a_line_says_so(tmp_path, caplog):
    put_all(tmp_path, "train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    assert pairs(load(tmp_path / "train-00001-of-00002.parquet").train) == ROWS[6:]
    assert [line.split(": ", 1)[1] for line in caplog.messages] == ["not used: its other shards"]


@pytest.mark.parametrize("as_path", [False, True], ids=["in a folder", "data-path"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl.gz"])
def test_a_folder_as_spark_writes_it_is_one_split(tmp_path, caplog, suffix, as_path):
    parts = tmp_path / f"train.{suffix.removesuffix('.gz')}"
    put_all(parts, *(f"part-0000{number}-1f2e-c000.{suffix}" for number in range(3)))
    for name in ("_SUCCESS", "._SUCCESS.crc", f".part-00000-1f2e-c000.{suffix}.crc"):
        (parts / name).write_bytes(b"")
    assert pairs(load(parts if as_path else tmp_path).train) == ROWS
    assert caplog.messages == []


def test_a_part_without_rows_is_no_mistake(tmp_path):
    put_all(tmp_path / "train.csv", "part-0.csv", "part-1.csv")
    (tmp_path / "train.csv" / "part-2.csv").write_text("text,label\n")
    (tmp_path / "train.csv" / "part-3.csv").write_text("")
    assert pairs(load(tmp_path).train) == ROWS


def test_folders_with_the_names_of_splits_are_splits(tmp_path):
    put_all(tmp_path / "train", "0000.parquet", "0001.parquet")
    put(tmp_path / "test" / "0000.parquet", ROWS[:3])
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "notes.txt").write_text("nothing")
    splits = load(tmp_path)
    assert pairs(splits.train) == ROWS
    assert pairs(splits.test) == ROWS[:3]


# Two versions of a split, and none


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "train.jsonl"),
        ("train.csv", "TRAIN.csv"),
        ("train.csv", "train.csv.gz"),
        ("train.csv", "data/train.csv"),
        ("train.csv", "training.csv"),
        ("train.csv", "train/part-0.csv"),
        ("train.csv", "train-0-of-1.csv"),
        ("train.parquet/a.csv", "train.parquet/b.parquet"),
    ],
)
def test_two_versions_of_a_split_are_refused(refused, tmp_path, names):
    put_all(tmp_path, *names)
    shared = [name.rpartition("/")[2] for name in names]
    with refused("data-path", "holds both", *shared):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["train_0.csv", "train_1.csv"], "there are train_0.csv, train_1.csv"),
        (["mine.csv"], "there are mine.csv"),
        (["plain_text/train.csv"], "there is one in plain_text"),
        (["dev.csv"], "there are dev.csv"),
        (["train.parquet/x.txt"], "the folder train.parquet holds no data files"),
        (["notes.txt"], "in it"),
    ],
)
def test_a_folder_without_training_data_says_what_it_has(refused, tmp_path, names, part):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,b\n")
    with refused("data-path", part):
        load(tmp_path)


def test_a_line_names_files_that_look_like_a_part_of_a_split(tmp_path, caplog):
    put(tmp_path / "train.csv")
    for name in ("train_1.csv", "train (1).csv", "test_labels.csv", "other.csv", "train.txt"):
        put(tmp_path / name) if name.endswith("csv") else (tmp_path / name).touch()
    splits = load(tmp_path)
    assert (pairs(splits.train), splits.test) == (ROWS, None)
    assert [line.split(": ", 1)[1] for line in caplog.messages] == [
        "not used: test_labels.csv, train (1).csv, train.txt, train_1.csv"
    ]


def test_a_broken_link_is_refused(refused, tmp_path):
    (tmp_path / "train.csv").symlink_to(tmp_path / "none.csv")
    with refused(tmp_path / "train.csv", "is a link to a file that is not there"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train/part-1.csv", "test.csv", "test"])
def test_a_broken_link_beside_the_data_is_refused(refused, tmp_path, name):
    put(tmp_path / "train" / "part-0.csv")
    (tmp_path / name).symlink_to(tmp_path / "none")
    with refused(tmp_path / name, "is a link to a file that is not there"):
        load(tmp_path)


# Files that do not belong together, or are not read


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["train/train.csv", "train/dev.csv"], "folder train holds dev.csv"),
        (["train/a.csv", "train/test.csv"], "folder train holds test.csv"),
        (["train.csv/train.csv", "train.csv/test.csv"], "folder train.csv holds test.csv"),
        (["training/train.csv", "training/test.csv"], "folder training holds test.csv"),
        (["test/test.csv", "test/train.csv"], "folder test holds train.csv"),
        (["train/part-0-of-3.csv", "train/part-2-of-3.csv"], "shard 00001 of 3 is missing"),
        (["train/train-0-of-3.csv", "train/train-2-of-3.csv"], "shard 00001 of 3 is missing"),
        (["train/a.csv", "train/more/b.csv"], "sub-folder (more/b.csv)"),
        (["train.csv/a.csv", "train.csv/year=2020/b/c.csv"], "sub-folder (year=2020/b/c.csv)"),
        (["train.parquet/label=0/a.parquet"], "sub-folder (label=0/a.parquet)"),
        (["train/train.csv", "train/train (1).csv"], "train.csv and train (1).csv, a copy"),
        (["train/train.csv", "train/train - Copy.csv"], "train.csv and train - Copy.csv, a copy"),
        (["train/a.jsonl", "train/a copy.jsonl"], "a.jsonl and a copy.jsonl, a copy"),
    ],
)
def test_parts_that_are_not_one_table_are_refused(refused, tmp_path, names, part):
    put(tmp_path / "train.jsonl") if names[0].startswith("test/") else None
    put_all(tmp_path, *names)
    with refused("data-path", part):
        load(tmp_path)


@pytest.mark.parametrize("other", ["more/b.csv", "year=2020/b/c.csv", "a (1).csv"])
def test_the_folder_that_is_the_data_path_is_checked_as_well(refused, tmp_path, other):
    put_all(tmp_path / "mine.csv", "a.csv", other)
    with refused("folder mine.csv", other):
        load(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("data-00000-of-00001.arrow", "save_to_disk"),
    ],
)
@pytest.mark.parametrize("as_path", [False, True], ids=["in a folder", "data-path"])
def test_a_table_whose_old_files_are_still_there_is_refused(refused, tmp_path, mark, what, as_path):
    table = tmp_path / "train.parquet"
    put_all(table, "part-0.parquet", "part-1.parquet")
    (table / mark).parent.mkdir(exist_ok=True)
    (table / mark).write_text("{}\n")
    with refused("data-path", "train.parquet is ", what, "export it as Parquet"):
        load(table if as_path else tmp_path)


def test_an_empty_parquet_part_is_refused(refused, tmp_path):
    put(tmp_path / "train" / "a.parquet")
    (tmp_path / "train" / "b.parquet").touch()
    with refused("folder train holds b.parquet", "0 bytes"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("test.csv.zip", "test.xlsx", "test.txt", "test.csv.bz2", "test.arrow", "imdb_test.csv"),
        *(
            "2023_test.csv",
            "holdout.csv",
            "Test set.csv",
            "test_labels.csv",
            "valid.csv.crdownload",
        ),
        *("data/my-test.csv", "train/b.csv.bz2", "train/part-00000", "train/b.csv.crdownload"),
    ],
)
def test_a_line_names_every_file_that_seems_to_be_data_and_is_not_read(tmp_path, caplog, name):
    put(tmp_path / "train" / "a.csv")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("text,label\na,b\n")
    for other in ("other.csv", "train/b.csv~", "train/.c.csv", "latest.csv", "test.csv.bak"):
        (tmp_path / other).write_text("nothing")
    splits = load(tmp_path)
    assert (pairs(splits.train), splits.test) == (ROWS, None)
    assert [line.split(": ", 1)[1] for line in caplog.messages] == [f"not used: {name}"]


def test_a_line_names_a_test_folder_without_data_files(tmp_path, caplog):
    put(tmp_path / "train.csv")
    (tmp_path / "test" / "pos").mkdir(parents=True)
    (tmp_path / "test" / "pos" / "1.txt").write_text("a fine day")
    assert load(tmp_path).test is None
    assert [line.split(": ", 1)[1] for line in caplog.messages] == ["not used: test"]


def test_a_path_with_a_line_end_is_refused_in_one_line(refused, tmp_path):
    put(tmp_path / "a\nb" / "train.csv")
    with refused("data-path", r"a\nb", "line end"):
        load(tmp_path / "a\nb")


def test_a_path_with_control_characters_gives_one_line(refused):
    with refused("data-path", "does not exist"):
        find_splits("C:\temp\new.csv")


# The validation split


@pytest.mark.parametrize("word", ["validation", "valid", "val", "dev", "eval", "Validation"])
def test_the_validation_split_is_the_test_split_if_there_is_none(tmp_path, caplog, word):
    put(tmp_path / "train.csv")
    put(tmp_path / f"{word}.csv", ROWS[:3])
    assert pairs(load(tmp_path).test) == ROWS[:3]
    assert len(caplog.messages) == 1
    assert "validation split is used as test split" in caplog.messages[0]


def test_a_line_says_that_the_validation_split_is_not_used(tmp_path, caplog):
    for name, rows in (("train", ROWS), ("validation", ROWS[:3]), ("test", ROWS[:2])):
        put(tmp_path / f"{name}.csv", rows)
    assert pairs(load(tmp_path).test) == ROWS[:2]
    assert len(caplog.messages) == 1
    assert "validation split is not used" in caplog.messages[0]


def test_two_validation_splits_are_refused_only_if_one_is_needed(refused, tmp_path, caplog):
    for name in ("train", "valid", "dev"):
        put(tmp_path / f"{name}.csv")
    with refused("holds both dev.csv and valid.csv"):
        load(tmp_path)
    put(tmp_path / "test.csv", ROWS[:2])
    assert pairs(load(tmp_path).test) == ROWS[:2]
    assert [line.split(": ", 1)[1] for line in caplog.messages] == ["not used: dev.csv, valid.csv"]


@pytest.mark.parametrize("content", ["text,label\na,-1\nb,-1\n", "text,label\na,\n", "text\na\n"])
def test_the_validation_split_replaces_a_test_split_without_labels(tmp_path, caplog, content):
    put(tmp_path / "train.csv")
    put(tmp_path / "validation.csv", ROWS[:3])
    (tmp_path / "test.csv").write_text(content)
    assert pairs(load(tmp_path).test) == ROWS[:3]
    assert "because the test split has no labels" in caplog.messages[0]


def test_under_secret_cells_do_not_decide_which_split_is_used(tmp_path):
    put(tmp_path / "train.csv")
    put(tmp_path / "validation.csv", ROWS[:3])
    (tmp_path / "test.csv").write_text("text,label\na,-1\nb,\n")
    config = DataConfig(dataset="file", data_path=str(tmp_path), labels="neg,pos")
    assert len(load_files(config, secret=True).test) == 2
