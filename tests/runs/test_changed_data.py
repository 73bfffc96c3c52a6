"""A run keeps the data, labels and tokenizer that it began with, or it ends with one line."""

import pytest
from flwr.clientapp import ClientApp
from helpers.data_files import write

from fedattn_app import client_app
from fedattn_app.errors import RunFailedError
from fedattn_app.files import read_arrays, write_arrays
from fedattn_app.results.checkpoint import CHECKPOINT
from fedattn_app.simulation import simulate

TEXTS = [f"{word} tale number {n}" for n in range(20) for word in ("good", "bad", "fine")]
LABELS = ["pos", "neg", "pos"] * 20

# What may happen to the files of a run, as (training texts, training labels, test labels).
CHANGES = {
    "a label has another name": (TEXTS, [label.replace("pos", "a-pos") for label in LABELS], None),
    "a row is added": ([*TEXTS, "a new tale"], [*LABELS, "pos"], LABELS),
    "a row is removed": (TEXTS[1:], LABELS[1:], LABELS),
    "two rows change places": ([TEXTS[1], TEXTS[0], *TEXTS[2:]], LABELS, LABELS),
    "a text is corrected": (["other words", *TEXTS[1:]], LABELS, LABELS),
    "a label is corrected": (TEXTS, ["neg", *LABELS[1:]], LABELS),
}


def write_data(folder, texts=TEXTS, labels=LABELS, test_labels=LABELS, suffix="csv"):
    write(folder / f"train.{suffix}", texts, labels)
    write(folder / f"test.{suffix}", TEXTS, labels if test_labels is None else test_labels)


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "data"
    write_data(folder)
    return {
        "model": "tiny",
        "vocabulary": 512,
        "dataset": "file",
        "data-path": str(folder),
        "num-rounds": 2,
        "output-dir": str(tmp_path / "run"),
    }


def changing_app(change):
    """A ClientApp that calls `change` once, before the first training message of round 2."""
    app, changed = ClientApp(), []
    app.query()(client_app.describe)
    app.evaluate()(client_app.evaluate)

    @app.train()
    def train(message, context):
        if message.content.config_records["config"]["server-round"] == 2 and not changed:
            changed.append(True)
            change()
        return client_app.train(message, context)

    return app


@pytest.mark.parametrize("name", CHANGES)
def test_training_data_that_change_during_a_run_end_it(settings, tmp_path, name):
    app = changing_app(lambda: write_data(tmp_path / "data", *CHANGES[name]))
    with pytest.raises(RunFailedError, match="training data of this client are not those") as error:
        simulate(settings, 2, workers=1, quiet=True, clients=app)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_written_anew_with_the_same_rows_does_not_end_a_run(settings, tmp_path):
    app = changing_app(lambda: write_data(tmp_path / "data"))
    assert simulate(settings, 2, workers=1, quiet=True, clients=app).summary["rounds"] == 2


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_resumed_on_other_training_data(settings, tmp_path, refused, name):
    run = simulate(settings, 2, workers=1, quiet=True).path
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write_data(tmp_path / "data", *CHANGES[name])
    parts = ["neg, pos", "a-pos, neg"] if "name" in name else ["training data have changed"]
    with refused("resume-from", *parts):
        simulate({"resume-from": str(run), "num-rounds": 3}, workers=1, quiet=True)
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_is_not_resumed_on_other_test_data(settings, tmp_path, refused):
    run = simulate(settings, 2, workers=1, quiet=True).path
    write_data(tmp_path / "data", test_labels=["neg", *LABELS[1:]])
    with refused("resume-from", "test data have changed"):
        simulate({"resume-from": str(run), "num-rounds": 3}, workers=1, quiet=True)


def test_a_run_is_resumed_on_the_same_rows_in_another_format(settings, tmp_path):
    run = simulate(settings, 2, workers=1, quiet=True).path
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    write_data(tmp_path / "data", suffix="parquet")
    result = simulate({"resume-from": str(run), "num-rounds": 3}, workers=1, quiet=True)
    assert result.summary["rounds"] == 3


def test_a_run_is_resumed_where_its_data_have_moved_to(settings, tmp_path, refused):
    run = simulate(settings, 2, workers=1, quiet=True).path
    (tmp_path / "data").rename(tmp_path / "moved")
    resumed = {"resume-from": str(run), "num-rounds": 3, "data-path": str(tmp_path / "moved")}
    assert simulate(resumed, workers=1, quiet=True).summary["rounds"] == 3
    write_data(tmp_path / "other", *CHANGES["a label has another name"])
    with refused("neg, pos", "a-pos, neg"):
        simulate(resumed | {"data-path": str(tmp_path / "other")}, workers=1, quiet=True)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("labels", '["neg", "negative"]', "its labels are neg, negative, and"),
        ("labels", '["pos", "neg"]', "its labels are pos, neg, and"),
        ("labels", "[]", "its labels are not recorded"),
        ("labels", "no JSON", "its labels cannot be read"),
        ("labels", "5", "its labels cannot be read"),
        ("labels", '"abc"', "its labels cannot be read"),
        ("labels", '[["a"]]', "its labels cannot be read"),
        ("labels", "[" * 50_000, "its labels cannot be read"),
        ("round", "-1", "it names no round"),
        ("num-partitions", "x", "it names no num-partitions"),
        ("num-partitions", "9" * 5000, "it names no num-partitions"),
        ("tokenizer", "0" * 64, "its tokenizer is not"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(settings, refused, part, value, reason):
    run = simulate(settings, 2, workers=1, quiet=True).path
    arrays, about = read_arrays(run / CHECKPOINT)
    write_arrays(run / CHECKPOINT, arrays, about | {part: value})
    with refused(reason):
        simulate({"resume-from": str(run), "num-rounds": 3}, workers=1, quiet=True)
