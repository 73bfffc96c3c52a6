"""Clients without differential privacy: training, evaluation and personal parameters."""

import numpy as np
import pytest
from flwr.app import RecordDict

from fedattn_app.clients.agreement import MismatchError
from fedattn_app.clients.base import FrozenClient
from fedattn_app.clients.node_state import ContextState, FolderState
from fedattn_app.clients.personal import PersonalClient
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.data.loading import client_data
from fedattn_app.data.triage import LABELS
from fedattn_app.models.parameters import fingerprint, get_arrays, without
from fedattn_app.models.transformer import build_model
from fedattn_app.training.loop import TrainingDivergedError, train


def config_of(**settings):
    keys = {name.replace("_", "-"): value for name, value in settings.items()}
    return Config.from_run_config({"model": "tiny", "vocabulary": 512, **keys})


def data_of(config, partition=0):
    data = client_data(config.data, config.model, 1, partition, 3)
    first = np.arange(64)
    return ClientData(data.train[first], data.validation[first[:20]])


def client_of(partition=0, **settings):
    config = config_of(**settings)
    return FrozenClient(config, LABELS, data_of(config, partition), partition)


def initial_arrays(config):
    return get_arrays(build_model(config.model, len(LABELS), config.federation.seed))


def test_fit_trains_the_shared_parameters_locally():
    client = client_of(shared="attention")
    start = client.get_parameters({})
    arrays, num_examples, metrics = client.fit(start, {"server-round": 1})
    model = build_model(client.config.model, len(LABELS), 1)
    expected = train(
        model, set(client.shared), client.data.train, client.config.training, client.seed(1)
    )
    after = get_arrays(model)
    for name, array in zip(client.shared, arrays, strict=True):
        assert array.tobytes() == after[name].tobytes()
    assert num_examples == len(client.data.train)
    assert (metrics["loss"], metrics["accuracy"]) == (expected.loss, expected.accuracy)
    assert metrics["seconds"] > 0


def test_clients_of_one_process_do_not_disturb_each_other():
    first, second = client_of(0), client_of(1)
    start = first.get_parameters({})
    alone, *_ = first.fit(start, {"server-round": 1})
    second.fit(start, {"server-round": 1})
    again, *_ = first.fit(start, {"server-round": 1})
    assert all(a.tobytes() == b.tobytes() for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize("change", ["nothing", "round", "partition", "seed"])
def test_round_partition_and_seed_each_change_the_order_of_examples(change):
    # With everything shared, both clients start from the same arrays whatever their seed.
    client = client_of(0, shared="all")
    start = client.get_parameters({})
    before, *_ = client.fit(start, {"server-round": 1})
    other = FrozenClient(
        config_of(shared="all", seed=2 if change == "seed" else 1),
        LABELS,
        client.data,
        1 if change == "partition" else 0,
    )
    after, *_ = other.fit(start, {"server-round": 2 if change == "round" else 1})
    same = all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
    assert same == (change == "nothing")


def test_the_counts_of_evaluate_add_up():
    client = client_of()
    loss, num_examples, metrics = client.evaluate(client.get_parameters({}), {})
    counts = {
        kind: [metrics[f"{kind}-{k}"] for k in range(len(LABELS))]
        for kind in ("support", "predicted", "correct")
    }
    assert num_examples == 20 == sum(counts["support"]) == sum(counts["predicted"])
    assert metrics["accuracy"] == sum(counts["correct"]) / 20
    assert counts["support"] == np.bincount(client.data.validation.labels, minlength=6).tolist()
    assert loss > 0


def test_equal_frozen_parameters_are_accepted_and_others_refused():
    client = client_of(shared="attention")
    frozen = without(initial_arrays(client.config), client.shared)
    start = client.get_parameters({})
    client.fit(start, {"frozen-fingerprint": fingerprint(frozen)})
    frozen["embedding.weight"] = frozen["embedding.weight"].copy()
    frozen["embedding.weight"][5, 5] += 1e-6
    for call in (client.fit, client.evaluate):
        with pytest.raises(MismatchError, match="frozen parameters of this node differ"):
            call(start, {"frozen-fingerprint": fingerprint(frozen)})


def test_a_client_without_examples_returns_the_arrays_it_was_sent():
    client = client_of()
    empty = client.data.train[np.arange(0)]
    client.data = ClientData(empty, empty)
    start = [array + 1 for array in client.get_parameters({})]
    arrays, num_examples, _ = client.fit(start, {})
    assert num_examples == 0
    assert all(a is b for a, b in zip(arrays, start, strict=True))
    assert client.evaluate(start, {})[:2] == (0.0, 0)


def test_a_client_with_a_single_class_trains():
    client = client_of(local_epochs=5)
    examples = client.data.train[client.data.train.labels == client.data.train.labels[0]]
    client.data = ClientData(examples, examples)
    _, num_examples, metrics = client.fit(client.get_parameters({}), {})
    assert num_examples == len(examples)
    assert metrics["accuracy"] > 0.5


def test_a_loss_that_is_not_finite_raises():
    client = client_of(learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match="lower learning-rate"):
        client.fit(client.get_parameters({}), {})


def test_arrays_of_another_shape_are_refused():
    client = client_of()
    wrong = [array[:1] for array in client.get_parameters({})]
    with pytest.raises(ValueError, match="do the nodes agree on the model"):
        client.fit(wrong, {})


@pytest.fixture(params=["context", "folder"])
def state(request, tmp_path):
    return ContextState(RecordDict()) if request.param == "context" else FolderState(tmp_path)


def personal_client(state, partition=0):
    config = config_of(shared="attention", local="personal", local_epochs=5)
    return PersonalClient(config, LABELS, data_of(config, partition), partition, state)


def test_personal_parameters_are_trained_saved_and_loaded(state):
    client = personal_client(state)
    start = client.get_parameters({})
    client.fit(start, {"server-round": 1})
    saved = state.load(client.state_name)
    assert set(saved) == set(without(initial_arrays(client.config), client.shared))
    assert not np.array_equal(saved["head.weight"], initial_arrays(client.config)["head.weight"])
    loss, *_ = personal_client(state).evaluate(start, {})
    fresh, *_ = personal_client(ContextState(RecordDict())).evaluate(start, {})
    assert loss < fresh


def test_personal_parameters_of_another_seed_model_or_partition_are_not_loaded(state):
    client = personal_client(state)
    config = config_of(shared="attention", local="personal", seed=2)
    other_seed = PersonalClient(config, LABELS, client.data, 0, state)
    config = config_of(shared="attention", local="personal", layers=2)
    other_model = PersonalClient(config, LABELS, client.data, 0, state)
    names = {c.state_name for c in (client, other_seed, other_model, personal_client(state, 1))}
    assert len(names) == 4


def test_get_parameters_returns_copies():
    client = client_of()
    client.get_parameters({})[0][:] = 7
    assert not (client.get_parameters({})[0] == 7).any()


def test_personal_parameters_are_saved_before_the_update_is_returned(state, monkeypatch):
    client = personal_client(state)
    original = state.save

    def save_and_die(name, arrays):
        original(name, arrays)
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        client.fit(client.get_parameters({}), {})
    assert state.load(client.state_name) is not None
