"""Adapters: their place, their effect, the parts that travel, and the effect of averaging."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from helpers.classifiers import ADAPTER_SCOPES, classifier, config_of, scores, selected
from helpers.pretrained_folders import FAMILIES_TESTED, LAYERS

from fedattn_app.flower_compat import task_identity
from fedattn_app.models.parameters import view_arrays
from strategies import WeightedFedAvg

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[*FAMILIES_TESTED, "tiny"])
def adaptable(request, pretrained_folder):
    """The value of the key `model` for every model that supports adapters."""
    return "tiny" if request.param == "tiny" else pretrained_folder(request.param)


def adapters(model):
    names = view_arrays(model)
    return {name.partition(".lora_A.")[0] for name in names if ".lora_A." in name}


def adapter(model, module, part):
    return model.get_parameter(f"{module}.lora_{part}.default.weight")


def layers_of(model):
    return 1 if model == "tiny" else LAYERS


@pytest.mark.parametrize("shared", ADAPTER_SCOPES)
def test_new_adapters_do_not_change_the_logits(adaptable, shared):
    adapted = classifier(adaptable, shared=shared)
    assert len(adapters(adapted)) == layers_of(adaptable) * 4
    assert all(not adapter(adapted, name, "B").any() for name in adapters(adapted))
    assert torch.equal(scores(adapted, adaptable), scores(classifier(adaptable), adaptable))


@pytest.mark.parametrize("targets", ["query", "value,query", "key,output", "output"])
def test_targets_select_the_projections_and_rank_sets_the_shape(adaptable, targets):
    plain = classifier(adaptable)
    model = classifier(adaptable, shared="lora", lora_targets=targets, lora_rank=3)
    adapted = adapters(model)
    assert len(adapted) == layers_of(adaptable) * len(targets.split(","))
    assert {first_letter(name) for name in adapted} == {role[0] for role in targets.split(",")}
    for name in adapted:
        rows, columns = plain.get_parameter(f"{name}.weight").shape
        assert adapter(model, name, "A").shape == (3, columns)
        assert adapter(model, name, "B").shape == (rows, 3)


def first_letter(module):
    """The first letter of a projection's name, such as `query`, `q_lin` or `query_proj`."""
    return module.split(".attention.")[1].removeprefix("self.")[0]


def test_the_initial_a_depends_on_the_seed_only(adaptable):
    loads = []
    for seed in (1, 1, 2):
        torch.rand(1)
        model = classifier(adaptable, shared="lora", seed=seed)
        loads.append({name: adapter(model, name, "A") for name in adapters(model)})
    first, again, other = loads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_an_adapter_adds_its_product_scaled_by_alpha_over_rank(adaptable):
    adapted = classifier(adaptable, shared="lora", lora_rank=4, lora_alpha=6)
    merged = classifier(adaptable)
    start = scores(merged, adaptable)
    with torch.no_grad():
        for name in adapters(adapted):
            b = adapter(adapted, name, "B").normal_(std=0.3)
            merged.get_parameter(f"{name}.weight").add_(1.5 * b @ adapter(adapted, name, "A"))
    expected = scores(merged, adaptable)
    assert (expected - start).abs().max() > 0.01
    torch.testing.assert_close(scores(adapted, adaptable), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shared", "travels"), ADAPTER_SCOPES.items())
def test_the_matrices_of_the_scope_travel_with_the_head(adaptable, shared, travels):
    head = selected(classifier(adaptable), "head").shared
    model = classifier(adaptable, shared=shared)
    parts = {
        part: {f"{name}.lora_{part}.default.weight" for name in adapters(model)} for part in "AB"
    }
    local = config_of(adaptable, shared=shared).federation.local
    scope = selected(model, shared, local)
    assert scope.shared == head.union(*(parts[part] for part in travels))
    assert scope.personal == (parts["B"] if shared == "lora-a" else set())
    assert scope.frozen == set(view_arrays(model)) - scope.trainable


@pytest.fixture
def clients():
    """The numbers of examples, A and B of five clients."""
    rng = np.random.default_rng(0)
    return [1, 5, 2, 30, 7], rng.normal(size=(5, 2, 6)), rng.normal(size=(5, 4, 2))


def average(num_examples, **arrays):
    """The server's average of each array, whose first axis counts the clients."""
    with task_identity():
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({k: Array(a[node]) for k, a in arrays.items()}),
                        "metrics": MetricRecord({"num-examples": number}),
                    }
                ),
                reply_to=Message(RecordDict(), node, "train"),
            )
            for node, number in enumerate(num_examples)
        ]
        record, _ = WeightedFedAvg().aggregate_train(1, replies)
    return (record[name].numpy() for name in arrays)


def test_averaging_a_and_b_separately_is_off_by_their_covariance(clients):
    weights, a, b = clients
    mean_a, mean_b = average(weights, a=a, b=b)
    expected = np.average(b @ a, axis=0, weights=weights)
    covariance = np.average((b - mean_b) @ (a - mean_a), axis=0, weights=weights)
    assert np.abs(covariance).max() > 0.1
    np.testing.assert_allclose(expected - mean_b @ mean_a, covariance, atol=1e-12)


def test_averaging_only_b_is_exact_if_all_clients_have_the_same_a(clients):
    weights, a, b = clients
    (mean_b,) = average(weights, b=b)
    expected = np.average(b @ a[0], axis=0, weights=weights)
    np.testing.assert_allclose(mean_b @ a[0], expected, atol=1e-12)
