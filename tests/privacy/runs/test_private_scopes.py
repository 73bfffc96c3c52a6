"""Training with differential privacy for every scope and kind of model."""

import pytest
from helpers.private_clients import CLIENTS, KINDS, TINY

from fedattn_app.config import Config
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import SCOPES, scope_of


def initial_arrays(config, labels):
    """The initial arrays of a run with this configuration, and its scope."""
    model = build_classifier(config, labels)
    arrays = get_arrays(model)
    federation = config.federation
    return arrays, scope_of(federation.shared, federation.local, model.family, arrays)


def assert_only_the_scope_changes(run, **settings):
    result, _ = run(noise_multiplier=1.0, num_rounds=1, **settings)
    config = Config.from_run_config(settings | {"noise-multiplier": 1.0})
    arrays, scope = initial_arrays(config, labels=("no", "yes"))
    changed = {name for name in arrays if arrays[name].tobytes() != result.arrays[name].tobytes()}
    assert changed == scope.shared
    assert (result.history[1]["clients"], result.history[1]["failures"]) == (CLIENTS, 0)


@pytest.mark.parametrize("shared", [*SCOPES, r"layers\.0\..*|head\.bias"])
def test_every_scope_trains_privately(run, shared):
    assert_only_the_scope_changes(run, privacy="dp-sgd", shared=shared, **TINY)


@pytest.mark.parametrize("shared", ["attention", "lora"])
@pytest.mark.parametrize("privacy", KINDS)
def test_a_pretrained_model_trains_privately(run, pretrained_folder, privacy, shared):
    folder = str(pretrained_folder("distilbert"))
    assert_only_the_scope_changes(run, privacy=privacy, shared=shared, model=folder)


def test_personal_parameters_train_privately_and_stay_on_the_node(run, kind):
    scope = {"shared": "attention", "local": "personal"}
    assert_only_the_scope_changes(run, privacy=kind, **scope, **TINY)
