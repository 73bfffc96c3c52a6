"""What every rule must do, ours and Flower's alike: by itself, and inside `AttentionOnly`."""

import random

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from helpers.replying import documented_rule, failed_reply, grid, record, reply

from fedattn_app.config import RULES, Config
from fedattn_app.privacy.protections import protection_of
from fedattn_app.server.strategy_factory import make_rule
from strategies import AttentionOnly, NormBounds, UpdateChecks, WeightedFedAvg
from strategies.common.state import load_state, state_of

NUM_CLIENTS = 5
NODES = list(grid(NUM_CLIENTS + 1).get_node_ids())  # the last is for one reply more
SHARED = {"attention.weight", "attention.scale"}

# Settings that a rule needs for five clients, or that make it keep a state.
SETTINGS = {
    "krum": {"malicious-clients": 1},
    "multikrum": {"malicious-clients": 1, "multikrum-selected": 3},
    "fedavgm": {"server-momentum": 0.9},
    "fedsgd": {"server-momentum": 0.9},
}


def factory(rule, **settings):
    config = Config.from_run_config({"strategy": rule, **settings})
    return lambda: make_rule(config, protection_of(config))


FACTORIES = {rule: factory(rule, **SETTINGS.get(rule, {})) for rule in RULES}
FACTORIES |= {
    f"fedavg by {weighting}": factory("fedavg", weighting=weighting)
    for weighting in ("uniform", "loss", "effective")
}
FACTORIES["flower's fedavg"] = FedAvg
FACTORIES["the documented one"] = lambda: documented_rule()[1]()
FACTORIES["checked fedavg"] = lambda: UpdateChecks(
    FACTORIES["fedavg"](), NormBounds(clip_norm=100.0)
)
# Flower's classes that add up in the order given; `AttentionOnly` sorts the replies for them.
SUM_ARRAYS_AS_GIVEN = {"flower's fedavg"}
SUM_METRICS_AS_GIVEN = {"flower's fedavg", "fedmedian", "fedtrimmedavg"}
# If all clients agree, these rules do not return what they agree on.
NOT_IDEMPOTENT = {
    "fedadagrad": "takes an adaptive step towards it",
    "fedadam": "takes an adaptive step towards it",
    "fedyogi": "takes an adaptive step towards it",
    "qfedavg": "takes a step that depends on the losses",
    "fedsgd": "expects gradients",
}
STATEFUL = ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedsgd")


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


def shared_part(values):
    return {key: value for key, value in values.items() if key in SHARED}


def reply_of(node, values, num_examples):
    more = {"effective-number": num_examples}
    return reply(node, num_examples, 1.0 + node - NODES[0], more, **values)


def replies(part=dict, sizes=(10, 20, 30, 40, 50), seed=0):
    """Make new replies on each call: Flower's FedMedian empties those it is given."""
    return [
        reply_of(node, part(arrays(10 * seed + number + 1)), size)
        for number, (node, size) in enumerate(zip(NODES, sizes, strict=False))
    ]


def shared_replies(**settings):
    return replies(shared_part, **settings)


def run_round(strategy, answers, before=None, server_round=1):
    """Configure a round and aggregate `answers`: the new global arrays and the metrics."""
    random.seed(server_round)
    before = record(**(before or arrays(0)))
    list(strategy.configure_train(server_round, before, ConfigRecord(), grid(len(NODES))))
    merged, metrics = strategy.aggregate_train(server_round, answers)
    return merged and {key: array.numpy() for key, array in merged.items()}, metrics


def sharing(rule):
    return AttentionOnly(rule, SHARED.__contains__)


def sharing_all(rule):
    return AttentionOnly(rule, lambda name: True)


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        assert left[key].shape == right[key].shape
        assert left[key].tobytes() == right[key].tobytes(), key


# Each rule by itself


def test_a_rule_does_not_depend_on_the_order_of_a_list(make, name):
    expected, expected_metrics = run_round(make(), replies())
    for seed in range(5):
        got, metrics = run_round(make(), random.Random(seed).sample(replies(), NUM_CLIENTS))
        if name not in SUM_ARRAYS_AS_GIVEN:
            assert_same_bits(got, expected)
        assert dict(metrics) == pytest.approx(dict(expected_metrics))
        assert metrics == expected_metrics or name in SUM_METRICS_AS_GIVEN


def test_a_rule_ignores_a_failed_reply(make):
    expected, expected_metrics = run_round(make(), replies())
    got, metrics = run_round(make(), [failed_reply(NODES[-1]), *replies()])
    assert_same_bits(got, expected)
    assert metrics == expected_metrics


def test_a_rule_with_weights_ignores_a_reply_without_examples(make):
    if not hasattr(make(), "weigh"):
        pytest.skip("weighs all replies alike: AttentionOnly leaves those out")
    empty = reply_of(NODES[-1], arrays(99), 0)
    expected, expected_metrics = run_round(make(), replies())
    got, metrics = run_round(make(), [empty, *replies()])
    assert_same_bits(got, expected)
    assert metrics == expected_metrics
    assert run_round(make(), [empty]) == (None, None)


@pytest.mark.parametrize("num_failed", [0, 1, NUM_CLIENTS])
def test_a_rule_combines_nothing_without_a_valid_reply(make, num_failed):
    failed = [failed_reply(node) for node in NODES[:num_failed]]
    assert run_round(make(), failed) == (None, None)


def test_a_rule_returns_what_all_clients_agree_on(make, name):
    if name in NOT_IDEMPOTENT:
        pytest.skip(NOT_IDEMPOTENT[name])
    agreed = arrays(3)
    answers = [reply_of(node, agreed, 10 + node) for node in NODES[:NUM_CLIENTS]]
    after, _ = run_round(make(), answers)
    for key, value in agreed.items():
        np.testing.assert_allclose(after[key], value, rtol=1e-6)


def assert_resumes(make, keep_state=True):
    """Assert that a second round is the same on a new instance that has the state of the first."""
    rule = make()
    first, _ = run_round(sharing_all(rule), replies())
    state = {key: array.copy() for key, array in state_of(rule).items()} if keep_state else {}
    expected, expected_metrics = run_round(sharing_all(rule), replies(seed=1), first, 2)
    resumed = make()
    load_state(resumed, state)
    got, metrics = run_round(sharing_all(resumed), replies(seed=1), first, 2)
    assert_same_bits(got, expected)
    assert metrics == expected_metrics


def test_a_rule_resumes_from_its_state(make, name):
    assert_resumes(make)
    rule = make()
    run_round(rule, replies())
    assert bool(state_of(rule)) == (name in STATEFUL)


@pytest.mark.parametrize("stateful", STATEFUL)
def test_the_state_of_a_rule_is_needed(stateful):
    with pytest.raises(AssertionError):
        assert_resumes(FACTORIES[stateful], keep_state=False)


class Forgetful(WeightedFedAvg):
    """Keeps the last average, and has no `state`."""

    last = None

    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        last, self.last = self.last or mean, mean
        averaged = {name: (array.numpy() + last[name].numpy()) / 2 for name, array in mean.items()}
        return record(**averaged), metrics


def test_a_rule_that_does_not_give_its_state_is_found():
    with pytest.raises(AssertionError):
        assert_resumes(Forgetful)


# Each rule inside `AttentionOnly`


def test_only_the_shared_arrays_change_and_all_keep_their_form(make):
    before = arrays(0)
    after, _ = run_round(sharing(make()), shared_replies())
    assert list(after) == list(before)
    for key in before:
        assert after[key].dtype == before[key].dtype
        assert after[key].shape == before[key].shape
        assert (after[key].tobytes() == before[key].tobytes()) == (key not in SHARED)


def test_selecting_all_is_the_inner_strategy_exactly(make):
    wrapped, metrics = run_round(sharing_all(make()), replies())
    alone, alone_metrics = run_round(make(), replies())
    for key, before in arrays(0).items():
        np.testing.assert_array_equal(wrapped[key], alone[key].astype(before.dtype))
    assert metrics == alone_metrics


def test_the_order_of_replies_does_not_matter(make):
    expected, expected_metrics = run_round(sharing(make()), shared_replies())
    for seed in range(5):
        shuffled = random.Random(seed).sample(shared_replies(), NUM_CLIENTS)
        got, metrics = run_round(sharing(make()), shuffled)
        assert_same_bits(got, expected)
        assert metrics == expected_metrics


@pytest.mark.parametrize("useless", ["failed", "without examples"])
def test_a_useless_reply_changes_nothing(make, useless):
    if useless == "failed":
        extra = failed_reply(NODES[-1])
    else:
        extra = reply_of(NODES[-1], shared_part(arrays(99)), 0)
    expected, _ = run_round(sharing(make()), shared_replies())
    got, _ = run_round(sharing(make()), [*shared_replies(), extra])
    assert_same_bits(got, expected)


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0, 0)])
def test_the_model_stays_without_any_examples(make, sizes):
    strategy = sharing(make())
    assert run_round(strategy, shared_replies(sizes=sizes)) == (None, None)
    assert strategy.aggregate_evaluate(1, shared_replies(sizes=sizes)) is None


def test_messages_contain_the_shared_arrays_and_the_config(make):
    strategy = sharing(make())
    global_arrays, config = record(**arrays(0)), ConfigRecord({"frozen-fingerprint": "abc"})
    sent = [
        *strategy.configure_train(3, global_arrays, config, grid(NUM_CLIENTS)),
        *strategy.configure_evaluate(3, global_arrays, config, grid(NUM_CLIENTS)),
    ]
    assert len(sent) == 2 * NUM_CLIENTS
    for message in sent:
        assert set(message.content.array_records["arrays"]) == SHARED
        config = message.content.config_records["config"]
        assert config["frozen-fingerprint"] == "abc"
        assert config["server-round"] == 3


def test_messages_contain_the_rest_if_asked_for(make):
    strategy = AttentionOnly(make(), SHARED.__contains__, with_rest=True)
    nodes = grid(NUM_CLIENTS)
    for message in strategy.configure_train(1, record(**arrays(0)), ConfigRecord(), nodes):
        records = message.content.array_records
        assert set(records["arrays"]) == SHARED
        assert set(records["rest"]) == set(arrays(0)) - SHARED
