"""A run gives the same bits however its files spell the labels."""

import pytest
from helpers.data_files import write
from helpers.runs import same_arrays, without_times

from fedattn_app.analysis.predictor import Predictor
from fedattn_app.simulation import simulate

TEXTS = [f"{'good fine' if number % 2 else 'bad slow'} {number}" for number in range(60)]
WORDS = {"train": TEXTS[:48], "test": TEXTS[48:]}


def result_of(tiny, folder, train, test, **settings):
    """The result of a run on a folder of two files, each given by suffix and labels."""
    for split, (suffix, labels) in {"train": train, "test": test}.items():
        texts = WORDS[split]
        write(folder / f"{split}.{suffix}", texts, [labels[k % 2] for k in range(len(texts))])
    files = {"dataset": "file", "data-path": str(folder), "output-dir": str(folder / "run")}
    return simulate({**tiny, **files, "learning-rate": 0.01, **settings}, 2, quiet=True)


@pytest.fixture
def plain(tiny, tmp_path):
    """The result with the labels 0 and 1 in CSV files."""
    return result_of(tiny, tmp_path / "plain", ("csv", "01"), ("csv", "01"))


def test_spellings_of_the_labels_do_not_change_a_run(tiny, tmp_path, plain):
    assert plain.summary["accuracy"] > 0.5
    mixtures = [
        (("csv", ["0", "1"]), ("csv", ["0.0", "1.0"])),
        (("parquet", [0, 1]), ("jsonl", [0.0, 1.0])),
        (("jsonl", ["0 ", "\u00a01"]), ("parquet", [0.0, 1.0])),
    ]
    for number, (train, test) in enumerate(mixtures):
        result = result_of(
            tiny, tmp_path / str(number), train, test, labels="0.0, +1" * (number == 1)
        )
        assert same_arrays(result, plain)
        assert result.summary["recall_per_class"] == plain.summary["recall_per_class"]
        assert without_times(result)[0] == without_times(plain)[0]
        assert Predictor.load(result.path).labels == ["0", "1"]


def test_labels_with_commas_and_numbers_are_the_names_of_the_predictor(tiny, tmp_path):
    names = ["10", "2, or so"]
    files = ("csv", names), ("csv", names)
    found = result_of(tiny, tmp_path / "found", *files)
    named = result_of(tiny, tmp_path / "named", *files, labels='10, "2, or so"')
    assert list(found.summary["recall_per_class"]) == names
    assert same_arrays(found, named)
    assert set(Predictor.load(named.path).predict(["bad", "good"])) <= set(names)


def test_a_test_split_without_labels_is_as_if_there_were_none(tiny, tmp_path):
    result = result_of(tiny, tmp_path / "a", ("csv", "01"), ("csv", ["-1", "-1"]))
    alone = write(tmp_path / "b" / "train.csv", WORDS["train"], ["0", "1"] * 24)
    expected = simulate(
        {**tiny, "dataset": "file", "data-path": str(alone), "learning-rate": 0.01}, 2, quiet=True
    )
    assert same_arrays(result, expected)
    assert result.summary["accuracy"] == expected.summary["accuracy"]
