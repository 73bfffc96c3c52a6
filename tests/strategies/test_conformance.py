"""What every strategy must do inside `AttentionOnly`, ours and Flower's alike."""

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from helpers.replying import documented_rule

from fedattn_app.config import RULES, Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.strategy_factory import make_rule
from strategies import AttentionOnly, UpdateChecks

CLIENTS = 5
SETTINGS = {"krum": {"malicious": 1}, "multikrum": {"malicious": 1, "selected": 3}}


def factory(rule, **settings):
    return lambda: make_rule(Config.from_run_config({"strategy": rule, **settings}))


FACTORIES = {rule: factory(rule, **SETTINGS.get(rule, {})) for rule in RULES}
FACTORIES |= {
    f"fedavg by {weighting}": factory("fedavg", weighting=weighting)
    for weighting in ("uniform", "loss", "effective")
}
FACTORIES["flower's fedavg"] = FedAvg
FACTORIES["the documented one"] = lambda: documented_rule()[1]()
FACTORIES["checked fedavg"] = lambda: UpdateChecks(FACTORIES["fedavg"](), clip_norm=100.0)
# Where all clients agree, the model need not become what they agree on.
NOT_IDEMPOTENT = {
    "fedadagrad": "takes a step of its own towards it",
    "fedadam": "takes a step of its own towards it",
    "fedyogi": "takes a step of its own towards it",
    "qfedavg": "goes less far, by how large the losses are",
    "fedsgd": "is told gradients",
}
SHARED = {"attention.weight", "attention.scale"}


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


@pytest.fixture(params=FACTORIES)
def name(request):
    return request.param


@pytest.fixture
def make(name):
    return FACTORIES[name]


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {
        "embedding.weight": rng.normal(size=(7, 3)).astype(np.float32),
        "attention.weight": rng.normal(size=(3, 3)).astype(np.float32),
        "attention.scale": np.asarray(rng.normal(), dtype=np.float32),
        "head.bias": rng.normal(size=2),
    }


def record(values):
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in values.items()})


def shared_part(values):
    return {key: value for key, value in values.items() if key in SHARED}


def reply_to(node, values, num_examples):
    message = Message(RecordDict(), node, "train")
    numbers = {"num-examples": num_examples, "loss": 1.0 + node, "effective-number": num_examples}
    metrics = MetricRecord(numbers)
    return Message(RecordDict({"arrays": record(values), "metrics": metrics}), reply_to=message)


def replies(part=shared_part, sizes=(10, 20, 30, 40, 50)):
    """Make fresh replies: Flower's FedMedian empties those it is given."""
    return [reply_to(node, part(arrays(node + 1)), n) for node, n in enumerate(sizes)]


def grid():
    return LocalGrid(ClientApp(), CLIENTS, {})


def run_round(strategy, answers, before=None):
    """Configure a round and aggregate `answers`: the new global arrays and the metrics."""
    random.seed(0)
    list(strategy.configure_train(1, record(before or arrays(0)), ConfigRecord(), grid()))
    merged, metrics = strategy.aggregate_train(1, answers)
    return merged and {key: array.numpy() for key, array in merged.items()}, metrics


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        assert left[key].shape == right[key].shape
        assert left[key].tobytes() == right[key].tobytes(), key


def test_only_the_shared_arrays_change_and_none_changes_its_form(make):
    before = arrays(0)
    after, _ = run_round(AttentionOnly(make(), SHARED.__contains__), replies())
    assert list(after) == list(before)
    for key in before:
        assert after[key].dtype == before[key].dtype
        assert after[key].shape == before[key].shape
        assert (after[key].tobytes() == before[key].tobytes()) == (key not in SHARED)


def test_selecting_all_is_the_inner_strategy_exactly(make):
    wrapped, metrics = run_round(AttentionOnly(make(), lambda name: True), replies(part=dict))
    alone, alone_metrics = run_round(make(), replies(part=dict))
    for key, before in arrays(0).items():
        np.testing.assert_array_equal(wrapped[key], alone[key].astype(before.dtype))
    assert metrics == alone_metrics


def test_the_order_of_replies_does_not_matter(make):
    expected, expected_metrics = run_round(AttentionOnly(make(), SHARED.__contains__), replies())
    for seed in range(5):
        shuffled = random.Random(seed).sample(replies(), CLIENTS)
        got, metrics = run_round(AttentionOnly(make(), SHARED.__contains__), shuffled)
        assert_same_bits(got, expected)
        assert metrics == expected_metrics


@pytest.mark.parametrize("useless", ["failed", "without examples"])
def test_a_client_that_brings_nothing_changes_nothing(make, useless):
    if useless == "failed":
        extra = Message(Error(1, "boom"), reply_to=Message(RecordDict(), 9, "train"))
    else:
        extra = reply_to(9, shared_part(arrays(99)), 0)
    expected, _ = run_round(AttentionOnly(make(), SHARED.__contains__), replies())
    got, _ = run_round(AttentionOnly(make(), SHARED.__contains__), [*replies(), extra])
    assert_same_bits(got, expected)


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0, 0)])
def test_without_any_examples_the_model_stays(make, sizes):
    strategy = AttentionOnly(make(), SHARED.__contains__)
    assert run_round(strategy, replies(sizes=sizes)) == (None, None)
    assert strategy.aggregate_evaluate(1, replies(sizes=sizes)) is None


def test_clients_that_agree_are_what_they_agree_on(make, name):
    if name in NOT_IDEMPOTENT:
        pytest.skip(NOT_IDEMPOTENT[name])
    agreed = shared_part(arrays(3))
    answers = [reply_to(node, agreed, 10 + node) for node in range(CLIENTS)]
    after, _ = run_round(AttentionOnly(make(), SHARED.__contains__), answers)
    for key, value in agreed.items():
        np.testing.assert_allclose(after[key], value, rtol=1e-6)


def test_failed_replies_reach_the_inner_strategy(make):
    seen = []

    def watch(server_round, replies):
        seen.extend(replies)
        return None, None

    watching = make()
    watching.aggregate_train = watch
    failed = Message(Error(1, "boom"), reply_to=Message(RecordDict(), 2, "train"))
    AttentionOnly(watching, SHARED.__contains__).aggregate_train(1, [*replies(), failed])
    assert failed in [reply for reply in seen if reply.has_error()]


def test_flowers_dp_wrapper_still_skips_a_round_with_a_failure():
    failed = Message(Error(1, "boom"), reply_to=Message(RecordDict(), 9, "train"))
    for wrap in (lambda s: s, lambda s: AttentionOnly(s, lambda name: True)):
        strategy = wrap(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, CLIENTS))
        floats = [
            reply_to(node, {"head.bias": arrays(node)["head.bias"]}, 10) for node in range(CLIENTS)
        ]
        before = {"head.bias": arrays(0)["head.bias"]}
        assert run_round(strategy, [*floats, failed], before)[0] is None


def test_messages_carry_the_shared_arrays_and_the_config(make):
    strategy = AttentionOnly(make(), SHARED.__contains__)
    global_arrays, config = record(arrays(0)), ConfigRecord({"frozen-fingerprint": "abc"})
    sent = [
        *strategy.configure_train(3, global_arrays, config, grid()),
        *strategy.configure_evaluate(3, global_arrays, config, grid()),
    ]
    assert len(sent) == 2 * CLIENTS
    for message in sent:
        assert set(message.content.array_records["arrays"]) == SHARED
        config = message.content.config_records["config"]
        assert config["frozen-fingerprint"] == "abc"
        assert config["server-round"] == 3


def test_the_rest_goes_along_where_it_should(make):
    strategy = AttentionOnly(make(), SHARED.__contains__, with_rest=True)
    for message in strategy.configure_train(1, record(arrays(0)), ConfigRecord(), grid()):
        records = message.content.array_records
        assert set(records["arrays"]) == SHARED
        assert set(records["rest"]) == set(arrays(0)) - SHARED
