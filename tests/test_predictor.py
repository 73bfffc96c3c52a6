import numpy as np
import pytest
import torch

from fedattn_app.parameters import get_arrays
from fedattn_app.predictor import Predictor
from fedattn_app.simulation import simulate
from fedattn_app.storage import write_arrays
from fedattn_app.triage import test_notes as notes_for_testing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "out"
    config = {"model": "tiny", "vocabulary": 512, "num-rounds": 2, "output-dir": str(path)}
    return simulate(config, 3, quiet=True)


def test_predicts_as_the_server_evaluated(run):
    notes = notes_for_testing(1)
    predicted = Predictor.load(run.path).predict([note.text for note in notes])
    right = sum(label == note.label for label, note in zip(predicted, notes, strict=True))
    assert right / len(notes) == pytest.approx(run.summary["accuracy"], abs=0.002)


def test_probabilities_are_distributions_and_batches_do_not_matter(run):
    predictor = Predictor.load(run.path / "model.safetensors")
    texts = ["denies chest pain", "", "hx of asthma, now ankle swelling " * 30]
    together = predictor.probabilities(texts * 30)
    alone = torch.cat([predictor.probabilities([text]) for text in texts])
    torch.testing.assert_close(together, alone.repeat(30, 1))
    torch.testing.assert_close(together.sum(1), torch.ones(90))


def test_attention_is_over_the_tokens_of_the_text(run):
    attention = Predictor.load(run.path).attention("denies chest pain")
    assert attention.tokens == ["denies", "chest", "pain"]
    assert [tuple(layer.shape) for layer in attention.maps] == [(2, 3, 3)]
    torch.testing.assert_close(attention.maps[0].sum(-1), torch.ones(2, 3))


def test_one_text_is_not_a_sequence_of_letters(run):
    with pytest.raises(TypeError, match="sequence of texts"):
        Predictor.load(run.path).predict("denies")


def test_a_personal_run_predicts_only_with_a_nodes_own_parameters(tmp_path, refused):
    config = {"model": "tiny", "vocabulary": 512, "num-rounds": 1, "local": "personal"}
    config |= {"shared": "attention", "output-dir": str(tmp_path / "out")}
    run = simulate(config, 2, quiet=True)
    with refused("personal"):
        Predictor.load(run.path)
    rest = {k: a + 1 for k, a in run.arrays.items() if ".attention." not in k}
    write_arrays(tmp_path / "personal.safetensors", rest)
    predictor = Predictor.load(run.path, tmp_path / "personal.safetensors")
    merged = get_arrays(predictor.model)
    for name, array in run.arrays.items():
        np.testing.assert_array_equal(merged[name], rest.get(name, array))


def test_a_model_that_is_passed_on_tells_no_paths(run):
    assert str(run.path).encode() not in (run.path / "model.safetensors").read_bytes()


def test_what_is_no_model_is_refused(run, tmp_path, refused):
    with refused("cannot be read"):
        Predictor.load(tmp_path / "none.safetensors")
    with refused("is not the model of a run"):
        Predictor.load(run.path / "checkpoint" / "model.safetensors")
